"""What a training step keeps beside the weights: derived from what each operation needs for its gradient.

A product Wx keeps x where W is trained, and nothing where W is frozen. LoRA's A keeps x. An RMSNorm that
computes in float32 keeps that copy. Attention without scores (flash) keeps q, k, v and its output. SwiGLU
keeps gate, silu(gate) and up. `tests/inference/test_activations.py` compares these sums with the tensors that
autograd holds for a transformers model. With the lean layers of this package's trainer a norm keeps its
input and one number a token, and the MLP what it reads, gate and up; over quantized weights the norms alone
are lean.
"""

from __future__ import annotations

from chinese_llama_lab.inference.settings import DTYPES, Settings
from chinese_llama_lab.inference.shapes import Shape
from chinese_llama_lab.inference.weights import lora_parameters


def kept_by_layer(shape: Shape, s: Settings) -> dict[str, float]:
    """Bytes a token that one layer keeps for its backward pass, by what they are.

    Keys and values are counted at the width of the queries: under GQA they are repeated for the attention
    wherever a mask is passed, except by `lean`.
    """
    size = DTYPES[s.dtype]
    width, inner, queries = shape.width, shape.inner, shape.heads * shape.head_width
    lean = s.layers == "lean" and s.adapted
    by = {"norms": 2.0 * (size * width + 4) if lean else _norms(shape, s)}
    read = shape.kv_heads if s.attention == "lean" else shape.heads
    by["q, k, v, attention output"] = 2.0 * size * (queries + read * shape.head_width)
    if s.attention == "flash":
        by["log-sums of the scores"] = 4.0 * shape.heads
    elif s.attention == "eager":
        # softmax in float32, and its copy in the arithmetic's dtype; no output beside the input of o_proj
        by["attention scores"] = float((4 + size) * shape.heads * s.block)
    if s.masked and s.attention != "lean":
        by["mask"] = float(size * s.block)
    by["gate and up"] = 2.0 * size * inner
    if lean and s.quantization == "none":  # one copy of what the norms give; the rest is computed again
        by["inputs of adapters"] = 2.0 * size * width
        return by
    if not s.compile:
        by["silu(gate)"] = float(size * inner)
    columns = {name: matrix[1] for name, matrix in shape.matrices().items()}
    if s.task == "full":
        by["inputs of products"] = float(size * (2 * width + inner))  # o_proj's is attention's output
    elif s.adapted:
        by["inputs of adapters"] = _adapter_inputs(s, columns)
    if s.keeps_inputs and s.four_bit:
        by["inputs of quantized layers"] = float(size * (2 * width + queries + inner))
    return by


def _norms(shape: Shape, s: Settings) -> float:
    size = DTYPES[s.dtype]
    if s.compile:  # fused: the input is kept, the rest computed again
        return 2.0 * size * shape.width
    # the copy in float32, one number a token (1 / rms), and the product's input for the weight's gradient
    return 2.0 * (shape.width * (4 + (size if s.task == "full" else 0)) + 4)


def _adapter_inputs(s: Settings, columns: dict[str, int]) -> float:
    """Inputs of A: one copy for all modules that read it, unless each casts it or drops parts of its own."""
    own = DTYPES[s.lora_dtype]
    low = own * s.rank * len(s.targets)  # Ax, for the gradient of B
    if own == DTYPES[s.dtype] and (not s.dropout or s.compile):
        read = [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("down_proj",)]
        shared = [group for group in read if set(group) & set(s.targets)]
        return float(low + own * sum(columns[group[0]] for group in shared))
    mask = 1 if s.dropout else 0  # dropout keeps a byte an element
    return float(low + sum((own + mask) * columns[name] for name in s.targets))


def in_flight(shape: Shape, s: Settings) -> float:
    """Bytes a token of gradients inside one layer: of SwiGLU's product, gate and up, the widest there are."""
    return 3.0 * DTYPES[s.dtype] * shape.inner


def kept(shape: Shape, s: Settings) -> dict[str, float]:
    """Bytes of activations of the whole batch: kept from forward to backward, and of one layer alone."""
    layer = sum(kept_by_layer(shape, s).values())
    size = DTYPES[s.dtype]
    head = shape.width * ((size if s.compile else 4) + size)  # the last norm, and the head's input
    if s.loss == "lean":  # its gradient, and the positions with a label once more
        head += 2 * size * shape.width
    copies = _adapter_copies(shape, s)
    if s.gradient_checkpointing:
        between = 0.0 if s.offload_checkpoints else float(shape.layers * size * shape.width)
        again = layer + in_flight(shape, s)
        alone = copies / shape.layers
        return {
            "kept": s.tokens * (between + head),
            "layer": s.tokens * again + alone,
            "first": s.tokens * layer + alone,
        }
    between, again = shape.layers * layer, in_flight(shape, s)
    first = s.tokens * layer + copies / shape.layers
    return {"kept": s.tokens * (between + head) + copies, "layer": s.tokens * again, "first": first}


def _adapter_copies(shape: Shape, s: Settings) -> float:
    """Bytes of A and B as lean layers keep them for backward, in the dtype that the products are made in."""
    lean = s.layers == "lean" and s.adapted and s.quantization == "none" and s.lora_dtype != s.dtype
    return float(DTYPES[s.dtype] * lora_parameters(shape, s)) if lean else 0.0


def logits_bytes(shape: Shape, s: Settings) -> float:
    """Bytes of logits and loss where they are largest: as backward enters the head.

    A logit is kept in the arithmetic's dtype (2 bytes of bfloat16). Beside it, in float32: the
    log-probabilities, the gradient to them, and the gradient to the logits: 14 bytes in all. transformers
    before 4.46 shifted the logits by copying all positions but the last; the whole and the shorter tensors
    cannot take each other's place in the allocator, so one more counts: 18. Compiled, only the logits and
    their gradient are written in float32: 10, or in chunks 2 and the gradient of one chunk.
    """
    size = DTYPES[s.dtype]
    rows = min(s.loss_rows, s.tokens)
    wide = size if s.compile else 12  # of a position that is being worked on
    if s.loss == "lean":
        # logits, their float32 copy, and the exponentials that logsumexp writes before it adds them up
        return float(rows * shape.vocabulary * (size + 8))
    if s.loss == "chunked":  # log-probabilities of earlier chunks stay until backward, unless compiled
        left = 0 if s.compile else 4
        return float(shape.vocabulary * (s.tokens * (size + left) + rows * max(wide - left, size)))
    if s.compile:
        wide = 8  # logits and their gradient in float32
    return float(s.tokens * shape.vocabulary * (size + wide + (4 if s.loss == "shifted" else 0)))


def prefill_bytes(shape: Shape, s: Settings) -> float:
    """Bytes of one layer in a forward pass alone: residual, norm, attention, gate, up, product."""
    size = DTYPES[s.dtype]
    token = size * (3 * shape.width + 3 * shape.inner)
    if s.attention == "eager":
        token += (4 + size) * shape.heads * s.block
    return float(s.tokens * token)
