"""Bytes of weights, of what is trained, and of the cache: exact counts, no rule of thumb."""

from __future__ import annotations

import math

from chinese_llama_lab.inference.settings import DTYPES, Settings
from chinese_llama_lab.inference.shapes import Shape
from chinese_llama_lab.quantization.kinds import FOUR_BIT

BLOCK = 64  # weights that share an absmax in NF4 and FP4
NESTED = 256  # absmax values that share one in double quantization


def stored(rows: int, columns: int, quantization: str, dtype: str) -> tuple[float, float]:
    """(bytes of a matrix's weights, bytes of its quantization constants).

    NF4 and FP4: half a byte a weight; float32 absmax a block of 64, together 4.5 bits. Double: 8 bits an
    absmax, and a float32 a block of 256 of them and one for their mean, together 4.127 bits. int8: a float32
    a row.
    """
    count = rows * columns
    if quantization == "none":
        return float(count * DTYPES[dtype]), 0.0
    if quantization == "int8":
        return float(count), 4.0 * rows
    blocks = math.ceil(count / BLOCK)
    if not FOUR_BIT[quantization][1]:
        return count / 2, 4.0 * blocks
    return count / 2, blocks + 4.0 * math.ceil(blocks / NESTED) + 4.0


def bits_per_weight(quantization: str, dtype: str = "bfloat16") -> float:
    """Bits a weight with its constants, of a large matrix: 4.5 for NF4, 4.127 with double quantization."""
    return 8 * sum(stored(4096, 4096, quantization, dtype)) / 4096**2


def weight_bytes(shape: Shape, s: Settings) -> dict[str, float]:
    """Bytes of the model itself, by component."""
    by = {"linear weights": 0.0, "quantization constants": 0.0}
    for name, (rows, columns) in shape.matrices().items():
        kind = s.quantization if name in s.quantized else "none"
        weights, constants = stored(rows, columns, kind, s.dtype)
        by["linear weights"] += shape.layers * weights
        by["quantization constants"] += shape.layers * constants
    by["embeddings"] = float(shape.matrix * DTYPES[s.dtype])
    if not shape.tied:
        kind = s.quantization if s.quantize_head else "none"
        by["head"], constants = stored(shape.vocabulary, shape.width, kind, s.dtype)
        by["quantization constants"] += constants
    by["norms and biases"] = float(shape.small * DTYPES[s.dtype])
    return by


def lora_parameters(shape: Shape, s: Settings) -> int:
    """Weights of A and B over all layers: r · (rows + columns) a matrix."""
    matrices = shape.matrices()
    return shape.layers * s.rank * sum(sum(matrices[name]) for name in s.targets)


def trained_parameters(shape: Shape, s: Settings) -> dict[str, int]:
    """Trained parameters by component: LoRA, new rows, whole copies, or the model itself.

    For inference: those of an adapter that is not merged.
    """
    if s.task == "inference" and not s.adapter:
        return {}
    if s.task == "full":
        return {"model": shape.parameters}
    matrices = 1 if shape.tied else 2
    found = {"LoRA weights": lora_parameters(shape, s)}
    if s.embeddings == "new-rows":
        found["new rows"] = s.new_tokens * shape.width * matrices
    if s.embeddings == "published":
        found["modules_to_save"] = shape.matrix * matrices
    return found


def trained_bytes(shape: Shape, s: Settings) -> dict[str, float]:
    """Bytes of weights that training adds, of gradients, and of Adam's two moments."""
    by: dict[str, float] = {}
    own = DTYPES[s.dtype if s.task == "full" else s.lora_dtype]
    counts = trained_parameters(shape, s)
    for name, count in counts.items():
        if name != "model":
            by[name] = float(count * own)
        elif s.master_weights and s.dtype != "float32":
            by["master weights"] = 4.0 * count
    total = sum(counts.values())
    by["gradients"] = float(total * own)
    by["Adam moments"] = 2.0 * total * DTYPES[s.optimizer_dtype]
    return by


def kv_bytes_per_token(shape: Shape, dtype: str = "bfloat16") -> float:
    """Keys and values of one token in all layers, in bytes; GQA stores `kv_heads` of them, not `heads`."""
    return float(2 * shape.layers * shape.kv_heads * shape.head_width * DTYPES[dtype])


def largest_dequantized(shape: Shape, s: Settings) -> float:
    """The largest quantized matrix as it is in the moment of its product: in the arithmetic's dtype."""
    if not s.four_bit:
        return 0.0
    sizes = [rows * columns for name, (rows, columns) in shape.matrices().items() if name in s.quantized]
    if s.quantize_head and not shape.tied:
        sizes.append(shape.matrix)
    return float(max(sizes, default=0) * DTYPES[s.dtype])
