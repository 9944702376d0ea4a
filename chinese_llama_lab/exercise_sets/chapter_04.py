"""Checkers of notebook 04."""

from __future__ import annotations

from typing import Any

from chinese_llama_lab.exercises import Case, Verdict, exercise, expect_close, expect_function
from chinese_llama_lab.verdict import wrong

_CASES = [
    Case(sizes, sizes[2] * (sizes[0] + sizes[1])) for sizes in ((576, 1536, 8), (10, 3, 1), (4096, 4096, 64))
]


@exercise("4.1", hint="A has r rows of n numbers, B has m rows of r; where is r(m + n) no less than m · n?")
def _(answer: Any) -> Verdict:
    if not isinstance(answer, tuple) or len(answer) != 2:
        return wrong("give both: the function and the rank")
    function, rank = answer
    found = expect_function(
        function,
        _CASES,
        mistakes={
            "that multiplies the two sides; the product of two thin matrices adds them": lambda m, n, r: (
                r * m * n
            ),
            "that is the full matrix": lambda m, n, r: m * n,
        },
    )
    if found.status != "right":
        return found
    return expect_close(
        rank,
        419,
        0.1,
        why={
            418: "at that rank BA still has fewer: 418 · 2,112 is less than 576 · 1,536",
            576: "that is the rank of the matrix itself; BA has as many parameters much earlier",
        },
        praise="and LoRA's usual ranks, 8 to 64, are far below it",
    )


@exercise("4.2", hint="α/√r divided by α/r is √r, whatever α is")
def _(answer: Any) -> Verdict:
    return expect_close(
        answer,
        8,
        1e-6,
        why={
            4: "that is rsLoRA's factor itself, 32/√64; divide it by LoRA's, 32/64",
            0.125: "the other way round: rsLoRA's factor is the larger one",
            64: "that would be r itself; the square root of it",
        },
        praise="√r, whatever α is",
    )


@exercise("4.3", hint="a matrix of m × n gets r · (m + n); add them up for a layer, times 32")
def _(answer: Any) -> Verdict:
    whole = 32 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    return expect_close(
        answer,
        whole,
        0.5,
        why={
            whole // 32: "that is one layer; there are 32",
            32 * 8 * 4 * (4096 + 4096): "that is attention alone; the MLP has three matrices more",
        },
        praise="0.3 % of the model; the rest of the published 6 % is whole embedding matrices",
    )
