"""Checkers of notebook 06."""

from __future__ import annotations

from typing import Any

from chinese_llama_lab.exercises import Case, Verdict, exercise, expect_close, expect_function


def _cases() -> list[Case]:
    import torch

    cases = []
    for seed, (m, n, r, alpha) in enumerate(((4, 3, 2, 8.0), (2, 6, 1, 3.0), (5, 5, 4, 4.0))):
        generator = torch.Generator().manual_seed(seed)
        w, a, b = (
            torch.randint(-3, 4, shape, generator=generator).float() for shape in ((m, n), (r, n), (m, r))
        )
        cases.append(Case((w, a, b, alpha), (w + alpha / r * b @ a).tolist(), f"rank {r}, α {alpha:g}"))
    return cases


@exercise("6.1", hint="A has one row for each rank: r = A.shape[0]")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _cases(),
        mistakes={
            "α alone is not the factor: divide it by the rank": lambda w, a, b, alpha: w + alpha * b @ a,
            "that divides by the width of A; its rank is its height": lambda w, a, b, alpha: (
                w + alpha / a.shape[1] * b @ a
            ),
            "the factor α/r is missing": lambda w, a, b, alpha: w + b @ a,
        },
        tolerance=1e-4,
    )


@exercise("6.2", hint="divide the factor that was used, α/r, by the one that was meant, α/√r")
def _(answer: Any) -> Verdict:
    return expect_close(
        answer,
        1 / 8,
        1e-9,
        why={
            8: "the other way round: α/r is the smaller factor, so less than the whole arrives",
            1 / 64: "that is 1/r; the two factors differ by √r",
        },
        praise="an eighth: the merged model looks trained for a short time only",
    )


@exercise("6.3", hint="half of the distance to the next number")
def _(answer: Any) -> Verdict:
    return expect_close(
        answer,
        2**-8,
        1e-9,
        why={
            2**-7: "that is the whole distance, and leads exactly to the next number",
            2**-9: "that is lost too, but there are larger ones: up to half the distance",
        },
        praise="0.4 % of the weight: larger than most of what a step of training does",
    )
