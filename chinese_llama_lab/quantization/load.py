"""Loading a model quantized through bitsandbytes, on the CPU or a GPU, with the same call for every kind."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinese_llama_lab.quantization.head import quantize_head_of
from chinese_llama_lab.quantization.kinds import (
    FOUR_BIT,
    PLAIN,
    check_kind,
    compute_dtype_of,
    quantization_config,
)
from chinese_llama_lab.quantization.loadable import (
    check_bitsandbytes,
    check_device,
    check_quantized,
    check_rest,
    check_shapes,
    check_skipped,
    refusing_bad_weights,
)
from chinese_llama_lab.quantization.packing import (
    KERNEL_ROWS,
    SlowKernelWarning,
    block_of,
    fits_kernel,
    has_4bit_kernel,
    has_8bit_kernel,
    layers_4bit,
    manage,
)
from chinese_llama_lab.quantization.saved import check_saved, save_quantized, saved_settings

if TYPE_CHECKING:
    from chinese_llama_lab.sources.models import Base

__all__ = ["SlowKernelWarning", "load_quantized", "quantization_config", "save_quantized"]


def load_quantized(
    model: str | Path,
    kind: str,
    *,
    compute_dtype: str | None = None,
    device: str = "cpu",
    fast: bool = True,
    quantize_head: bool | None = None,
    skip: Sequence[str] | None = None,
    threshold: float | None = None,
) -> Base:
    """Load a base or merged model with its linear layers quantized.

    Args:
        model: `smollm2`, a folder, or a hub id; or a folder of `save_quantized`, asked for as the kind it is.
        kind: `nf4`, `nf4-double` (scales in 8 bits too), `fp4`, `fp4-double`: 4 bits in blocks of 64.
            `int8`: a scale for each row; activations are rounded to 8 bits for each token, except for those
            columns where one is at least `threshold`: these are multiplied in the compute dtype, with the
            weights restored. In train mode on a CPU no activation is rounded. `fp32`, `bf16` and `fp16` load
            in that dtype, and look at no option but `device`, so that a loop over kinds needs no `if`.
        compute_dtype: `bfloat16`, `float16` or `float32`; of activations, embedding, norms and head. Default:
            bfloat16 where this machine has instructions for it, else float32. Weights are rounded to it
            before they are quantized, as transformers does. A saved folder may be given another one.
        device: `cpu`, `cuda`, `cuda:1`.
        fast: let 4-bit layers use bitsandbytes' kernel for processors where there is one (AVX512-BF16, rows a
            multiple of 32, compute_dtype bfloat16). It rounds scales to bfloat16 and is made for one token at
            a time; `fast=False` is several times faster for long prompts. `use_fast_kernel` changes it later.
        quantize_head: quantize the head too. Where it is tied to the embedding, it becomes a matrix of its
            own, which is memory on top. Default: no; of a saved folder, as it was saved.
        skip: linear layers to leave in the compute dtype: ends of names, as `down_proj`, or beginnings up to
            a dot, as `model.layers.0`.
        threshold: of int8, default 6.0; 0 rounds every activation.

    Returns: (model in eval mode, tokenizer).

    Warns: SlowKernelWarning: on a CPU where there is no fast kernel, for all layers or for some.

    Raises:
        QuantizationError: an unknown kind or dtype; a folder that is quantized with other settings; NaN or
            infinity in a weight; a shape for which bitsandbytes computes nonsense; no bitsandbytes here.
        ModelError, SourceError: as `load_base`.
    """
    from chinese_llama_lab.sources.models import Base, load_base

    check_kind(kind)
    name = str(model)
    stored = saved_settings(name)
    if kind in PLAIN:
        check_saved(stored, kind, where=name)
        return load_base(name, dtype=PLAIN[kind], device=device)
    compute = compute_dtype_of(compute_dtype)
    check_bitsandbytes()
    check_device(device)
    asked = quantization_config(kind, compute, threshold=threshold, skip=list(skip or []))
    check_saved(stored, kind, quantize_head=quantize_head, skip=skip, threshold=threshold, where=name)
    options: dict[str, Any] = {} if stored else {"quantization_config": asked}
    with refusing_bad_weights(kind):
        base = load_base(name, dtype=compute, device=device, device_map={"": device}, **options)
    loaded: Any = base.model
    if stored:
        _compute_in(loaded, compute)
    check_rest(loaded)
    if skip and not stored:
        check_skipped(loaded, skip)
    check_quantized(loaded, kind, name)
    if quantize_head and not stored:
        quantize_head_of(loaded, asked)
    if kind in FOUR_BIT:
        if device.startswith("cpu"):
            check_shapes(loaded)
        manage(loaded, fast=fast)
    if fast and device.startswith("cpu"):
        _warn_slow(loaded, kind, compute)
    return Base(loaded, base.tokenizer)


def _compute_in(model: Any, compute: str) -> None:
    """transformers loads a quantized folder in the dtypes that it was saved with, whatever is asked for."""
    import torch

    dtype = getattr(torch, compute)
    for parameter in model.parameters():
        if parameter.is_floating_point() and not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.to(dtype)
    for _, layer in layers_4bit(model):
        layer.compute_dtype, layer.compute_type_is_set = dtype, True
    model.config.dtype = dtype
    model.config.quantization_config.bnb_4bit_compute_dtype = dtype


def _warn_slow(model: Any, kind: str, compute: str) -> None:
    from chinese_llama_lab.machine import processor_name

    if kind == "int8":
        if not has_8bit_kernel():
            _warn(
                f"{processor_name()} has no AVX-512, without which torch multiplies 8-bit numbers no faster:"
                " products are computed in float32. The results are right; bf16 or fp32 is faster."
            )
        return
    if not has_4bit_kernel():
        _warn(
            f"{processor_name()} has no AVX512-BF16, and bitsandbytes has no 4-bit kernel for other"
            " processors: at each forward the weights are restored, then multiplied. The results are right"
            " and memory is saved; one token at a time it is slower than bf16 or fp32. fast=False silences"
            " this."
        )
        return
    if compute != "bfloat16":
        _warn(
            f"bitsandbytes' 4-bit kernel computes in bfloat16, and compute_dtype is {compute}: at each"
            " forward the weights are restored, then multiplied. fast=False silences this."
        )
        return
    odd = [(name, layer) for name, layer in layers_4bit(model) if not fits_kernel(layer)]
    if odd:
        name, layer = odd[0]
        _warn(
            f"bitsandbytes' 4-bit kernel takes multiples of {KERNEL_ROWS} rows of whole blocks of"
            f" {block_of(layer)} weights, and of {len(odd)} layers others are left over, such as {name}"
            f" [{layer.out_features}, {layer.in_features}]. Their weights are restored, then"
            " multiplied, at each forward."
        )


def _warn(text: str) -> None:
    # From one place, so that Python's filter shows a text once however many models are loaded.
    warnings.warn(text, SlowKernelWarning, stacklevel=1)
