"""Two runs over the same questions: does one answer better, or is it chance?

Questions that both have right, or both wrong, say nothing about which is better. Among those on which they
differ a model that is no better wins half: the exact McNemar test is the sign test on these. It needs the
same questions on both sides, so anything else is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chinese_llama_lab.ceval.answers import Answer, read_answers, shown_keys
from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.intervals import Estimate, paired_difference, sign_test

QUESTIONS = "questions_sha256"  # the setting that tells sets of questions apart


@dataclass(frozen=True)
class Comparison:
    """A paired comparison; "first" and "second" are the runs in the order given.

    Attributes:
        questions: number of questions.
        both, only_first, only_second, neither: who answered rightly; these add up to `questions`.
        same_letter: questions with the same answer, right or wrong; two that were not extracted are not one.
        difference: accuracy by question of the first minus that of the second, -1 to 1, with interval.
        p: exact McNemar test, two-sided, over the questions.
        subjects_first, subjects_second, subjects_tied: subjects in which the one run is better.
        p_subjects: exact sign test over the subjects; each counts the same, a tie says nothing.
        settings: what the runs were made with differently: name → (first, second).
    """

    questions: int
    both: int
    only_first: int
    only_second: int
    neither: int
    same_letter: int
    difference: Estimate
    p: float
    subjects_first: int
    subjects_second: int
    subjects_tied: int
    p_subjects: float
    settings: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def accuracies(self) -> tuple[float, float]:
        """Averages by question of the first and the second run."""
        return (self.both + self.only_first) / self.questions, (self.both + self.only_second) / self.questions

    def __str__(self) -> str:
        first, second = self.accuracies
        return (
            f"{100 * first:.1f} % against {100 * second:.1f} % of {self.questions:,} questions; difference "
            f"{100 * self.difference.value:+.1f} points ({100 * self.difference.low:+.1f} to "
            f"{100 * self.difference.high:+.1f}); {self.only_first} against {self.only_second} where they "
            f"differ, p = {self.p:.3g}"
        )


def compare_runs(
    first: Iterable[Mapping[str, Any]],
    second: Iterable[Mapping[str, Any]],
    *,
    settings: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
) -> Comparison:
    """Compare two runs question by question.

    Args:
        first, second: rows of the runs, in any order.
        settings: what each was made with; what differs is listed, other demonstrations too. Different hashes
            of the questions are refused: the same ids can stand for other questions.

    Raises: CevalError: different questions (it says which), other right answers for the same ids, or
        questions whose right answer is not published.
    """
    left = {answer.key: answer for answer in read_answers(first)}
    right = {answer.key: answer for answer in read_answers(second)}
    _refuse_other_questions(left, right)
    different = different_settings(*settings)
    one, other = different.get(QUESTIONS, (None, None))
    if one is not None and other is not None:
        raise CevalError(
            f"the ids are the same, the questions are not: {QUESTIONS} is {one} and {other}",
            where="settings",
            remedy="score both models on the same files",
        )
    pairs = [(left[key], right[key]) for key in left]
    both = sum(mine.right and theirs.right for mine, theirs in pairs)
    only_first = sum(mine.right and not theirs.right for mine, theirs in pairs)
    only_second = sum(theirs.right and not mine.right for mine, theirs in pairs)
    leads: dict[str, tuple[int, int]] = {}
    for mine, theirs in pairs:
        ours, others = leads.get(mine.subject, (0, 0))
        leads[mine.subject] = ours + mine.right, others + theirs.right
    better, worse = sum(a > b for a, b in leads.values()), sum(a < b for a, b in leads.values())
    return Comparison(
        questions=len(pairs),
        both=both,
        only_first=only_first,
        only_second=only_second,
        neither=len(pairs) - both - only_first - only_second,
        same_letter=sum(o.predicted is not None and o.predicted == t.predicted for o, t in pairs),
        difference=paired_difference(only_first, only_second, len(pairs)),
        p=sign_test(only_first, only_second),
        subjects_first=better,
        subjects_second=worse,
        subjects_tied=len(leads) - better - worse,
        p_subjects=sign_test(better, worse),
        settings=different,
    )


def different_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that are not the same, by name; None where a run has no such setting. The date is left out."""
    names = dict.fromkeys([*first, *second])
    return {
        name: (first.get(name), second.get(name))
        for name in names
        if first and second and name != "date" and first.get(name) != second.get(name)
    }


def _refuse_other_questions(left: Mapping[Any, Answer], right: Mapping[Any, Answer]) -> None:
    problems = []
    for name, one, other in (("first", left, right), ("second", right, left)):
        alone = [key for key in one if key not in other]
        if alone:
            problems.append(f"{len(alone):,} only in the {name} run ({shown_keys(alone)})")
    if problems:
        raise CevalError(
            f"the runs are over different questions: {'; '.join(problems)}",
            where=f"{len(left):,} and {len(right):,} questions",
            remedy="score both models on the same questions, with the same subjects",
        )
    changed = [key for key, answer in left.items() if answer.gold != right[key].gold]
    if changed:
        raise CevalError(
            f"{len(changed):,} questions have another right answer in the second run",
            where=shown_keys(changed),
            remedy="score both models on the same version of the questions",
        )
    unknown = [key for key, answer in left.items() if answer.gold is None]
    if unknown:
        raise CevalError(
            f"{len(unknown):,} questions have no published answer",
            where=shown_keys(unknown),
            remedy="compare runs over val",
        )
