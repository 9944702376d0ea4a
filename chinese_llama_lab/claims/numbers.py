"""A number in a sentence has to stand in the figures that the sentence points to.

A number agrees with a figure if the figure, rounded to as many decimals as are printed, is that number; a
share may be printed in percent. Numbers that name the row or the column (`2,048 tokens`) are allowed as they
stand. What is part of a name is no number here: `SmolLM2`, `7B`, `LLaMA-7B`, `4-bit`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

from chinese_llama_lab.claims.ledger import Claim
from chinese_llama_lab.claims.pointers import parse, resolve

_NUMBER = re.compile(
    r"(?<![\w.,-])(?P<sign>[−-]?)(?P<digits>\d+(?:,\d{3})*(?:\.\d+)?)(?!\w|[.,]\d|-[A-Za-z])(?P<percent>\s?%)?"
)


def _found(text: str) -> list[tuple[str, Decimal, bool]]:
    """(as printed, value, whether in percent) of each number in a text."""
    numbers = []
    for match in _NUMBER.finditer(text):
        value = Decimal(match["digits"].replace(",", ""))
        numbers.append((match[0], -value if match["sign"] else value, bool(match["percent"])))
    return numbers


def _figures(value: str) -> list[tuple[Decimal, bool]]:
    """A cell: one number in any notation, or the numbers in its text."""
    try:
        number = Decimal(value)
        return [(number, False)] if number.is_finite() else []
    except ArithmeticError:  # not a number alone
        return [(number, percent) for _, number, percent in _found(value)]


def _agrees(printed: Decimal, percent: bool, figure: Decimal, figure_percent: bool) -> bool:
    if figure_percent and not percent:
        return False
    if percent and not figure_percent:
        figure *= 100
    exponent = printed.as_tuple().exponent
    assert isinstance(exponent, int), "a number that was matched digit by digit is finite"
    return abs(printed - figure) <= Decimal(5).scaleb(exponent - 1)


def unsupported_numbers(claim: Claim, folder: Path | None = None) -> list[str]:
    """Numbers in `measured` that no figure of the pointer bears out, as they are printed.

    Args:
        claim: a row of the ledger. folder: with the results (default: the committed ones).

    Raises: ClaimError, ResultError: as `resolve`.
    """
    figures: list[tuple[Decimal, bool]] = []
    named: list[Decimal] = []
    if claim.pointer:
        for part in parse(claim.pointer):
            for text in (part.column, *(value for _, value in part.row)):
                named += [value for _, value, _ in _found(text)]
        for value in resolve(claim.pointer, folder):
            figures += _figures(value)
    return [
        text
        for text, value, percent in _found(claim.measured)
        if value not in named and not any(_agrees(value, percent, *figure) for figure in figures)
    ]
