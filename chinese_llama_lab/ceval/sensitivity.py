"""One model under every prompt and number of shots: how much of a score is the prompt.

Alpaca-2-7B was reported at 30.7 and at 42.9 on the same questions. A score without its prompt is half a
statement, and the best of many prompts is no score: it was chosen on the questions it is reported on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.ceval.answers import Answer, read_answers, subject_counts
from chinese_llama_lab.ceval.compare import Comparison, compare_runs
from chinese_llama_lab.ceval.errors import CevalError, LetterError, PromptError
from chinese_llama_lab.ceval.intervals import Estimate, average_by_question, average_by_subject
from chinese_llama_lab.ceval.prompts import STYLES

Rows = Iterable[Mapping[str, Any]]
SHOTS = (0, 5)


@dataclass(frozen=True)
class PromptScore:
    """The score under one prompt and number of shots.

    Attributes:
        prompt, shots: how it was asked.
        by_question, by_subject: the two averages with intervals.
        unextracted: answers that could not be extracted.
        fewer_shots: questions that got fewer shots than asked for, because they did not fit.
    """

    prompt: str
    shots: int
    by_question: Estimate
    by_subject: Estimate
    unextracted: int
    fewer_shots: int


@dataclass(frozen=True)
class Sensitivity:
    """One model under several prompts.

    Attributes:
        scores: in the order asked.
        impossible: (prompt, shots, why) where this model cannot be asked in this way.
        questions: number of questions.
        changed: share of the questions whose letter is not the same under all prompts; an answer that was not
            extracted counts as a letter of its own.
        never_right, always_right: share of the questions that no prompt, or every one, gets right.
        extremes: the best against the worst score; None with a single one.
        p: of `extremes`, times the number of pairs that could have been picked (Bonferroni), at most 1.
    """

    scores: tuple[PromptScore, ...]
    impossible: tuple[tuple[str, int, str], ...]
    questions: int
    changed: float
    never_right: float
    always_right: float
    extremes: Comparison | None
    p: float

    @property
    def best(self) -> PromptScore:
        """The highest average by question; the first of equals."""
        return max(self.scores, key=lambda score: score.by_question.value)

    @property
    def worst(self) -> PromptScore:
        """The lowest average by question; the first of equals."""
        return min(self.scores, key=lambda score: score.by_question.value)

    @property
    def spread(self) -> float:
        """Best less worst average by question, 0 to 1."""
        return self.best.by_question.value - self.worst.by_question.value


def prompt_sensitivity(
    score: Callable[[str, int], Rows],
    *,
    prompts: Sequence[str] = tuple(STYLES),
    shots: Sequence[int] = SHOTS,
) -> Sensitivity:
    """Score one model under every prompt and number of shots.

    Args:
        score: (prompt style, shots) → the rows of a run, over the same questions each time.
        prompts: styles, see `prompts.STYLES`.
        shots: numbers of demonstrations.

    Raises:
        CevalError: nothing to try, a pair asked for twice, runs over different questions, questions without
            published answers, or a model that cannot be asked in any of the ways. A PromptError or
            LetterError of `score` (no chat template; a letter of two tokens) is kept in `impossible`; any
            other error goes through.
    """
    ways = [(prompt, count) for prompt in prompts for count in shots]
    if not ways or len(set(ways)) < len(ways):
        raise CevalError(
            "a prompt is asked for twice" if ways else "there is no prompt to try",
            where="prompts, shots",
            remedy="give each prompt and number of shots once",
        )
    runs: list[tuple[str, int, tuple[Answer, ...], list[Mapping[str, Any]]]] = []
    impossible = []
    for prompt, count in ways:
        try:
            rows = list(score(prompt, count))
        except (PromptError, LetterError) as error:
            impossible.append((prompt, count, error.what))
            continue
        runs.append((prompt, count, read_answers(rows), rows))
    if not runs:
        prompt, count, why = impossible[0]
        raise CevalError(
            f"the model can be asked in none of {len(ways)} ways",
            where=f"{prompt}, {count} shots: {why}",
            remedy="try other prompts, or score by generation",
        )
    for *_, rows in runs:
        compare_runs(runs[0][3], rows)  # refuses other questions, and says which
    scores = tuple(_score(prompt, count, answers) for prompt, count, answers, _ in runs)
    tables = [{answer.key: answer for answer in answers} for _, _, answers, _ in runs]
    columns = [[table[key] for table in tables] for key in tables[0]]
    values = [one.by_question.value for one in scores]
    top, bottom = values.index(max(values)), values.index(min(values))
    extremes = compare_runs(runs[top][3], runs[bottom][3]) if len(runs) > 1 else None
    pairs = len(runs) * (len(runs) - 1) // 2
    return Sensitivity(
        scores=scores,
        impossible=tuple(impossible),
        questions=len(columns),
        changed=sum(len({answer.predicted for answer in column}) > 1 for column in columns) / len(columns),
        never_right=sum(not any(answer.right for answer in column) for column in columns) / len(columns),
        always_right=sum(all(answer.right for answer in column) for column in columns) / len(columns),
        extremes=extremes,
        p=min(1.0, extremes.p * pairs) if extremes else 1.0,
    )


def _score(prompt: str, shots: int, answers: Sequence[Answer]) -> PromptScore:
    return PromptScore(
        prompt,
        shots,
        average_by_question(sum(answer.right for answer in answers), len(answers)),
        average_by_subject(list(subject_counts(answers).values())),
        sum(answer.predicted is None for answer in answers),
        sum(answer.shots is not None and answer.shots < shots for answer in answers),
    )
