"""Tensors as llama.cpp stores them: its names, its row order in query and key, its kinds of number.

Row order. transformers rotates the first half of a head against the second; llama.cpp rotates neighbours.
The same rotation comes out when the rows of each query and key head are interleaved: 0, d/2, 1, d/2 + 1, …

Kinds. Matrices are written in the kind asked for; norms (vectors) are always float32. Q8_0 holds 32 weights
of a row as one float16 scale and 32 signed bytes: 8.5 bits a weight.

Source: `ggml-quants.c` of llama.cpp through the `gguf` package, whose `quantize` is what writes the bytes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from chinese_llama_lab.inference.gguf_config import GgufError, Shape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from chinese_llama_lab.merging.base import Base

KINDS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}  # ours -> the name in the gguf package
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
# From here on a value becomes infinite: float16's largest plus half a step, and what a Q8_0 scale can hold.
_TOO_LARGE = {"f32": float("inf"), "bf16": 3.396e38, "f16": 65520.0, "q8_0": 65520.0 * 127}
_AT_A_TIME = 4096 * 1024  # weights converted at once

_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_A_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str | None:
    """llama.cpp's name of a tensor of transformers' LLaMA; None if it has none."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    if found and found[2] in _IN_A_LAYER:
        return f"blk.{found[1]}.{_IN_A_LAYER[found[2]]}.weight"
    return None


def kind_of(shape: list[int], kind: str) -> str:
    """The kind that a tensor is written in: vectors float32; rows that Q8_0 cannot cut into 32s, float16."""
    if len(shape) == 1:
        return "f32"
    return "f16" if kind == "q8_0" and shape[-1] % 32 else kind


def interleaved(rows: int, heads: int) -> NDArray[np.int64]:
    """Which row of transformers' matrix each of llama.cpp's is; int64 [rows]."""
    import numpy as np

    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def encoded(base: Base, name: str, kind: str, shape: Shape) -> NDArray[Any]:
    """A tensor of the folder, ready to be written.

    Args:
        base: the folder. name: transformers' name. kind: one of `KINDS`, as `kind_of` says.
        shape: for the heads of query and key.

    Returns: float32 or float16 of the tensor's shape, or uint8 [rows, bytes a row]. Peak memory is this
        array (twice for query and key) and a few million weights.

    Raises: GgufError: NaN, infinity, or a value that the kind cannot hold.
    """
    import numpy as np

    size = base.shapes[name]
    step = max(1, _AT_A_TIME // (size[1] if len(size) == 2 else 1))
    block = _encode(base, name, 0, step, kind)
    whole = np.empty((size[0], *block.shape[1:]), block.dtype)
    whole[: len(block)] = block
    for begin in range(step, size[0], step):
        whole[begin : begin + step] = _encode(base, name, begin, step, kind)
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2])
    return whole if heads is None else whole[interleaved(size[0], heads)]


def _encode(base: Base, name: str, begin: int, step: int, kind: str) -> NDArray[Any]:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType, quantize

    rows = base.rows(name, begin, begin + step)
    where = f"{base.folder}, {name}, rows from {begin}"
    if not torch.isfinite(rows).all():
        raise GgufError("a weight is NaN or infinite", where=where, remedy="check how the model was made")
    values: NDArray[np.float32] = rows.to(torch.float32).numpy()
    if (largest := float(np.abs(values).max(initial=0))) >= _TOO_LARGE[kind]:
        raise GgufError(
            f"a weight of {largest:.3g} does not fit {kind}",
            where=where,
            remedy="export as bf16 or f32",
        )
    result: NDArray[Any] = quantize(values, GGMLQuantizationType[KINDS[kind]])
    return result
