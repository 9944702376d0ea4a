"""The kinds a model can be loaded as, and what bitsandbytes is asked for each.

Quantized are the linear layers of attention and MLP alone. Embedding, norms and head stay in the compute
dtype, which is also what activations are in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chinese_llama_lab.quantization.errors import QuantizationError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

PLAIN = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# kind -> (code book, whether the scales are quantized too)
FOUR_BIT = {
    "nf4": ("nf4", False),
    "nf4-double": ("nf4", True),
    "fp4": ("fp4", False),
    "fp4-double": ("fp4", True),
}
LOADABLE = (*PLAIN, "int8", *FOUR_BIT)
COMPUTE_DTYPES = tuple(PLAIN.values())
THRESHOLD = 6.0  # of LLM.int8(), arXiv 2208.07339
BLOCK = 64  # what transformers leaves bitsandbytes at


def check_kind(kind: str) -> None:
    """Raise QuantizationError for a kind that there is not."""
    if kind not in LOADABLE:
        raise QuantizationError(
            f"there is no kind {kind!r}", where="kind", remedy=f"choose one of {', '.join(LOADABLE)}"
        )


def compute_dtype_of(given: str | None) -> str:
    """The dtype that products are computed in: as given, or what is fast on this machine.

    Raises: QuantizationError: a dtype that there is not.
    """
    from chinese_llama_lab.machine import computes_bfloat16

    if given is None:
        return "bfloat16" if computes_bfloat16() else "float32"
    if given not in COMPUTE_DTYPES:
        raise QuantizationError(
            f"nothing is computed in {given!r}",
            where="compute_dtype",
            remedy=f"choose one of {', '.join(COMPUTE_DTYPES)}",
        )
    return given


def quantization_config(
    kind: str,
    compute_dtype: str | None = None,
    *,
    threshold: float | None = None,
    skip: list[str] | None = None,
) -> BitsAndBytesConfig:
    """What transformers' `from_pretrained` takes as `quantization_config`.

    Args:
        kind: `int8`, `nf4`, `nf4-double`, `fp4` or `fp4-double`. Blocks are of 64 weights.
        compute_dtype: `bfloat16`, `float16` or `float32` (default: bfloat16 where this machine has
            instructions for it). int8 does not look at it: it computes in 8 bits and float16.
        threshold: of int8, default 6.0: see `load_quantized`.
        skip: linear layers that are not quantized: ends of names, as `down_proj`, or beginnings up to a dot,
            as `model.layers.0`. The head never is, named or not.

    Raises: QuantizationError: a kind or dtype that there is not, a kind that is not quantized, or a threshold
        for another kind than int8.
    """
    import torch
    from transformers import BitsAndBytesConfig

    check_kind(kind)
    if kind in PLAIN:
        raise QuantizationError(
            f"{kind} is not quantized: there is nothing to configure",
            where="kind",
            remedy=f"choose one of {', '.join(k for k in LOADABLE if k not in PLAIN)}",
        )
    compute = compute_dtype_of(compute_dtype)
    # None has transformers find the head, and all that is tied to it, itself.
    names = ["lm_head", *skip] if skip else None
    if kind == "int8":
        limit = THRESHOLD if threshold is None else float(threshold)
        if not limit >= 0:
            raise QuantizationError(
                f"the threshold is {threshold}", where="threshold", remedy="6.0 is usual; 0 turns it off"
            )
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=limit, llm_int8_skip_modules=names)
    if threshold is not None:
        raise QuantizationError(
            f"{kind} has no threshold", where="threshold", remedy="leave it out; it belongs to int8"
        )
    book, double = FOUR_BIT[kind]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=book,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=getattr(torch, compute),
        llm_int8_skip_modules=names,
    )
