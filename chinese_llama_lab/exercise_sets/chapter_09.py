"""Checkers of notebook 09."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from chinese_llama_lab.exercises import Case, Verdict, exercise, expect_function


def _softmax(logits: Sequence[float]) -> list[float]:
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


_LOGITS = [
    Case((logits,), _softmax(logits), why)
    for logits, why in (
        ([2.0, 1.0, 0.0, -1.0], "The four must add up to one."),
        ([17.5, 17.25, 18.0, 16.0], "Only differences of logits matter."),
        ([900.0, 899.0, 898.0, 897.0], "Subtract the largest first: exp(900) is too large for a float."),
    )
]
# The first is the whole of C-Eval's val with SmolLM2's tokenizer, on average; then one question, and many.
_PREFIXES = [
    Case((prefix, question, count), count * (prefix + question) / (prefix + count * question))
    for prefix, question, count in ((877, 174, 1346 / 52), (500, 100, 1), (900, 150, 200))
]
_MARGINS = [
    Case((share, margin), math.ceil(1.96**2 * share * (1 - share) / margin**2))
    for share, margin in ((0.25, 0.02), (0.5, 0.03), (0.35, 0.01))
]
_COUNTS = [
    Case((counts,), sum(right / total for right, total in counts) / len(counts), why)
    for counts, why in (
        ([(1, 4), (3, 4)], "Subjects of one size: both averages agree."),
        ([(10, 10), (10, 40)], "The small subject counts as much as the large one."),
        ([(3, 12), (0, 5), (20, 30)], ""),
    )
]


@exercise("9.1", hint="softmax: exp of each, over the sum of the four; subtract the largest logit first")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _LOGITS,
        mistakes={
            "logits are logarithms, and may be negative: exp comes before dividing": lambda logits: [
                value / sum(logits) for value in logits
            ],
            "the largest alone is the choice; a share is wanted of each": lambda logits: [
                float(value == max(logits)) for value in logits
            ],
        },
        tolerance=1e-5,
        praise="adding the same number to all four logits changes nothing",
    )


@exercise("9.2", hint="tokens of the one way over tokens of the other; how often is the prefix read in each?")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _PREFIXES,
        mistakes={
            "the prefix still has to be read once: that is the limit for very many questions": (
                lambda prefix, question, count: (prefix + question) / question
            ),
            "each question has to be read too, not the prefix alone": lambda prefix, question, count: count,
            "turn it over: how many times *fewer*": lambda prefix, question, count: (
                (prefix + count * question) / (count * (prefix + question))
            ),
        },
        praise=f"with the mean lengths of C-Eval's val that is {_PREFIXES[0].expected:.1f}",
    )


@exercise("9.3", hint="1.96 · √(share · (1 − share) / n) = margin; solve for n, and round up")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _MARGINS,
        mistakes={
            "the margin shrinks with the root of n: square both sides": lambda share, margin: math.ceil(
                1.96 * math.sqrt(share * (1 - share)) / margin
            ),
            "that is one standard deviation; a 95 % interval reaches 1.96 of them": lambda share, margin: (
                math.ceil(share * (1 - share) / margin**2)
            ),
            "that takes the share for one half; a share of its own strays less": lambda share, margin: (
                math.ceil(1.96**2 / 4 / margin**2)
            ),
            "round up, not down": lambda share, margin: math.floor(1.96**2 * share * (1 - share) / margin**2),
        },
        praise="half the margin takes four times the questions",
    )


@exercise("9.4", hint="first a share for each subject, then the mean of the shares")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _COUNTS,
        mistakes={
            "that is the average by question: large subjects count more there": lambda counts: (
                sum(right for right, _ in counts) / sum(total for _, total in counts)
            ),
            "that is the best subject; all of them count": lambda counts: max(
                right / total for right, total in counts
            ),
        },
        praise="C-Eval's own table is made in this way",
    )
