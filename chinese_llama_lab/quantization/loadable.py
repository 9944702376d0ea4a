"""What is refused before, while and after a model is quantized, with the name of the layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from chinese_llama_lab.errors import ModelError
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.packing import block_of, layers_4bit


def check_bitsandbytes() -> None:
    """Raise QuantizationError where bitsandbytes is missing, or has no native code for this platform."""
    remedy = "pip install bitsandbytes (wheels: Linux, Windows and macOS on x86-64 and arm64); or kind bf16"
    try:
        from bitsandbytes import cextension
    except Exception as error:  # a broken installation raises whatever its parts do
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise QuantizationError(
            f"bitsandbytes cannot be imported here: {reason}",
            where="bitsandbytes",
            remedy=remedy,
        ) from error
    if isinstance(cextension.lib, cextension.ErrorHandlerMockBNBNativeLibrary):
        lines = str(getattr(cextension.lib, "error_msg", "")).strip().splitlines()
        raise QuantizationError(
            "bitsandbytes has no native library for this platform" + (f": {lines[0]}" if lines else ""),
            where="bitsandbytes",
            remedy=f"`python -m bitsandbytes` says why; {remedy}",
        )


def check_device(device: str) -> None:
    """Raise ModelError for a device that there is not."""
    import torch

    try:
        there = torch.device(device).type != "cuda" or torch.cuda.is_available()
        reason = "torch sees no CUDA GPU here"
    except RuntimeError as error:
        there, reason = False, str(error).splitlines()[0]
    if not there:
        raise ModelError(
            f"nothing can be loaded on {device!r}: {reason}",
            where="device",
            remedy='use device="cpu"; `chinese-llama-lab doctor` says which devices there are',
        )


@contextmanager
def refusing_bad_weights(kind: str) -> Iterator[None]:
    """Look at every weight just before it is quantized: afterwards NaN cannot always be told any more.

    Raises: QuantizationError: NaN or infinity; for int8 also a weight that float16 cannot hold.
    """
    import torch
    from transformers.integrations import bitsandbytes as conversions

    def checking(convert: Any) -> Any:
        def checked(self: Any, input_dict: dict[str, Any], *arguments: Any, **named: Any) -> Any:
            for name, value in input_dict.items():
                weight = value[0] if isinstance(value, list) else value
                # int8 goes through float16, whose largest number is 65,504.
                seen = weight.to(torch.float16) if kind == "int8" else weight
                try:
                    _check_finite(name, weight, seen)
                except QuantizationError as error:
                    found.append(error)
            return convert(self, input_dict, *arguments, **named)

        return checked

    classes = [conversions.Bnb4bitQuantize, conversions.Bnb8bitQuantize]
    originals = [c.convert for c in classes]
    found: list[QuantizationError] = []  # raised later: transformers turns what conversions raise into a log
    for c in classes:
        c.convert = checking(c.convert)
    try:
        yield
    finally:
        for c, original in zip(classes, originals, strict=True):
            c.convert = original
    if found:
        raise found[0]


def _check_finite(name: str, weight: Any, seen: Any = None) -> None:
    finite = (weight if seen is None else seen).isfinite()
    if bool(finite.all()):
        return
    bad = (~finite).nonzero()
    first = bad[0].tolist()
    raise QuantizationError(
        f"{name} holds {weight[tuple(first)].item()}, which cannot be quantized ({len(bad):,} of"
        f" {weight.numel():,} weights)",
        where=f"{name}{first}",
        remedy="find out which step of training or conversion made it; take the weights from before it",
    )


def check_rest(model: Any) -> None:
    """What is not quantized, and the scales of what was quantized before."""
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is None and parameter.is_floating_point():
            _check_finite(name, parameter.detach())
        if state is not None:
            _check_finite(f"{name}.absmax", state.state2.absmax if state.nested else state.absmax)


def check_skipped(model: Any, skip: Sequence[str]) -> None:
    """Raise QuantizationError for a name in `skip` that no layer has."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    names = [name for name, module in model.named_modules() if hasattr(module, "in_features")]
    for asked in skip:
        if all(should_convert_module(name, [asked]) for name in names):
            kinds = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise QuantizationError(
                f"the model has no linear layer {asked!r}",
                where="skip",
                remedy=f"name one of {', '.join(kinds)}",
            )


def check_quantized(model: Any, kind: str, name: str) -> None:
    """Raise QuantizationError for a model of which nothing is quantized."""
    wanted = "Int8Params" if kind == "int8" else "Params4bit"
    if not any(type(parameter).__name__ == wanted for parameter in model.parameters()):
        raise QuantizationError(
            "no layer was quantized: the model has no linear layer but its head, or skip names all of them",
            where=name,
            remedy="load it as fp32, bf16 or fp16, or skip fewer layers",
        )


def check_shapes(model: Any) -> None:
    """Refuse rows for which bitsandbytes restores other weights on a CPU; `check_rows` says when that is."""
    for name, layer in layers_4bit(model):
        block, row = block_of(layer), layer.in_features
        if row % block and row % 16 == 0:
            raise QuantizationError(
                f"{name} has rows of {row} weights, which do not divide into blocks of {block}: on a CPU"
                " bitsandbytes would take the scales of other blocks, in silence",
                where=name,
                remedy=f"leave it as it is with skip=[{name.rsplit('.', 1)[-1]!r}], take int8, or use a GPU",
            )
