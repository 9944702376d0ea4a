"""Which arithmetic a run uses, and what its frozen weights are loaded as.

bfloat16 halves the memory of weights and activations. On a processor that has instructions for it, products
are several times as fast as in float32; on one that has none they are slower, so that `auto` asks first.
"""

from __future__ import annotations

from chinese_llama_lab.machine import computes_bfloat16
from chinese_llama_lab.training.recipe import Recipe

_WEIGHTS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def precision_of(recipe: Recipe) -> str:
    """`fp32`, `bf16` or `fp16`: what the recipe says, with `auto` looked up on this machine."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16" if computes_bfloat16() else "fp32"


def weights_dtype(recipe: Recipe) -> str:
    """The dtype for `load_base`: of the frozen weights; adapters are float32 in any case."""
    return _WEIGHTS[precision_of(recipe)]
