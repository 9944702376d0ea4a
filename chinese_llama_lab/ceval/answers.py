"""What a run answered, one entry a question, checked: what reports and submissions are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.questions import LETTERS, Question

UNEXTRACTED = "none"
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Answer:
    """One question's row of a run.

    Attributes:
        subject, split, id: which question it is.
        gold: the right letter, or None where it is not published.
        predicted: the model's letter, or None where none could be extracted.
        shots: demonstrations that were really given; None where the row does not say.
        tied: two letters shared the highest logit, and the first was taken.
    """

    subject: str
    split: str
    id: str
    gold: str | None
    predicted: str | None
    shots: int | None = None
    tied: bool = False

    @property
    def key(self) -> Key:
        """What tells questions apart."""
        return self.subject, self.split, self.id

    @property
    def right(self) -> bool:
        """Whether the answer is right; an answer that was not extracted is not."""
        return self.gold is not None and self.predicted == self.gold


def read_answers(rows: Iterable[Mapping[str, Any]]) -> tuple[Answer, ...]:
    """The answers in the rows of a run.

    Args:
        rows: with `subject`, `split`, `id`, `answer` (the right letter or None) and `predicted` (or None).

    Raises: CevalError: no rows, a row without one of these, something that is no letter, a question twice.
    """
    found: dict[Key, Answer] = {}
    for number, row in enumerate(rows):
        where = f"row {number}: {row.get('subject')}, {row.get('split')}, id {row.get('id')}"
        for name in ("subject", "split", "id", "answer", "predicted"):
            if name not in row:
                raise CevalError(
                    f"a row has no {name!r}", where=where, remedy="give the rows as the run wrote them"
                )
        for name in ("answer", "predicted"):
            if row[name] is not None and row[name] not in LETTERS:
                raise CevalError(
                    f"{name} is {row[name]!r}",
                    where=where,
                    remedy="write A, B, C or D, or null where there is none",
                )
        answer = Answer(
            row["subject"],
            row["split"],
            str(row["id"]),
            row["answer"],
            row["predicted"],
            row.get("shots"),
            bool(row.get("tied")),
        )
        if answer.key in found:
            raise CevalError(
                "a question was answered twice", where=where, remedy="score it once; remove the second row"
            )
        found[answer.key] = answer
    if not found:
        raise CevalError("the run has no rows", where="rows", remedy="score some questions first")
    return tuple(found.values())


def letter_histogram(letters: Iterable[str | None]) -> dict[str, int]:
    """How often each letter was chosen, and how often none could be extracted."""
    counts = Counter(UNEXTRACTED if letter is None else letter for letter in letters)
    return {letter: counts[letter] for letter in (*LETTERS, UNEXTRACTED)}


def subject_counts(answers: Iterable[Answer]) -> dict[str, tuple[int, int]]:
    """Subject → (right, total)."""
    counts: dict[str, tuple[int, int]] = {}
    for answer in answers:
        right, total = counts.get(answer.subject, (0, 0))
        counts[answer.subject] = (right + answer.right, total + 1)
    return counts


def match_answers(asked: Sequence[Question], rows: Iterable[Mapping[str, Any]]) -> list[str | None]:
    """The letter for each question that was asked, whatever order the rows are in.

    Raises: CevalError: a question without a row, or a row of a question that was not asked.
    """
    found = {answer.key: answer.predicted for answer in read_answers(rows)}
    keys = [(question.subject, question.split, question.id) for question in asked]
    missing, other = [key for key in keys if key not in found], sorted(set(found) - set(keys))
    if missing or other:
        raise CevalError(
            f"{len(missing)} questions were not answered, {len(other)} answers belong to no question",
            where=shown_keys(missing or other),
            remedy="return exactly one row for each question that was handed over",
        )
    return [found[key] for key in keys]


def shown_keys(keys: Iterable[Key], most: int = 5) -> str:
    """The first few of some questions, for a message."""
    listed = list(keys)
    shown = "; ".join(f"{subject}, {split}, id {number}" for subject, split, number in listed[:most])
    return shown + (f"; and {len(listed) - most:,} more" if len(listed) > most else "")
