"""How much a tensor loses when it is quantized, by kind and block size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch

from chinese_llama_lab.quantization.blockwise import dequantize, quantize
from chinese_llama_lab.quantization.checks import BLOCK_SIZES
from chinese_llama_lab.quantization.codebooks import Kind
from chinese_llama_lab.quantization.errors import QuantizationError

# Of a normal distribution 6 weights in 100,000 are farther than this many standard deviations from the mean.
OUTLIER_SIGMAS = 4.0


@dataclass(frozen=True)
class WeightError:
    """What quantizing one tensor does to its weights.

    Attributes:
        kind, block_size, double: how it was quantized. bits_per_weight: what that takes, scales included.
        rms: root mean square of the error over that of the weights. largest: the largest error of a weight,
            in the weights' unit. snr_db: signal to noise in decibels, −20 · log10(rms); infinite if exact.
    """

    kind: str
    block_size: int
    double: bool
    bits_per_weight: float
    rms: float
    largest: float
    snr_db: float

    def row(self) -> dict[str, object]:
        """As a row of a result."""
        return asdict(self)


def weight_error(
    tensor: torch.Tensor,
    kind: Kind = "nf4",
    block_size: int = 64,
    double: bool = False,
    *,
    name: str = "tensor",
) -> WeightError:
    """Quantize a tensor, restore it in float32, and compare. Sums are taken in float64.

    Raises: QuantizationError: what `quantize` refuses, and a tensor of zeros, which nothing is relative to.
    """
    quantized = quantize(tensor, kind, block_size, double, name=name)
    restored = dequantize(quantized, torch.float32)
    weights = tensor.detach().float()
    signal = float(torch.linalg.vector_norm(weights, dtype=torch.float64))
    if signal == 0:
        raise QuantizationError(
            f"{name} holds zeros alone: no error is relative to them", where=name, remedy="leave it out"
        )
    difference = restored.sub_(weights)
    rms = float(torch.linalg.vector_norm(difference, dtype=torch.float64)) / signal
    largest = float(difference.abs().max())
    snr_db = -20 * math.log10(rms) if rms else math.inf
    return WeightError(kind, block_size, double, quantized.bits_per_weight, rms, largest, snr_db)


def sweep(
    tensor: torch.Tensor,
    kinds: Iterable[Kind] = ("nf4",),
    block_sizes: Sequence[int] = BLOCK_SIZES,
    doubles: Sequence[bool] = (False,),
    *,
    name: str = "tensor",
) -> list[WeightError]:
    """`weight_error` for every kind, block size and way of keeping scales, in this order.

    Raises: QuantizationError: as `weight_error`.
    """
    return [
        weight_error(tensor, kind, block_size, double, name=name)
        for kind in kinds
        for block_size in block_sizes
        for double in doubles
    ]


def outlier_share(tensor: torch.Tensor, sigmas: float = OUTLIER_SIGMAS) -> float:
    """The share of weights farther than `sigmas` standard deviations from the mean, 0 to 1.

    One such weight stretches the scale of its whole block; a normal distribution has 6.3e-5 beyond four.

    Raises: QuantizationError: the tensor is empty or not finite.
    """
    weights = tensor.detach().double()
    if weights.numel() == 0 or not bool(weights.isfinite().all()):
        state = "holds NaN or infinity" if weights.numel() else "is empty"
        raise QuantizationError(f"the tensor {state}", where="tensor", remedy="pass finite weights")
    centred = weights - weights.mean()
    deviation = centred.square().mean().sqrt()
    return float((centred.abs() > sigmas * deviation).double().mean())
