"""How sure a score is: intervals of proportions, and tests that are exact sums of binomial terms.

All of them take the questions for a sample drawn independently from many like them. They say nothing about
another prompt or another set of questions, which move a score by more than the sampling does.

Sources: Wilson, JASA 22 (1927); effective sample size in a Wilson interval: Franco et al., J. Survey Stat.
Methodol. 7 (2019); difference of paired proportions: Agresti and Min, Statist. Med. 24 (2005); exact McNemar
test: McNemar, Psychometrika 12 (1947).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from chinese_llama_lab.ceval.errors import CevalError

CONFIDENCE = 0.95
BY_QUESTION = "Wilson's interval of a proportion; questions independent"
BY_SUBJECT = (
    "Wilson's interval with an effective number of questions, m(1 − m) / V, where V = Σ p(1 − p)/n / S² over "
    "S fixed subjects of n questions, p = (right + 1)/(n + 2), and m is the mean of these p"
)


@dataclass(frozen=True)
class Estimate:
    """A share with its interval; all three from 0 to 1 (a difference of shares: from -1 to 1)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def average_by_question(right: int, total: int, confidence: float = CONFIDENCE) -> Estimate:
    """Share of the questions that were right, with Wilson's interval.

    Raises: CevalError: no questions, more right than there are, a confidence outside (0, 1).
    """
    _check(right, total)
    return _wilson(right / total, total, confidence)


def average_by_subject(counts: Sequence[tuple[int, int]], confidence: float = CONFIDENCE) -> Estimate:
    """Mean of the subjects' shares: each subject counts the same, however many questions it has.

    The subjects are fixed (they *are* the benchmark), the questions within them a sample. `BY_SUBJECT` is how
    the interval is found; with one subject it is Wilson's. A subject of few questions is often all right or
    all wrong by luck, and would seem to have no variance: one right and one wrong answer added to each
    prevents that (in the variance alone).

    Args:
        counts: (right, total) of each subject.
        confidence: of the interval.

    Raises: CevalError: no subject, or one as in `average_by_question`.
    """
    for right, total in counts:
        _check(right, total)
    if not counts:
        raise CevalError("there is no subject to average over", where="counts", remedy="score some questions")
    mean = math.fsum(right / total for right, total in counts) / len(counts)
    pulled = [(right + 1) / (total + 2) for right, total in counts]
    terms = (p * (1 - p) / total for p, (_, total) in zip(pulled, counts, strict=True))
    middle = math.fsum(pulled) / len(counts)
    effective = middle * (1 - middle) * len(counts) ** 2 / math.fsum(terms)
    return _wilson(mean, effective, confidence)


def paired_difference(first: int, second: int, total: int, confidence: float = CONFIDENCE) -> Estimate:
    """Share of the first minus share of the second run, with Agresti and Min's interval (half a question is
    added to each of the four cells for the interval, not for the value).

    Args:
        first, second: questions that the one had right and the other wrong.
        total: questions, those included on which both agree.

    Raises: CevalError: counts that cannot be.
    """
    if min(first, second) < 0:
        raise CevalError(f"{min(first, second)} questions", where="first, second", remedy="use 0 or more")
    _check(first + second, total)
    size = total + 2
    centre = (first - second) / size
    error = math.sqrt((first + second + 1) / size - centre**2) / math.sqrt(size)
    reach = _deviations(confidence) * error
    return Estimate((first - second) / total, max(-1.0, centre - reach), min(1.0, centre + reach))


def sign_test(first: int, second: int) -> float:
    """Two-sided exact sign test: how likely a split at least as uneven is if both sides are equally likely.

    Over the questions on which two runs differ it is the exact McNemar test. 1.0 where nothing differs.
    """
    if min(first, second) < 0:
        raise CevalError(f"{min(first, second)} questions", where="first, second", remedy="use 0 or more")
    return min(1.0, 2 * binomial_tail(max(first, second), first + second, 2))


def binomial_tail(hits: int, trials: int, one_in: int) -> float:
    """Probability of at least so many hits in independent trials that each hit once in `one_in`; exact.

    Raises: CevalError: more hits than trials, or `one_in` below 2.
    """
    if not 0 <= hits <= trials or one_in < 2:
        raise CevalError(
            f"{hits} hits in {trials} trials, one in {one_in}",
            where="hits, trials, one_in",
            remedy="use 0 ≤ hits ≤ trials and one_in ≥ 2",
        )
    # Whole numbers all the way: twelve thousand questions underflow any product of floats.
    term = math.comb(trials, hits) * (one_in - 1) ** (trials - hits)
    total = term
    for k in range(hits, trials):
        term = term * (trials - k) // ((k + 1) * (one_in - 1))
        total += term
    return float(total / one_in**trials)


def _check(right: int, total: int) -> None:
    if total < 1 or not 0 <= right <= total:
        raise CevalError(
            f"{right} right of {total} questions",
            where="right, total",
            remedy="use at least one question and 0 ≤ right ≤ total",
        )


def _deviations(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise CevalError(f"confidence is {confidence}", where="confidence", remedy="use 0.95, say")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _wilson(share: float, total: float, confidence: float) -> Estimate:
    z = _deviations(confidence)
    scale = 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    # Rounding must not put an end a hair beyond the share itself.
    return Estimate(share, max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach)))
