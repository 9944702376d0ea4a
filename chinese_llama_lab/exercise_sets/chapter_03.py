"""Checkers of notebook 03."""

from __future__ import annotations

from math import log2
from typing import Any

from chinese_llama_lab.exercises import Case, Verdict, exercise, expect_close, expect_function


def _weights(n: int) -> list[float]:
    return [2 * (n - place) / (n * (n + 1)) for place in range(n)]


@exercise("3.1", hint="divide n, n − 1, …, 1 by their sum")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        [Case((n,), _weights(n), f"{n} weights, largest first, that add up to one") for n in (1, 2, 3, 6)],
        mistakes={
            "these do not add up to one": lambda n: list(range(n, 0, -1)),
            "the first subtoken should weigh most": lambda n: _weights(n)[::-1],
        },
        tolerance=1e-5,  # a tensor in float32 is as right as a list
    )


@exercise("3.2", hint="a probability p becomes p · (1 − s); what does that do to −log₂ p?")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        [Case((s,), -log2(1 - s)) for s in (0.0, 0.5, 0.75, 0.01)],
        mistakes={
            "that is the cost of a new token, not what old ones lose": lambda s: -log2(s),
            "wrong sign: text gets dearer, so bits are added": lambda s: log2(1 - s),
        },
        tolerance=1e-5,
    )


@exercise("3.3", hint="the next multiple of 64 above 49,953, less 49,953")
def _(answer: Any) -> Verdict:
    return expect_close(
        answer,
        -49_953 % 64,
        0.1,
        why={
            49_953 % 64: "that is how far the number lies above a multiple; how far is it to the next one?",
            49_984: "that is the padded number of rows; how many of them are spare?",
        },
        praise="rows that no token points to; `check_consistency` has to be told of them",
    )
