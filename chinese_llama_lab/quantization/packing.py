"""The fast 4-bit kernel of bitsandbytes on processors, without what it costs.

On a processor with AVX512-BF16, bitsandbytes 0.50 rearranges ("packs") the weights of a layer for its kernel
at the first forward in eval mode. Measured with 0.50.2, that has side effects: the scales are rounded to
bfloat16 for good, a model that is saved afterwards is damaged (its scales are written in another order), the
kernel goes on to be used in training, where it has no backward, so that the gradient is lost in silence, and
it computes in bfloat16 whatever the compute dtype says. Here the unrounded scales are kept: a layer is packed
when it can be, and goes back, to the bit, when it is trained or saved.

The kernel reads a quarter of the bytes, which is what counts for one token at a time. For many tokens at once
restoring the weights and multiplying is several times faster: `use_fast_kernel(model, False)`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from chinese_llama_lab.quantization.errors import QuantizationError

KERNEL_ROWS = 32  # the kernel takes 32 rows at a time


class SlowKernelWarning(UserWarning):
    """What is quantized works here, but through slower code than elsewhere."""


def has_4bit_kernel() -> bool:
    """Whether bitsandbytes has a kernel for 4-bit weights for this processor: AVX512-BF16 alone."""
    from bitsandbytes import functional

    return bool(functional.has_avx512bf16())


def has_8bit_kernel() -> bool:
    """Whether 8-bit products are computed in 8 bits here: bitsandbytes asks torch for AVX-512."""
    import torch

    return bool(torch.backends.cpu.get_cpu_capability() == "AVX512")


def layers_4bit(model: Any) -> Iterator[tuple[str, Any]]:
    """(name, layer) of every 4-bit linear layer of bitsandbytes, which need not be installed to ask."""
    # Not by the name of the class: peft has a Linear4bit of its own around them.
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            yield name, module


def block_of(layer: Any) -> int:
    """How many weights of a 4-bit layer share a scale."""
    return int(layer.weight.quant_state.blocksize)


def fits_kernel(layer: Any) -> bool:
    """Whether bitsandbytes' fast kernel takes a layer of this shape."""
    return layer.out_features % KERNEL_ROWS == 0 and layer.in_features % block_of(layer) == 0


def is_packed(layer: Any) -> bool:
    """Whether a layer is arranged for the fast kernel just now."""
    return bool(getattr(layer.weight.quant_state, "packing_format_for_cpu", False))


def manage(model: Any, *, fast: bool) -> None:
    """Take over from bitsandbytes when layers are packed.

    Args:
        model: just loaded: none of its layers is packed.
        fast: use the kernel for layers on a processor that has it, where the shape fits and the compute dtype
            is bfloat16. False: never.
    """
    import torch

    for _, layer in layers_4bit(model):
        layer.kept_state = None
        bfloat16 = layer.compute_dtype == torch.bfloat16
        layer.may_pack = has_4bit_kernel() and fits_kernel(layer) and bfloat16
        layer.packs = fast and layer.may_pack
        layer.support_avx512bf16_for_cpu = False
        layer.register_forward_pre_hook(_before_forward, with_kwargs=True)
        layer.register_state_dict_pre_hook(_before_saving)


def use_fast_kernel(model: Any, fast: bool) -> int:
    """Turn the fast kernel on or off for a model of `load_quantized`.

    Returns: how many layers use it from now on, in eval mode, on the CPU. Turned off, layers are as they were
        loaded, to the bit.

    Raises: QuantizationError: bitsandbytes itself has packed a layer.
    """
    count = 0
    for name, layer in layers_4bit(model):
        unpack(layer, name)
        layer.packs = fast and getattr(layer, "may_pack", False)
        layer.support_avx512bf16_for_cpu = False
        count += layer.packs
    return count


def unpack(layer: Any, name: str = "a layer") -> None:
    """Bring a packed layer back to what it was, to the bit; others stay as they are.

    Raises: QuantizationError: bitsandbytes itself has packed it, and the scales that it rounded are gone.
    """
    kept = getattr(layer, "kept_state", None)
    # `state_dict` has bitsandbytes unpack its own: with rounded scales, and out of order unless double.
    was_packed = hasattr(layer.weight.quant_state, "original_qshape")
    if not was_packed:
        return
    if kept is None:
        raise QuantizationError(
            f"bitsandbytes has packed the weights of {name} for inference and rounded their scales",
            where=name,
            remedy="load the model with load_quantized, or train and save it before its first forward in"
            " eval mode",
        )
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    state = copy.copy(layer.weight.quant_state)
    state.original_nested = False  # no scales are to be computed: they were kept
    layer.weight.data, _ = _convert_weight_packed_for_cpu_inverse(layer.weight.data, state)
    layer.weight.quant_state = layer.quant_state = kept
    layer.kept_state = None


def _before_forward(layer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    x = arguments[0] if arguments else named["x"]
    packs = layer.packs and x.device.type == "cpu" and not layer.training and not x.requires_grad
    if not packs:
        unpack(layer)
    elif not is_packed(layer):
        layer.kept_state = copy.copy(layer.weight.quant_state)  # bitsandbytes changes the object it packs
    layer.support_avx512bf16_for_cpu = packs


def _before_saving(layer: Any, prefix: str, keep_vars: bool) -> None:
    unpack(layer, prefix.removesuffix("."))
