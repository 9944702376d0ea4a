"""Checkers of notebook 11."""

from __future__ import annotations

from typing import Any

from chinese_llama_lab.exercises import Case, Verdict, exercise, expect_function

_TOKENS = [
    Case((gigabytes, rate), gigabytes * 1e9 / 3 * rate, why)
    for gigabytes, rate, why in (
        (20.0, 1.5, "20 GB are 6.7 billion characters."),
        (120.0, 0.6, ""),
        (0.003, 1.0, "A million characters."),
    )
]
_STEPS = [
    Case((batch, micro, processes), expected, why)
    for batch, micro, processes, expected, why in (
        (512, 4, 8, 16, "8 processes of 4 sequences are 32 at once."),
        (8, 1, 1, 8, "One process."),
        (12, 4, 2, None, "8 at once do not divide 12."),
        (64, 8, 8, 1, "No accumulation at all."),
    )
]


def _cost(tokens: float, rate: float, devices: int, efficiency: float, price: float) -> float:
    return tokens / (rate * devices * efficiency) / 3600 * devices * price


_COSTS = [
    Case(case, _cost(*case))
    for case in ((1e9, 2000.0, 1, 1.0, 2.0), (1e9, 2000.0, 8, 0.9, 2.0), (5e10, 1500.0, 64, 0.7, 1.5))
]


@exercise("11.1", hint="bytes to characters first: three bytes each; then characters to tokens")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _TOKENS,
        mistakes={
            "that takes a byte for a character": lambda gigabytes, rate: gigabytes * 1e9 * rate,
            "tokens a character: multiply, do not divide": lambda gigabytes, rate: gigabytes * 1e9 / 3 / rate,
        },
        praise="the bill is proportional to tokens per character",
    )


@exercise(
    "11.2", hint="how many sequences do all processes compute at once? how often until the batch is full?"
)
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _STEPS,
        mistakes={
            "where it does not come out even, return None": lambda batch, micro, processes: (
                batch // (micro * processes)
            ),
            "the other processes compute too": lambda batch, micro, processes: (
                batch // micro if batch % micro == 0 else None
            ),
        },
        praise="so the batch, and with it what is learnt, stays what the recipe says",
    )


@exercise("11.3", hint="hours of the run, times devices, times price; efficiency makes the run longer")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _COSTS,
        mistakes={
            "all devices are paid for, not one": lambda tokens, rate, devices, efficiency, price: (
                tokens / (rate * devices * efficiency) / 3600 * price
            ),
            "efficiency is missing: at less than 1 the run takes longer": (
                lambda tokens, rate, devices, efficiency, price: tokens / rate / 3600 * price
            ),
        },
        tolerance=1e-6,
        praise="devices cancel: more of them save time, and cost money only through efficiency",
    )
