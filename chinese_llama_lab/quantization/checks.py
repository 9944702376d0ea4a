"""What can be quantized, and what is refused with its position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from chinese_llama_lab.quantization.codebooks import KINDS
from chinese_llama_lab.quantization.errors import QuantizationError

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_settings(kind: str, block_size: int) -> None:
    """Raise QuantizationError for an unknown kind, or a block size that bitsandbytes does not have."""
    if kind not in KINDS:
        raise QuantizationError(
            f"there is no kind {kind!r}", where="kind", remedy=f"choose one of {', '.join(KINDS)}"
        )
    if type(block_size) is not int or block_size not in BLOCK_SIZES:
        raise QuantizationError(
            f"blocks of {block_size!r} weights are not allowed",
            where="block_size",
            remedy=f"choose one of {', '.join(map(str, BLOCK_SIZES))}; 64 is usual",
        )


def checked(tensor: Any, name: str) -> torch.Tensor:
    """The weights as one contiguous row [n]; a copy only where the tensor is not contiguous.

    Raises: QuantizationError: not a tensor, sparse or without storage, not float32, float16 or bfloat16, or
        empty.
    """
    if not isinstance(tensor, torch.Tensor):
        raise QuantizationError(
            f"{name} is a {type(tensor).__name__}, not a tensor", where=name, remedy="pass a torch.Tensor"
        )
    if tensor.layout is not torch.strided or tensor.is_meta:
        state = "on the meta device" if tensor.is_meta else f"of layout {tensor.layout}"
        raise QuantizationError(
            f"{name} is {state}", where=name, remedy="load its values into a dense tensor first"
        )
    if tensor.dtype not in DTYPES:
        hint = "convert it with .float() first"
        if tensor.dtype in (torch.uint8, torch.int8):
            hint = "it may be quantized already: dequantize it, or take the original weights"
        raise QuantizationError(
            f"{name} holds {tensor.dtype}; weights are float32, float16 or bfloat16", where=name, remedy=hint
        )
    if tensor.numel() == 0:
        raise QuantizationError(
            f"{name} of shape {list(tensor.shape)} is empty", where=name, remedy="leave it out"
        )
    return tensor.detach().contiguous().view(-1)


def refuse_non_finite(flat: torch.Tensor, shape: Sequence[int], absmax: torch.Tensor, name: str) -> None:
    """Raise QuantizationError at the first NaN or infinity, which its block's `absmax` has given away.

    bitsandbytes accepts it and spoils the whole block in silence.
    """
    finite = absmax.isfinite()
    if bool(finite.all()):
        return
    bad = (~flat.isfinite()).nonzero().view(-1)
    first = int(bad[0])
    index = [int(i) for i in torch.unravel_index(torch.tensor(first), tuple(shape))]
    spoilt = int((~finite).sum())
    raise QuantizationError(
        f"{name} holds {flat[first].item()} ({len(bad)} of {len(flat)} weights are not finite,"
        f" and would spoil {spoilt} block{'s' if spoilt > 1 else ''})",
        where=f"{name}{index}",
        remedy="find out which step of training or conversion made it; take the weights from before it",
    )


def check_rows(shape: Sequence[int], block_size: int, name: str) -> None:
    """Raise QuantizationError if the rows of a layer do not divide into blocks.

    `quantize` takes any shape: a block may go on in the next row, and the last may be shorter. bitsandbytes'
    CPU kernels may not be given such a layer. Measured with 0.50.2: with AVX-512, if a row is a multiple of
    16 and blocks are shorter than 2048, `dequantize_4bit` counts blocks from the start of each row and takes
    the scales of other blocks, in silence; with AVX512-BF16, `Linear4bit` in eval mode stops with an error.
    """
    rows = shape[-1] if len(shape) else 1
    if rows % block_size:
        fitting = [size for size in BLOCK_SIZES if rows % size == 0]
        advice = f"use blocks of {' or '.join(map(str, fitting))}" if fitting else "leave it in 16 bits"
        raise QuantizationError(
            f"{name} has rows of {rows} weights, which do not divide into blocks of {block_size}",
            where=name,
            remedy=advice,
        )
