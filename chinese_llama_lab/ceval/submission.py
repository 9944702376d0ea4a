"""`submission.json`, as C-Eval's site takes it: `{subject: {id: letter}}` for the whole test set.

The right answers of the test set are not published; the site scores an uploaded file. A key within a subject
is the `id` of the question's row, as text.

Source: "How to Submit" in the README and `submission_example.json` of hkust-nlp/ceval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinese_llama_lab.ceval.answers import letter_histogram, read_answers, shown_keys
from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.questions import LETTERS, Question
from chinese_llama_lab.ceval.subjects import load_subjects
from chinese_llama_lab.paths import write_json


@dataclass(frozen=True)
class Submission:
    """Answers to the test set, ready to be written.

    Attributes:
        answers: subject → id → letter, subjects in C-Eval's order.
        unextracted: questions whose answer could not be extracted, as (subject, split, id).
        written: what stands for them in `answers`, a letter or an empty string; None where there are none.
        histogram: how often the model chose each letter; `none` for what was not extracted.
    """

    answers: Mapping[str, Mapping[str, str]]
    unextracted: tuple[tuple[str, str, str], ...]
    written: str | None
    histogram: Mapping[str, int]

    def __len__(self) -> int:
        return sum(len(part) for part in self.answers.values())

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, self.answers, indent=4)

    def __str__(self) -> str:
        told = f"{len(self):,} answers in {len(self.answers)} subjects"
        if not self.unextracted:
            return f"{told}; all were extracted"
        shown = f"the letter {self.written}" if self.written else "an empty answer"
        return f"{told}; {len(self.unextracted):,} could not be extracted and have {shown}"


def make_submission(
    rows: Iterable[Mapping[str, Any]],
    questions: Sequence[Question],
    *,
    unextracted: str | None = None,
    official: bool = True,
) -> Submission:
    """The answers of a run in the site's form.

    Args:
        rows: of the run over the test set.
        questions: the test questions, as read; others of the set are ignored.
        unextracted: what to write where no answer could be extracted. None refuses such a run. A letter is
            right for a quarter of them by chance, whatever the model knows; "" can never be right.
        official: the questions must be C-Eval's 12,342, each subject's number as published.

    Raises: CevalError: missing questions, rows that are no test question, fewer or more questions than
        published, answers that were not extracted while `unextracted` is None.
    """
    if unextracted not in (None, "", *LETTERS):
        raise CevalError(
            f"unextracted is {unextracted!r}", where="unextracted", remedy="use a letter, '' or None"
        )
    asked = [question for question in questions if question.split == "test"]
    if not asked:
        raise CevalError("there are no test questions", where="questions", remedy="read the split test too")
    if official:
        _refuse_counts(asked)
    found = {answer.key: answer for answer in read_answers(rows)}
    keys = [(question.subject, question.split, question.id) for question in asked]
    missing = [key for key in keys if key not in found]
    if missing:
        raise CevalError(
            f"{len(missing):,} of {len(keys):,} test questions have no answer",
            where=shown_keys(missing),
            remedy="let the run finish (it goes on where it stopped), over all subjects",
        )
    other = sorted(set(found) - set(keys))
    if other:
        raise CevalError(
            f"{len(other):,} rows are no test question",
            where=shown_keys(other),
            remedy="give a run over test",
        )
    nothing = tuple(key for key in keys if found[key].predicted is None)
    if nothing and unextracted is None:
        raise CevalError(
            f"{len(nothing):,} answers could not be extracted",
            where=shown_keys(nothing),
            remedy="score by letter logits, or say what shall stand for them: '' or a letter",
        )
    order = {key: number for number, key in enumerate(load_subjects("ceval"))}
    answers: dict[str, dict[str, str]] = {}
    for subject, split, number in sorted(keys, key=lambda key: (order.get(key[0], len(order)), key[0])):
        letter = found[subject, split, number].predicted
        answers.setdefault(subject, {})[number] = str(unextracted) if letter is None else letter
    histogram = letter_histogram(answer.predicted for answer in found.values())
    return Submission(answers, nothing, unextracted if nothing else None, histogram)


def wrong_counts(asked: Sequence[Question]) -> list[str]:
    """Where these are not as many test questions as C-Eval published, a sentence for each subject."""
    counts: dict[str, int] = {}
    for question in asked:
        counts[question.subject] = counts.get(question.subject, 0) + 1
    subjects = load_subjects("ceval")
    return [
        f"{key} has {counts.get(key, 0):,} of {subject.counts['test']:,}"
        for key, subject in subjects.items()
        if counts.get(key, 0) != subject.counts["test"]
    ] + [f"{key} is no subject of C-Eval" for key in counts if key not in subjects]


def _refuse_counts(asked: Sequence[Question]) -> None:
    if wrong := wrong_counts(asked):
        raise CevalError(
            f"this is not C-Eval's test set: {'; '.join(wrong[:3])}"
            + (f"; and {len(wrong) - 3} more subjects" if len(wrong) > 3 else ""),
            where=f"{len(asked):,} test questions",
            remedy="read the official files whole; official=False writes what there is, in the same form",
        )
