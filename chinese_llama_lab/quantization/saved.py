"""Folders of quantized models: writing one, and telling what is in one before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinese_llama_lab.paths import atomic_folder
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.kinds import FOUR_BIT, THRESHOLD

if TYPE_CHECKING:
    from chinese_llama_lab.sources.models import Base


def save_quantized(base: Base, out: str | Path) -> Path:
    """Write a quantized model and its tokenizer, as safetensors; `load_quantized` reads it back to the bit.

    Args:
        base: from `load_quantized`. It may have been used: layers that were packed for the fast kernel are
            unpacked first.
        out: a folder that does not exist yet.

    Returns: the folder.

    Raises: QuantizationError: the folder exists or cannot be written; the model is not quantized, has an
        adapter, or was packed by bitsandbytes itself, which had its scales rounded.
    """
    from chinese_llama_lab.quantization.packing import layers_4bit, unpack
    from chinese_llama_lab.sources.models import _without_bars

    model: Any = base.model
    target = Path(out).expanduser()
    if hasattr(model, "peft_config"):
        raise QuantizationError(
            "the model has an adapter",
            where=str(target),
            remedy="save the adapter with save_pretrained, and the base without it; or merge it into the"
            " unquantized base (merge_adapters) and quantize that",
        )
    if getattr(model, "hf_quantizer", None) is None:
        raise QuantizationError(
            "the model is not quantized",
            where=str(target),
            remedy="use save_pretrained, or load_quantized first",
        )
    if target.exists():
        raise QuantizationError(
            "there is something of that name", where=str(target), remedy="give a folder that does not exist"
        )
    for name, layer in layers_4bit(model):
        unpack(layer, name)
    try:
        with atomic_folder(target) as temporary, _without_bars():
            # Undoing conversions fails for a model that came from a quantized folder (transformers 5.23).
            model.save_pretrained(temporary, save_original_format=False)
            base.tokenizer.save_pretrained(temporary)
    except OSError as error:
        raise QuantizationError(
            f"the folder could not be written: {error.strerror or error}",
            where=str(target),
            remedy="choose a place with room for it, where you may write",
        ) from error
    return target


def saved_settings(name: str) -> dict[str, Any] | None:
    """`quantization_config` of a folder's or a hub model's config.json; None where there is none.

    What cannot be read gives None too: loading it says why.
    """
    from chinese_llama_lab.sources.hub import hub_reachable
    from chinese_llama_lab.sources.models import BUNDLED

    if name in BUNDLED:
        return None
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            found = json.loads((path / "config.json").read_text(encoding="utf-8"))
        elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
            from transformers import PretrainedConfig

            found, _ = PretrainedConfig.get_config_dict(name, local_files_only=not hub_reachable())
        else:
            return None
    except (OSError, ValueError):
        return None
    settings = found.get("quantization_config") if isinstance(found, dict) else None
    return settings if isinstance(settings, dict) and settings else None


def kind_of(settings: dict[str, Any]) -> str:
    """The kind that a `quantization_config` says; of another library, its name."""
    if settings.get("load_in_8bit"):
        return "int8"
    if settings.get("load_in_4bit"):
        book = (settings.get("bnb_4bit_quant_type", "fp4"), bool(settings.get("bnb_4bit_use_double_quant")))
        return next((kind for kind, said in FOUR_BIT.items() if said == book), f"4-bit {book[0]}")
    return str(settings.get("quant_method") or "unknown method")


def check_saved(
    settings: dict[str, Any] | None,
    kind: str,
    *,
    quantize_head: bool | None = None,
    skip: Sequence[str] | None = None,
    threshold: float | None = None,
    where: str,
) -> None:
    """Compare what a folder holds with what is asked of it; None stands for whatever it holds.

    Raises: QuantizationError: it is quantized in another way. Rounded weights cannot be rounded differently.
    """
    if settings is None:
        return
    is_kind = kind_of(settings)
    if is_kind != kind:
        ours = is_kind in (*FOUR_BIT, "int8")
        raise QuantizationError(
            f"the model is quantized as {is_kind} already, and {kind} was asked for",
            where=where,
            remedy=(f"ask for {is_kind}, or " if ours else "")
            + f"give the model it was made from: what rounding lost does not come back as {kind}",
        )
    left = settings.get("llm_int8_skip_modules")
    # Without a list, transformers leaves out the head.
    held: dict[str, Any] = {
        "quantize_head": left is not None and "lm_head" not in left,
        "skip": sorted(name for name in left or [] if name != "lm_head"),
        "threshold": float(settings.get("llm_int8_threshold", THRESHOLD)),
    }
    asked = {
        "quantize_head": quantize_head,
        "skip": None if skip is None else sorted(skip),
        "threshold": None if threshold is None else float(threshold),
    }
    for option, value in asked.items():
        if value is not None and value != held[option]:
            raise QuantizationError(
                f"the model is quantized with {option}={held[option]} already, and {option}={value} was asked"
                " for",
                where=where,
                remedy=f"leave {option} out, or quantize the model it was made from",
            )
