"""Block-wise quantization: blocks of weights as codes of a code book, times the block's largest magnitude.

`quantize_nf4` and `dequantize_nf4` are bit-equal to bitsandbytes on the CPU. FP4, INT4 and INT8 go the same
way, for comparison. Pure torch: the work is done in chunks, so that a large matrix needs little memory beside
itself and its result.

Where bitsandbytes departs from its own definition, this file does not follow (measured with 0.50.2): see
`check_rows` for rows that do not divide into blocks; and on processors with AVX512-BF16 its kernel turns
bfloat16 results below 1.2e-38 into zero.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch

from chinese_llama_lab.quantization.checks import DTYPES, check_settings, checked, refuse_non_finite
from chinese_llama_lab.quantization.chunks import CHUNK, in_chunks
from chinese_llama_lab.quantization.codebooks import Kind, code_of, dynamic_code, sorted_midpoints
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.scales import NESTED_BLOCK, QuantizedScales, quantize_scales

# Measured from 1 to 16 times: decoding has few operations to a chunk, so that Python costs more than what
# torch may lose by sharing them.
_DECODE_CHUNK = 8 * CHUNK
_SMALLEST = 1e-38  # bitsandbytes' floor for a magnitude: its reciprocal is still finite


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor in blocks of codes.

    Attributes:
        codes: uint8 [ceil(n / 2)], two codes a byte, the first in the high half; int8 [n] for `int8`.
        absmax: the largest magnitude of each block, float32 [blocks], or in 8 bits.
        shape, dtype: of the weights. Blocks follow each other in row-major order; the last may be shorter.
        kind, block_size: how it was quantized.

    Raises: QuantizationError: the numbers of codes, blocks and weights do not fit each other.
    """

    codes: torch.Tensor
    absmax: torch.Tensor | QuantizedScales
    shape: torch.Size
    dtype: torch.dtype
    block_size: int
    kind: Kind

    def __post_init__(self) -> None:
        check_settings(self.kind, self.block_size)
        dtype = torch.int8 if self.kind == "int8" else torch.uint8
        wanted = self.numel if self.kind == "int8" else -(-self.numel // 2)
        blocks = -(-self.numel // self.block_size)
        scales = self.absmax.codes if isinstance(self.absmax, QuantizedScales) else self.absmax
        if (self.codes.shape, self.codes.dtype, tuple(scales.shape)) != ((wanted,), dtype, (blocks,)):
            raise QuantizationError(
                f"{list(self.codes.shape)} codes of {self.codes.dtype} and {list(scales.shape)} scales do not"
                f" make a tensor of shape {list(self.shape)}: {wanted} of {dtype} and {blocks} would",
                where=f"{self.kind}, blocks of {self.block_size}",
                remedy="the quantized tensor is damaged: quantize the weights again",
            )

    def __repr__(self) -> str:
        double = ", scales in 8 bits" if self.double else ""
        return (
            f"Quantized({self.kind}, {list(self.shape)} {str(self.dtype).removeprefix('torch.')}, blocks of"
            f" {self.block_size}{double}, {self.bits_per_weight:.3f} bits a weight)"
        )

    @property
    def double(self) -> bool:
        """Whether the scales are quantized too."""
        return isinstance(self.absmax, QuantizedScales)

    @property
    def numel(self) -> int:
        """The number of weights."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """What is stored for these weights; the code books, the same for all, are not counted."""
        scales = self.absmax.bytes if isinstance(self.absmax, QuantizedScales) else 4 * len(self.absmax)
        return len(self.codes) + scales

    @property
    def bits_per_weight(self) -> float:
        """4.5 for NF4 in blocks of 64, 4.127 with double quantization of a large matrix."""
        return 8 * self.bytes / self.numel

    def scales(self) -> torch.Tensor:
        """The largest magnitude of each block, float32 [blocks]; restored where it is in 8 bits."""
        return self.absmax.dequantize() if isinstance(self.absmax, QuantizedScales) else self.absmax

    def to_bitsandbytes(self) -> tuple[torch.Tensor, Any]:
        """(packed uint8 [ceil(n / 2), 1], QuantState), as `bitsandbytes.functional.quantize_4bit` gives them.

        Raises: QuantizationError: bitsandbytes has no such kind.
        """
        if self.kind not in ("nf4", "fp4"):
            raise QuantizationError(
                f"bitsandbytes keeps no blocks of {self.kind}", where="kind", remedy="use nf4 or fp4"
            )
        from bitsandbytes.functional import QuantState

        offset = state2 = None
        scales = self.absmax
        if isinstance(scales, QuantizedScales):
            device = scales.codes.device
            state2 = QuantState(
                absmax=scales.absmax,
                code=dynamic_code().to(device),
                blocksize=NESTED_BLOCK,
                dtype=torch.float32,
            )
            offset, scales = scales.offset, scales.codes
        state = QuantState(
            absmax=scales,
            shape=self.shape,
            code=code_of(self.kind).to(self.codes.device),
            blocksize=self.block_size,
            quant_type=self.kind,
            dtype=self.dtype,
            offset=offset,
            state2=state2,
        )
        return self.codes.view(-1, 1), state


def quantize_nf4(
    tensor: torch.Tensor, block_size: int = 64, double: bool = False, *, name: str = "tensor"
) -> Quantized:
    """Weights as NF4, bit-equal to `bitsandbytes.functional.quantize_4bit` on the CPU. See `quantize`."""
    return quantize(tensor, "nf4", block_size, double, name=name)


def dequantize_nf4(quantized: Quantized, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The weights again, rounded, bit-equal to `dequantize_4bit` on the CPU. See `dequantize`.

    Raises: QuantizationError: `quantized` is of another kind.
    """
    if quantized.kind != "nf4":
        raise QuantizationError(
            f"the tensor is quantized as {quantized.kind}, not nf4", where="kind", remedy="use `dequantize`"
        )
    return dequantize(quantized, dtype)


def quantize(
    tensor: torch.Tensor,
    kind: Kind = "nf4",
    block_size: int = 64,
    double: bool = False,
    *,
    name: str = "tensor",
) -> Quantized:
    """Quantize weights in blocks.

    Args:
        tensor: float32, float16 or bfloat16 of any shape and strides; taken in row-major order.
        kind: `nf4` and `fp4` as bitsandbytes has them; `int4` (−7 … 7) and `int8` (−127 … 127), symmetric.
        block_size: weights that share a scale: 32 to 4096, a power of two.
        double: whether the scales are quantized too.
        name: of the tensor, for errors.

    Returns: a Quantized on the tensor's device. Beside it, under a MiB of memory a thread is used, and a
        contiguous copy of a tensor that is not contiguous.

    Raises: QuantizationError: NaN or infinity (with the position of the first), an empty or integer tensor,
        an unknown kind or block size.
    """
    check_settings(kind, block_size)
    flat = checked(tensor, name)
    count = len(flat)
    absmax = torch.empty(-(-count // block_size), device=flat.device)
    encode = _Encoder(kind, flat.device)
    codes = torch.empty(encode.stored(count), dtype=encode.dtype, device=flat.device)

    def work(start: int, stop: int) -> None:
        maxima = absmax[start // block_size : -(-stop // block_size)]
        encode(
            _scale(flat[start:stop], maxima, block_size), codes[encode.stored(start) : encode.stored(stop)]
        )

    in_chunks(count, flat.device, work)
    refuse_non_finite(flat, tensor.shape, absmax, name)
    scales = quantize_scales(absmax, name) if double else absmax
    return Quantized(codes, scales, tensor.shape, tensor.dtype, block_size, kind)


def _scale(part: torch.Tensor, absmax: torch.Tensor, block_size: int) -> torch.Tensor:
    """Weights over their block's largest magnitude, float32, one zero added if odd; fills `absmax`."""
    values = part.float()
    count = len(values)
    whole = count - count % block_size
    full = whole // block_size
    magnitudes = values.abs()
    scaled = torch.empty(count + count % 2, device=values.device)
    scaled[count:] = 0
    if whole:
        torch.amax(magnitudes[:whole].view(full, block_size), dim=1, out=absmax[:full])
        # Times the reciprocal, and not over the magnitude: the last bit decides codes next to a midpoint. The
        # short block at the end is divided, as bitsandbytes does it.
        factors = 1.0 / absmax[:full].clamp(min=_SMALLEST)
        blocks = values[:whole].view(full, block_size)
        torch.mul(blocks, factors.view(-1, 1), out=scaled[:whole].view(full, block_size))
    if whole < count:
        absmax[full] = magnitudes[whole:].amax().clamp(min=_SMALLEST)
        torch.div(values[whole:], absmax[full], out=scaled[whole:count])
    return scaled


class _Encoder:
    """Scaled weights to stored codes of one kind."""

    def __init__(self, kind: Kind, device: torch.device) -> None:
        self.packed = kind != "int8"
        self.dtype = torch.uint8 if self.packed else torch.int8
        self.midpoints: list[float] = []
        self.order: torch.Tensor | None = None
        if self.packed:
            midpoints, order = sorted_midpoints(code_of(kind))
            self.midpoints = midpoints.tolist()
            ascending = torch.equal(order, torch.arange(len(order), dtype=torch.uint8))
            self.order = None if ascending else order.to(device)

    def stored(self, weights: int) -> int:
        """Entries that hold this many weights."""
        return -(-weights // 2) if self.packed else weights

    def __call__(self, scaled: torch.Tensor, out: torch.Tensor) -> None:
        if not self.packed:
            out.copy_((scaled[: len(out)] * 127).round_())
            return
        # A code is the number of midpoints below the weight: fifteen passes over a chunk in the cache take
        # less than half the time of a binary search for each weight.
        codes = torch.zeros(len(scaled), dtype=torch.uint8, device=scaled.device)
        above = torch.empty(len(scaled), dtype=torch.bool, device=scaled.device)
        for midpoint in self.midpoints:
            codes += torch.gt(scaled, midpoint, out=above).view(torch.uint8)
        if self.order is not None:
            codes = self.order.index_select(0, codes.int())
        pairs = codes.view(-1, 2)
        torch.bitwise_or(pairs[:, 0] << 4, pairs[:, 1], out=out)


def dequantize(quantized: Quantized, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The weights again: value of the code times the block's magnitude in float32, rounded once to the dtype.

    Args:
        quantized: of any kind.
        dtype: of the result; the original one by default.

    Returns: a contiguous tensor of the original shape.

    Raises: QuantizationError: the dtype is not float32, float16 or bfloat16.
    """
    dtype = dtype or quantized.dtype
    if dtype not in DTYPES:
        raise QuantizationError(
            f"weights of {dtype} are not made", where="dtype", remedy="use float32, float16 or bfloat16"
        )
    count, block_size = quantized.numel, quantized.block_size
    out = torch.empty(count, dtype=dtype, device=quantized.codes.device)
    scales = quantized.scales()
    decode = _Decoder(quantized)

    def work(start: int, stop: int) -> None:
        values = decode(start, stop)
        whole = (stop - start) - (stop - start) % block_size
        first = start // block_size
        full = whole // block_size
        if whole:
            values[:whole].view(full, block_size).mul_(scales[first : first + full].view(-1, 1))
        if start + whole < stop:
            values[whole:].mul_(scales[first + full])
        # Not as the product's `out`: torch would take fresh memory for a product in another dtype.
        out[start:stop].copy_(values)

    in_chunks(count, out.device, work, _DECODE_CHUNK)
    return out.view(quantized.shape)


class _Decoder:
    """Stored codes to values between -1 and 1.

    Each thread keeps its buffers from chunk to chunk: fresh memory cost half of the time, in page faults.
    """

    def __init__(self, quantized: Quantized) -> None:
        self.quantized = quantized
        self.device = quantized.codes.device
        self.pairs = None if quantized.kind == "int8" else _pairs(quantized.kind).to(self.device)
        self.buffers = threading.local()

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        """Values of weights `start` (even) to `stop`, float32 [stop - start]; the next call overwrites."""
        codes = self.quantized.codes
        if self.pairs is None:
            return codes[start:stop].float() / 127
        packed = codes[start // 2 : -(-stop // 2)]
        # A thread's first chunk is its longest.
        if not hasattr(self.buffers, "index"):
            self.buffers.index = torch.empty(len(packed), dtype=torch.int32, device=self.device)
            self.buffers.values = torch.empty(len(packed), dtype=torch.int64, device=self.device)
        index = self.buffers.index[: len(packed)].copy_(packed)
        values = self.buffers.values[: len(packed)]
        torch.index_select(self.pairs, 0, index, out=values)
        decoded: torch.Tensor = values.view(torch.float32)[: stop - start]
        return decoded


@cache
def _pairs(kind: Kind) -> torch.Tensor:
    """For each byte the two float32 values it stands for, side by side in one int64 [256].

    One look-up then moves two values, whose bits nothing calculates with.
    """
    code = torch.zeros(16)
    values = code_of(kind)
    code[: len(values)] = values
    return torch.stack([code.repeat_interleave(16), code.repeat(16)], dim=1).view(torch.int64).view(-1)
