"""Rows of `probe` to a table: mean differences with bootstrap intervals, shares with Wilson's.

A couple (two pairs that swap their words) is what is drawn at random, because its two pairs are not
independent: a common word makes one of them score high and the other low. The intervals tell how far the
mean would move with other couples like these; they cannot tell whether other stereotypes behave like these.
A dozen couples are few: the interval holds the mean a little less often than its confidence says.

Source of drawing n - 1 of n: Hesterberg, The American Statistician 69 (2015); with n the intervals of small
samples are too narrow by the factor sqrt((n - 1) / n).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from chinese_llama_lab.ceval.intervals import CONFIDENCE, Estimate, average_by_question
from chinese_llama_lab.limits.errors import ProbeError

PER = {"sentence": "difference", "character": "difference_per_character"}
RESAMPLES = 5000
_SAME = ("language", "kind", "idea", "couple", "text_a", "text_b")


def bootstrap_mean(
    values: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean with the percentile interval of means of n - 1 values drawn with replacement.

    Raises: ProbeError: fewer than two values, a value that is not finite, or impossible options.
    """
    if len(values) < 2 or not all(math.isfinite(value) for value in values):
        raise ProbeError(
            f"no interval from {len(values)} values, or one is not finite",
            where="values",
            remedy="score at least two couples of a kind",
        )
    if resamples < 1 or not 0 < confidence < 1:
        raise ProbeError(
            f"{resamples} resamples, confidence {confidence}",
            where="resamples, confidence",
            remedy="use 5000 and 0.95, say",
        )
    sample = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample) - 1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(sample[draws].mean(axis=1), [tail, 1 - tail])
    return Estimate(float(sample.mean()), float(low), float(high))


def summarize(
    rows: Iterable[Mapping[str, Any]],
    *,
    per: str = "sentence",
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> list[dict[str, Any]]:
    """One row a language and kind, in the order of their first pairs.

    Args:
        rows: of `probe`, or of a saved table, where numbers are text.
        per: `sentence` for total log-probabilities, `character` for those divided by the characters.
        resamples, seed, confidence: of the intervals.

    Returns: `language`, `kind`, `pairs`, `couples`; `mean`, `low`, `high`: mean of log p(a) - log p(b) in
        nats, with interval; `share`, `share_low`, `share_high`: pairs in which a is likelier (a tie is not);
        `couples_share`, `couples_low`, `couples_high`: the same of couples, by their mean. Shares are from 0
        to 1 and 0.5 is no preference. Strong word preferences pull the share of pairs towards 0.5,
        since in every couple each word is once in a and once in b; the share of couples has not this fault.

    Raises: ProbeError: no rows, a column missing, no number, a couple that has not two pairs, fewer than two
        couples of a kind, or an unknown `per`.
    """
    column = _column(per)
    listed = _by_id(rows, "rows")
    summary = []
    for (language, kind), members in _groups(listed.values()).items():
        pairs = [_number(row, column) for row in members]
        couples = _couple_means(members, lambda row: _number(row, column))
        mean = bootstrap_mean(couples, resamples=resamples, seed=seed, confidence=confidence)
        of_pairs, of_couples = _share(pairs, confidence), _share(couples, confidence)
        summary.append(
            {
                "language": language,
                "kind": kind,
                "pairs": len(pairs),
                "couples": len(couples),
                "mean": mean.value,
                "low": mean.low,
                "high": mean.high,
                "share": of_pairs.value,
                "share_low": of_pairs.low,
                "share_high": of_pairs.high,
                "couples_share": of_couples.value,
                "couples_low": of_couples.low,
                "couples_high": of_couples.high,
            }
        )
    return summary


def compare(
    before: Iterable[Mapping[str, Any]],
    after: Iterable[Mapping[str, Any]],
    *,
    per: str = "sentence",
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> list[dict[str, Any]]:
    """How the mean difference changed between two models over the same pairs, paired by id.

    A change of a bias kind says little without the control's: a model that reads better has larger
    differences everywhere.

    Args: as `summarize`; rows in any order.

    Returns: one row a language and kind: `language`, `kind`, `pairs`, `couples`, `before`, `after` (means in
        nats), `change` = after - before with `low` and `high`.

    Raises: ProbeError: other ids or other sentences on one side, or as `summarize`.
    """
    column = _column(per)
    first, second = _by_id(before, "before"), _by_id(after, "after")
    for name, one, other in (("before", first, second), ("after", second, first)):
        alone = [key for key in one if key not in other]
        if alone:
            raise ProbeError(
                f"{len(alone)} pairs are only in {name}, such as {alone[0]}",
                where=name,
                remedy="score both models on the same pairs",
            )
    for key, row in first.items():
        changed = [name for name in _SAME if _cell(row, name) != _cell(second[key], name)]
        if changed:
            raise ProbeError(
                f"{changed[0]} of {key} is {row[changed[0]]!r} before and {second[key][changed[0]]!r} after",
                where=f"id {key}",
                remedy="score both models on the same version of the pairs",
            )
    table = []
    for (language, kind), members in _groups(first.values()).items():
        old = _couple_means(members, lambda row: _number(row, column))
        new = _couple_means(members, lambda row: _number(second[row["id"]], column))
        change = bootstrap_mean(
            [b - a for a, b in zip(old, new, strict=True)],
            resamples=resamples,
            seed=seed,
            confidence=confidence,
        )
        table.append(
            {
                "language": language,
                "kind": kind,
                "pairs": len(members),
                "couples": len(old),
                "before": math.fsum(old) / len(old),
                "after": math.fsum(new) / len(new),
                "change": change.value,
                "low": change.low,
                "high": change.high,
            }
        )
    return table


def _column(per: str) -> str:
    if per not in PER:
        raise ProbeError(f"per is {per!r}", where="per", remedy=f"use {' or '.join(PER)}")
    return PER[per]


def _cell(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise ProbeError(
            f"a row has no {name}", where=f"id {row.get('id')}", remedy="give the rows of `probe`, whole"
        )
    return row[name]


def _number(row: Mapping[str, Any], name: str) -> float:
    try:
        value = float(_cell(row, name))
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ProbeError(
            f"{name} is {row[name]!r}", where=f"id {row.get('id')}", remedy="score the pair again"
        )
    return value


def _by_id(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        key = _cell(row, "id")
        if key in found:
            raise ProbeError(f"the id {key!r} stands twice", where=name, remedy="give one run's rows alone")
        found[key] = row
    if not found:
        raise ProbeError("there are no rows", where=name, remedy="score some pairs")
    return found


def _groups(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((_cell(row, "language"), _cell(row, "kind")), []).append(row)
    return groups


def _couple_means(
    rows: Sequence[Mapping[str, Any]], score: Callable[[Mapping[str, Any]], float]
) -> list[float]:
    """Mean of the two pairs of each couple of one language and kind, in order."""
    couples: dict[str, list[float]] = {}
    for row in rows:
        couples.setdefault(_cell(row, "couple"), []).append(score(row))
    for couple, values in couples.items():
        if len(values) != 2:
            raise ProbeError(
                f"couple {couple!r} has {len(values)} pair(s), not two",
                where=f"language {rows[0]['language']}",
                remedy="give both pairs of every couple: else word frequency does not cancel",
            )
    return [math.fsum(values) / 2 for values in couples.values()]


def _share(values: Sequence[float], confidence: float) -> Estimate:
    return average_by_question(sum(value > 0 for value in values), len(values), confidence)
