"""Checkers of notebook 05."""

from __future__ import annotations

from typing import Any

from chinese_llama_lab.exercises import Case, Verdict, exercise, expect_choice, expect_close, expect_function

_CASES = [
    Case(
        ([5, 6, 7, 8], 2), [-100, -100, 7, 8], "as many labels as ids: two of the prompt, two of the answer"
    ),
    Case(([5, 6, 7], 0), [5, 6, 7], "no prompt: every token has a label"),
    Case(([1, 2, 3], 3), [-100, -100, -100], "no answer: no label at all"),
]


@exercise("5.1", hint="−100, as many times as the prompt has tokens; then the ids that follow")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _CASES,
        mistakes={
            "labels and ids must be of equal length: the prompt's places stay, as −100": lambda ids, n: ids[
                n:
            ],
            "0 is the id of a real token; the loss leaves out −100": lambda ids, n: [0] * n + ids[n:],
            "that masks the answer and trains on the prompt": lambda ids, n: (
                ids[:n] + [-100] * (len(ids) - n)
            ),
        },
    )


@exercise("5.2", hint="does anything in the pipeline compare the prompt with the template?")
def _(answer: Any) -> Verdict:
    return expect_choice(
        answer,
        "worse",
        {
            "nothing": "the space is a token, or part of one: without it the ids are others",
            "error": "nothing checks it; any text is a valid prompt",
        },
        praise="that is what makes template faults hard to find",
    )


@exercise("5.3", hint="the first 256 tokens are kept; how many of them belong to the answer?")
def _(answer: Any) -> Verdict:
    return expect_close(
        answer,
        0,
        0.1,
        why={
            40: "those stand at places 301 to 340, and everything after 256 was cut off",
            -44: "there cannot be fewer than none",
        },
        praise="the whole row is prompt, and its loss is a mean over nothing",
    )
