"""Intervals and exact tests against figures worked by hand, brute enumeration, and simulation."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest

from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.intervals import (
    Estimate,
    average_by_question,
    average_by_subject,
    binomial_tail,
    paired_difference,
    sign_test,
)

Z = 1.959963984540054


def test_wilson_by_hand():
    # 5 of 10: z² = 3.84146; the middle stays 1/2; z/(1 + z²/n) · sqrt(0.025 + z²/400) = 0.26341.
    found = average_by_question(5, 10)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.23659, 0.76341), abs=1e-5)
    # 0 of 10: from 0 to z²/(n + z²).
    found = average_by_question(0, 10)
    assert (found.low, found.high) == (0.0, pytest.approx(3.841459 / 13.841459, abs=1e-6))
    # Newcombe (1998), table I: 81 of 263 is 0.2553 to 0.3662; 15 of 148 is 0.0624 to 0.1605.
    assert average_by_question(81, 263) == Estimate(81 / 263, *map(approx4, (0.2553, 0.3662)))
    assert average_by_question(15, 148) == Estimate(15 / 148, *map(approx4, (0.0624, 0.1605)))


def approx4(value):
    return pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize("total", [1, 2, 7, 50])
def test_wilson_solves_its_equation(total):
    """The ends are where |p̂ − p| is z standard errors *of p*: what defines the interval."""
    for right in range(total + 1):
        found = average_by_question(right, total)
        assert 0 <= found.low <= found.value <= found.high <= 1
        mirrored = average_by_question(total - right, total)
        assert found.low == pytest.approx(1 - mirrored.high, abs=1e-12)
        for end in (found.low, found.high):
            if 0 < end < 1:
                error = math.sqrt(end * (1 - end) / total)
                assert abs(found.value - end) == pytest.approx(Z * error, abs=1e-12)


def test_wilson_against_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is no dependency; it is used where it is there")
    for right, total in ((0, 12), (5, 12), (400, 1346)):
        theirs = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
        found = average_by_question(right, total)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert sign_test(right, total - right) == pytest.approx(stats.binomtest(right, total).pvalue)


def test_average_by_subject_by_hand():
    # 1 of 2 and 3 of 4: mean 5/8. Pulled to 2/4 and 4/6, mean 7/12; V = (1/4 · 1/2 + 2/9 · 1/4) / 4 = 13/288;
    # 7/12 · 5/12 / V = (35/144) / (13/288) = 70/13.
    found = average_by_subject([(1, 2), (3, 4)])
    assert found.value == 0.625
    scale = 1 + 3.841459 / (70 / 13)
    middle = (0.625 + 3.841459 / (140 / 13)) / scale
    reach = Z / scale * math.sqrt(0.234375 / (70 / 13) + 3.841459 / (140 / 13) ** 2)
    assert (found.low, found.high) == pytest.approx((middle - reach, middle + reach), abs=1e-6)
    # It is not the average by question, which is 4 of 6.
    assert average_by_question(4, 6).value == pytest.approx(2 / 3)


def test_one_subject_is_wilson():
    for right, total in ((0, 1), (3, 7), (12, 12)):
        one, other = average_by_subject([(right, total)]), average_by_question(right, total)
        assert (one.low, one.value, one.high) == pytest.approx(
            (other.low, other.value, other.high), abs=1e-12
        )


def test_average_by_subject_where_nothing_varies():
    # All wrong, four questions each: the pulled shares are equal, so 3² / (3/4) = 12 questions count.
    found, twelve = average_by_subject([(0, 4)] * 3), average_by_question(0, 12)
    assert (found.low, found.high) == pytest.approx((twelve.low, twelve.high), abs=1e-12)
    split = average_by_subject([(0, 5), (5, 5)])
    # Pulled to 1/7 and 6/7, V = 2 · (6/49)/5 / 4 = 3/245, so 1/4 / V = 245/12 questions count.
    scale = 1 + 3.841459 / (245 / 12)
    reach = Z / scale * math.sqrt(0.25 / (245 / 12) + 3.841459 / 4 / (245 / 12) ** 2)
    assert (split.value, split.high) == (0.5, pytest.approx(0.5 + reach, abs=1e-6))
    assert average_by_subject([(1, 1), (0, 1)]).value == 0.5


@pytest.mark.parametrize(
    ("sizes", "shares"),
    [
        ([12] * 26, [0.1, 0.25, 0.4, 0.9] * 6 + [0.25] * 2),
        ([16, 19, 24, 37, 55, 23, 31, 18] * 6, [0.3] * 48),
        ([5, 100], [0.9, 0.1]),
    ],
)
def test_intervals_hold_what_they_promise(sizes, shares):
    """Simulated: at least 95 % of the intervals hold the true mean, up to the noise of 600 draws."""
    chance = random.Random(5)
    truth = list(shares)
    mean = sum(truth) / len(truth)
    held = 0
    for _ in range(600):
        counts = [(sum(chance.random() < p for _ in range(n)), n) for p, n in zip(truth, sizes, strict=True)]
        found = average_by_subject(counts)
        held += found.low <= mean <= found.high
    assert held / 600 >= 0.923  # 0.95 less three standard errors
    if len(sizes) > 2:  # with two subjects it is wider than it needs to be
        assert held / 600 <= 0.985


def test_sign_test_equals_enumeration():
    for first, second in itertools.product(range(7), repeat=2):
        total, least = first + second, abs(first - second)
        flips = [sum(way) for way in itertools.product((0, 1), repeat=total)]
        share = Fraction(sum(abs(2 * heads - total) >= least for heads in flips), len(flips))
        assert sign_test(first, second) == pytest.approx(float(share))
    assert sign_test(0, 0) == 1.0
    # McNemar's textbook case: 10 against 2 is 2 · (1 + 12 + 66) / 4096.
    assert sign_test(10, 2) == sign_test(2, 10) == pytest.approx(158 / 4096)


def test_binomial_tail_equals_enumeration():
    for trials, one_in in ((4, 4), (3, 5)):
        rolls = list(itertools.product(range(one_in), repeat=trials))
        for hits in range(trials + 1):
            share = sum(roll.count(0) >= hits for roll in rolls) / len(rolls)
            assert binomial_tail(hits, trials, one_in) == pytest.approx(share)
    assert binomial_tail(3, 3, 24) == pytest.approx(1 / 24**3)


def test_tests_do_not_underflow():
    assert sign_test(6171, 6171) == 1.0
    assert 0 < sign_test(700, 400) < 1e-18
    assert binomial_tail(3085, 12342, 4) == pytest.approx(0.5, abs=0.02)
    assert sign_test(12342, 0) == 0.0  # smaller than any float


def test_paired_difference_by_hand():
    # 12 against 5 of 40: (7/42) ± z · sqrt((18/42 − (7/42)²) / 42), value 7/40.
    found = paired_difference(12, 5, 40)
    reach = Z * math.sqrt((18 / 42 - (7 / 42) ** 2) / 42)
    assert found.value == 7 / 40
    assert (found.low, found.high) == pytest.approx((7 / 42 - reach, 7 / 42 + reach))
    assert paired_difference(0, 0, 10).value == 0 and paired_difference(0, 0, 10).high > 0.1
    swapped = paired_difference(5, 12, 40)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    whole = paired_difference(3, 0, 3)
    assert -1 <= whole.low <= whole.value == whole.high == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: average_by_question(1, 0),
        lambda: average_by_question(3, 2),
        lambda: average_by_question(-1, 2),
        lambda: average_by_question(1, 2, 1.0),
        lambda: average_by_subject([]),
        lambda: average_by_subject([(1, 2), (3, 2)]),
        lambda: paired_difference(-1, 3, 5),
        lambda: paired_difference(3, 3, 5),
        lambda: sign_test(-1, 1),
        lambda: binomial_tail(3, 2, 4),
        lambda: binomial_tail(1, 2, 1),
    ],
)
def test_impossible_counts_are_refused(call):
    with pytest.raises(CevalError, match="what to do"):
        call()
