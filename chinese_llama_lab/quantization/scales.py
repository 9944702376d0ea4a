"""Double quantization: the largest magnitudes of the blocks, 32 bits each, in 8 bits each.

The mean is subtracted first, because magnitudes are all positive and the 8-bit map is signed. What is left is
quantized by the dynamic map in blocks of 256. With 64 weights a block, the scales then take
8/64 + 32/(64 · 256) = 0.127 bits a weight instead of 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from chinese_llama_lab.quantization.chunks import in_chunks
from chinese_llama_lab.quantization.codebooks import LOOKUP_STEPS, dynamic_code, dynamic_lookup
from chinese_llama_lab.quantization.errors import QuantizationError

NESTED_BLOCK = 256


@dataclass(frozen=True, eq=False)
class QuantizedScales:
    """Scales in 8 bits.

    Attributes:
        codes: uint8 [blocks], of the dynamic map. absmax: float32 [ceil(blocks / 256)].
        offset: float32 scalar, the mean that was subtracted.
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    offset: torch.Tensor

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.uint8 or len(self.absmax) != -(-len(self.codes) // NESTED_BLOCK):
            raise QuantizationError(
                f"{len(self.codes)} codes of {self.codes.dtype} and {len(self.absmax)} magnitudes are not"
                " scales in 8 bits",
                where="double quantization",
                remedy="take them from `quantize_scales`",
            )

    @property
    def bytes(self) -> int:
        """What is stored: a byte a code, four a block of 256, four for the mean."""
        return len(self.codes) + 4 * len(self.absmax) + 4

    def dequantize(self) -> torch.Tensor:
        """The scales, float32 [blocks]."""
        code = dynamic_code().to(self.codes.device)
        scales = torch.empty(len(self.codes), device=self.codes.device)

        def work(start: int, stop: int) -> None:
            values = _in_blocks(code.index_select(0, self.codes[start:stop].int()))
            values *= self.absmax[start // NESTED_BLOCK : -(-stop // NESTED_BLOCK)].view(-1, 1)
            torch.add(values.view(-1)[: stop - start], self.offset, out=scales[start:stop])

        # In chunks although it is little work: torch's own threads, once used, keep the cores busy for
        # milliseconds, in which the weights themselves would be waiting.
        in_chunks(len(scales), scales.device, work)
        return scales


def quantize_scales(absmax: torch.Tensor, name: str = "tensor") -> QuantizedScales:
    """Scales float32 [blocks] in 8 bits, bit-equal to bitsandbytes on the CPU.

    Raises: QuantizationError: their mean is beyond float32.
    """
    offset = absmax.mean()
    if not bool(offset.isfinite()):
        raise QuantizationError(
            f"the mean of {name}'s block maxima is beyond float32",
            where=name,
            remedy="quantize it without double quantization, or scale the weights down",
        )
    blocks = _in_blocks(absmax - offset)
    largest = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / largest).view(-1, 1)).clamp(-1, 1)
    # A block of zeros divides by zero; bitsandbytes gives it code 0, whose value times a maximum of 0 is 0.
    scaled = scaled.nan_to_num(nan=-1.0)
    step = ((scaled + 1) * 0.5 * LOOKUP_STEPS + 0.5).int()
    codes = dynamic_lookup().to(absmax.device).index_select(0, step.view(-1))
    return QuantizedScales(codes[: len(absmax)], largest, offset)


def _in_blocks(values: torch.Tensor) -> torch.Tensor:
    """[n] as [ceil(n / 256), 256], filled up with zeros."""
    return pad(values, (0, -len(values) % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
