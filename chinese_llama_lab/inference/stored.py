"""What a config says of quantized weights, as options of `estimate`.

In a folder that `chinese-llama-lab quantize` wrote in 4 bits, linear layers take little more than a quarter
of their 16-bit bytes. Its shape does not say so; its `quantization_config` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinese_llama_lab.inference.configs import fields_of
from chinese_llama_lab.inference.errors import EstimateError
from chinese_llama_lab.inference.settings import QUANTIZATIONS
from chinese_llama_lab.inference.shapes import MODULES, Shape, known_shape
from chinese_llama_lab.quantization.saved import kind_of

_HEAD = "lm_head"


def with_stored(source: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, and those that the config of a quantized model implies.

    Args:
        source: a model, as for `estimate`.
        options: of `estimate`; where `quantization` is among them, the config is not asked.

    Raises: EstimateError: weights quantized in a way that is not counted here, such as GPTQ.
    """
    given = dict(options)
    said = None if "quantization" in given else _stored(source)
    if not said:
        return given
    where = str(source) if isinstance(source, (str, Path)) else "quantization_config"
    kind = kind_of(said)
    if kind not in QUANTIZATIONS:
        raise EstimateError(
            f"the weights are quantized as {kind}, whose bytes are not counted here",
            where=where,
            remedy="say what comes nearest as quantization (--quantization), out of "
            f"{', '.join(QUANTIZATIONS)}; or give the model it was made from",
        )
    found: dict[str, Any] = {"quantization": kind, **_left_out(said, where)}
    return {**found, **given}


def _stored(source: Any) -> dict[str, Any] | None:
    if isinstance(source, Shape) or (isinstance(source, (str, Path)) and known_shape(str(source))):
        return None
    fields = fields_of(source) or {}
    inner = fields.get("text_config")
    said = fields.get("quantization_config") or (
        inner.get("quantization_config") if isinstance(inner, Mapping) else None
    )
    return dict(said) if isinstance(said, Mapping) else None


def _left_out(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`quantized` and `quantize_head`. Without a list, transformers leaves out the head alone.

    A name stands for layers whose names end in it, or for all below it. One that is neither a kind of matrix
    nor part of the layers (a norm, a vision tower) would not be quantized anyway, or is not counted here.
    """
    names = said.get("llm_int8_skip_modules")
    if names is None:
        return {}
    names = [str(name) for name in names]
    below = [name for name in names if name in ("model", "model.layers") or name.startswith("model.layers.")]
    if below:
        raise EstimateError(
            f"the quantization leaves out {', '.join(below)}, and only a kind of matrix in all layers can be"
            " left out here",
            where=where,
            remedy="say quantization (--quantization) yourself; all layers then count as quantized",
        )
    found: dict[str, Any] = {"quantize_head": _HEAD not in names}
    quantized = tuple(m for m in MODULES if not any(_path(m).endswith(name) for name in names))
    return found if quantized == MODULES else {**found, "quantized": quantized}


def _path(module: str) -> str:
    return f"{'mlp' if module in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{module}"
