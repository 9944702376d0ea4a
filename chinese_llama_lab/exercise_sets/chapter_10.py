"""Checkers of notebook 10."""

from __future__ import annotations

from typing import Any

from chinese_llama_lab.exercises import Case, Verdict, exercise, expect_close, expect_function

_GAPS = [
    Case((fork, native), (native - fork, 100 * (native - fork) / native), why)
    for fork, native, why in (
        (38.0, 61.8, "The fork's score, and the mean of the article's five native models."),
        (32.9, 63.5, "Chinese-Alpaca-Plus-7B and Qwen-7B, as published."),
        (50.0, 50.0, "No gap at all."),
    )
]
_HEADS = [
    Case((heads, kv_heads), kind, name)
    for heads, kv_heads, kind, name in (
        (32, 32, "MHA", "LLaMA-7B"),
        (32, 8, "GQA", "Llama-3-8B"),
        (71, 1, "MQA", "Falcon-7B"),
        (9, 3, "GQA", "SmolLM2-135M"),
    )
]


def _rate(text: str) -> float:
    han = sum("一" <= character <= "龥" for character in text)
    return 1000 * text.count("一个") / han if han else 0.0


_RATES = [
    Case((text,), _rate(text), why)
    for text, why in (
        ("写一个故事。", "Five Han characters; the full stop is none."),
        ("请用Python写一个函数，返回一个列表。", "Latin letters are no Han characters."),
        ("no Chinese at all", "Without Han characters the rate is 0."),
    )
]


@exercise("10.1", hint="relative to the higher of the two, the native one: what is it lower *than*?")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _GAPS,
        mistakes={
            "points and percent are two things; the second is relative to the native score": (
                lambda fork, native: (native - fork, native - fork)
            ),
            "that is how much higher the native one is; “lower than native” divides by native": (
                lambda fork, native: (native - fork, 100 * (native - fork) / fork)
            ),
            "a gap is positive here: native minus fork": lambda fork, native: (
                fork - native,
                100 * (fork - native) / native,
            ),
        },
        praise="the article's own figures give 38 %: the sentence is right, and its figures are not",
    )


@exercise("10.2", hint="three cases: as many as heads, one, or something in between")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _HEADS,
        mistakes={
            "one head of keys and values for all has a name of its own": lambda heads, kv_heads: (
                "GQA" if kv_heads < heads else "MHA"
            ),
            "turn it over: MHA is where no head shares": lambda heads, kv_heads: (
                "GQA" if kv_heads == heads else "MHA"
            ),
        },
        praise="a config that has no `num_key_value_heads` is from before GQA: MHA",
    )


@exercise("10.3", hint="count Han characters alone, and do not divide by zero")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _RATES,
        mistakes={
            "punctuation and Latin letters are counted too": lambda text: (
                1000 * text.count("一个") / len(text)
            ),
            "that is per character, not per 1,000": lambda text: _rate(text) / 1000,
            "that is the count; a longer text has more": lambda text: text.count("一个"),
        },
        tolerance=1e-6,
        praise="a rate can be compared between texts of any length",
    )


_BATCHES = [
    Case(([12.0, 0.0], [6, 0]), 2.0, "one row without labels"),
    Case(([6.0, 9.0], [2, 6]), 1.875, "rows of 2 and 6 labels"),
    Case(([0.0, 0.0], [0, 0]), 0.0, "no label at all"),
]


@exercise(
    "10.5",
    hint="add up all the losses first, and all the labels; divide once, if there is anything to divide by",
)
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _BATCHES,
        mistakes={
            "the row without labels counts as a row of loss 0, and halves the mean": lambda sums, labels: (
                sum(s / max(n, 1) for s, n in zip(sums, labels, strict=True)) / len(labels)
            ),
            "that divides by the rows, not by their labels": lambda sums, labels: sum(sums) / len(sums),
            "a mean of means: a label in a short row would weigh more than one in a long row": (
                lambda sums, labels: (
                    sum(s / n for s, n in zip(sums, labels, strict=True) if n)
                    / max(sum(n > 0 for n in labels), 1)
                )
            ),
        },
        praise="one division for the whole batch, and none by zero",
    )


@exercise("10.4", hint="Adam's first step is rate · g / √(g²): put g/50 in both places")
def _(answer: Any) -> Verdict:
    return expect_close(
        answer,
        1.0,
        1e-6,
        why={
            0.02: "that is SGD's; Adam divides by the size of its gradients, which shrinks just as much",
            50.0: "the root of the squares shrinks 50 times, and so does the gradient above it",
        },
        praise="which is why clipping does not mend a rate that is too high",
    )
