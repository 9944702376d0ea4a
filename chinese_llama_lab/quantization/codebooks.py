"""The numbers that a code stands for: NF4, FP4, INT4, and the 8-bit map of the block maxima.

A code book is a float32 tensor whose entry i is the value of code i, between -1 and 1; a block of weights is
such values times the block's largest magnitude. Each book is derived here, not copied, and the tests compare
it with bitsandbytes.

Sources: QLoRA (arXiv 2305.14314), section 3 and appendix E, for NF4 and double quantization; 8-bit
optimizers (arXiv 2110.02861) and 8-bit approximations (arXiv 1511.04561) for the dynamic map.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch

from chinese_llama_lab.quantization.errors import QuantizationError

Kind = Literal["nf4", "fp4", "int4", "int8"]
KINDS: tuple[Kind, ...] = ("nf4", "fp4", "int4", "int8")
# Codes of the 8-bit map are looked up in a table with one entry for each of this many steps from -1 to 1.
LOOKUP_STEPS = 65_535


def nf4_code() -> torch.Tensor:
    """NF4: 16 quantiles of the standard normal distribution, scaled to [-1, 1]; float32, ascending.

    The probabilities from one half to the outermost one are cut into eight equal steps for the positive side
    and into seven for the negative one, and the quantile is taken at each; zero is a code of its own, so that
    a weight of zero stays zero. The outermost probability is 1 - (1/32 + 1/30) / 2: halfway between the
    middles of the last of 16 and of the last of 15 equal slices.
    """
    return _nf4().clone()


def fp4_code() -> torch.Tensor:
    """FP4 as bitsandbytes reads the four bits: sign, two of exponent, one of mantissa; float32.

    In the order of the bit patterns, so neither ascending nor without repetition: 0000 and 1000 are both
    zero. A larger exponent field stands for a smaller value.
    """
    return _fp4().clone()


def int4_code() -> torch.Tensor:
    """INT4: the whole numbers -7 to 7 over 7, 15 values; float32, ascending. The sixteenth code is unused."""
    return torch.arange(-7, 8, dtype=torch.float32) / 7


def dynamic_code() -> torch.Tensor:
    """The signed dynamic 8-bit map: 256 values, ascending; float32.

    For each of seven powers of ten, from 10⁻⁶ to 1, the range 0.1 to 1 is cut into 2⁰ … 2⁶ equal parts whose
    middles are the values, with either sign; zero and 1 are added. Small numbers keep their relative
    precision, and the largest ones have most of the codes.
    """
    return _dynamic().clone()


@cache
def _nf4() -> torch.Tensor:
    # Seven digits and float32 probabilities on purpose: bitsandbytes' constants were made so, and the last
    # bit of a value depends on it. The quantiles themselves are taken in float64.
    outermost = round(1 - (1 / 32 + 1 / 30) / 2, 7)
    eight = torch.special.ndtri(torch.linspace(outermost, 0.5, 9)[:-1].double())
    seven = torch.special.ndtri(torch.linspace(outermost, 0.5, 8)[:-1].double())
    values = torch.cat([-seven, torch.zeros(1, dtype=torch.float64), eight.flip(0)]).float()
    return values / values.max()


@cache
def _fp4() -> torch.Tensor:
    magnitudes = [0.0, 1 / 16]
    for exponent in (1, 2, 3):
        magnitudes += [2.0 ** (4 - exponent), 1.5 * 2.0 ** (4 - exponent)]
    values = torch.tensor(magnitudes + [0.0 - value for value in magnitudes])  # no negative zero
    return values / values.abs().max()


@cache
def _dynamic() -> torch.Tensor:
    values = [0.0, 1.0]
    for power in range(7):
        edges = torch.linspace(0.1, 1, 2**power + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        values += (10.0 ** (power - 6) * middles).tolist()
        values += (-(10.0 ** (power - 6)) * middles).tolist()
    return torch.tensor(sorted(values))


def code_of(kind: str) -> torch.Tensor:
    """The code book of `nf4`, `fp4` or `int4`; float32.

    Raises: QuantizationError: another kind (`int8` has no book: its codes are numbers).
    """
    books = {"nf4": nf4_code, "fp4": fp4_code, "int4": int4_code}
    if kind not in books:
        raise QuantizationError(
            f"there is no code book for {kind!r}", where="kind", remedy=f"choose one of {', '.join(books)}"
        )
    return books[kind]()


def sorted_midpoints(code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a value changes from one code to the next: midpoints [n - 1], and the code of each of n slots.

    A value belongs to slot s when it is greater than s of the midpoints; one that lies on a midpoint goes to
    the smaller neighbour.
    """
    order = torch.argsort(code)
    ascending = code[order]
    return (ascending[:-1] + ascending[1:]) / 2, order.to(torch.uint8)


@cache
def dynamic_lookup() -> torch.Tensor:
    """The code of the dynamic map for each of 65,536 values from -1 to 1 in equal steps; uint8 [65536].

    bitsandbytes' CPU kernel rounds a value to one of these steps before it looks for the nearest code. Where
    the map is finer than a step (near zero) that is another code than the nearest one.
    """
    step = torch.arange(LOOKUP_STEPS + 1, dtype=torch.float32)
    midpoints, _ = sorted_midpoints(_dynamic())
    return torch.bucketize((step + step) / LOOKUP_STEPS - 1, midpoints).to(torch.uint8)
