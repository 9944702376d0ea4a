"""One multiple-choice question, and a set of them with what it should have held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from chinese_llama_lab.ceval.errors import QuestionError
from chinese_llama_lab.ceval.subjects import Subject, find_subject

LETTERS = ("A", "B", "C", "D")
SPLITS = ("dev", "val", "test")


@dataclass(frozen=True)
class Question:
    """A question with four options.

    Attributes:
        subject: key of its subject.
        split: `dev` (demonstrations), `val` or `test`.
        id: as in its file; unique within a subject and split.
        text: the question, as in its file, line breaks and all.
        options: what stands behind A, B, C and D; always text, whatever it looks like (`None`, `1`, `NA`).
        answer: the right letter, or None where it is not published.
        explanation: the worked solution; empty outside `dev`.
        benchmark: whose subjects these are, `ceval` or `cmmlu`.
        where: file and row, for messages.
    """

    subject: str
    split: str
    id: str
    text: str
    options: tuple[str, str, str, str]
    answer: str | None
    explanation: str = ""
    benchmark: str = "ceval"
    where: str = ""

    def __post_init__(self) -> None:
        place = self.where or f"{self.subject}, {self.split}, id {self.id!r}"
        if self.split not in SPLITS:
            raise QuestionError(
                f"there is no split {self.split!r}", where=place, remedy=f"use one of {', '.join(SPLITS)}"
            )
        if not self.text.strip():
            raise QuestionError("the question is empty", where=place, remedy="write it, or remove the row")
        if len(self.options) != len(LETTERS):
            raise QuestionError(
                f"there are {len(self.options)} options", where=place, remedy="give four, for A, B, C and D"
            )
        for letter, option in zip(LETTERS, self.options, strict=True):
            if not isinstance(option, str):
                raise QuestionError(
                    f"option {letter} is {type(option).__name__}, not text: {option!r}",
                    where=place,
                    remedy="read the table with every column as text, so that `NA` and `1` stay",
                )
            if not option.strip():
                raise QuestionError(
                    f"option {letter} is empty", where=place, remedy="write it, or remove the row"
                )
        if self.answer is not None and self.answer not in LETTERS:
            raise QuestionError(
                f"the answer is {self.answer!r}", where=place, remedy="write one capital letter: A, B, C or D"
            )

    @property
    def option(self) -> dict[str, str]:
        """Letter → option."""
        return dict(zip(LETTERS, self.options, strict=True))

    def about(self) -> Subject:
        """Its subject, with names and category.

        Raises: SubjectError: the key is in no table.
        """
        return find_subject(self.subject, self.benchmark, where=self.where or None)


@dataclass(frozen=True)
class QuestionSet:
    """Questions that were read together.

    Attributes:
        kind: the format they were read from: `ceval`, `hub`, `cmmlu` or `ceval-lab`.
        questions: all of them, in the order of subjects, splits and rows.
        shortfalls: what differs from the official counts, one sentence each; empty where nothing does.
    """

    kind: str
    questions: tuple[Question, ...]
    shortfalls: tuple[str, ...] = ()

    def select(self, *, split: str | None = None, subject: str | None = None) -> list[Question]:
        """The questions of a split, a subject or both."""
        return [
            question
            for question in self.questions
            if split in (None, question.split) and subject in (None, question.subject)
        ]

    @property
    def subjects(self) -> list[str]:
        """Keys of the subjects, in order of appearance."""
        return list(dict.fromkeys(question.subject for question in self.questions))

    def count(self, split: str) -> int:
        """Number of questions in a split."""
        return sum(question.split == split for question in self.questions)

    def __len__(self) -> int:
        return len(self.questions)


def refuse_repeated_ids(questions: Iterable[Question]) -> None:
    """Raise QuestionError where two rows of one subject and split have the same id."""
    first: dict[tuple[str, str, str], Question] = {}
    for question in questions:
        key = (question.subject, question.split, question.id)
        if key in first:
            raise QuestionError(
                f"id {question.id!r} stands twice",
                where=f"{question.where}; first in {first[key].where}",
                remedy="remove the row that was copied, or give it an id of its own",
            )
        first[key] = question


def shortfalls(
    questions: Iterable[Question], expected: dict[tuple[str, str], int], *, least: Iterable[str] = ()
) -> tuple[str, ...]:
    """Sentences about what is missing or too many, one for each split.

    Args:
        questions: what was read.
        expected: (subject, split) → number of questions that should be there.
        least: splits of which only the least number is known; more is no fault there.
    """
    found = Counter((question.subject, question.split) for question in questions)
    sentences = []
    least = set(least)
    for split in SPLITS:
        about = "at least " if split in least else ""
        wanted = {subject: count for (subject, s), count in expected.items() if s == split}
        have = {subject: count for (subject, s), count in found.items() if s == split}
        absent = [subject for subject in wanted if subject not in have]
        other = [
            f"{subject} has {have[subject]:,} of {about}{count:,}"
            for subject, count in wanted.items()
            if subject in have and (have[subject] < count or (have[subject] > count and not about))
        ]
        if not (absent or other):
            continue
        told = f"{split}: {sum(have.values()):,} of {about}{sum(wanted.values()):,} questions"
        if wanted and len(absent) == len(wanted):
            sentences.append(f"{told}: the split is not there")
            continue
        if absent:
            other.append(f"nothing for {', '.join(absent)}")
        sentences.append(f"{told}: {'; '.join(other)}")
    return tuple(sentences)
