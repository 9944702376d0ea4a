"""What a run scored: subjects, categories, C-Eval Hard and all of it, beside what knowing nothing scores.

Two averages are in use, and published tables rarely say which: *by question* (Chinese-LLaMA-Alpaca) and *by
subject* (C-Eval's own table). Both are here, under their names. An answer that could not be extracted is
wrong, and counted.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chinese_llama_lab import __version__, results
from chinese_llama_lab.ceval.answers import Answer, letter_histogram, read_answers, shown_keys, subject_counts
from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.intervals import (
    BY_QUESTION,
    BY_SUBJECT,
    CONFIDENCE,
    Estimate,
    average_by_question,
    average_by_subject,
)
from chinese_llama_lab.ceval.questions import LETTERS
from chinese_llama_lab.ceval.subjects import CATEGORIES, HARD, load_subjects
from chinese_llama_lab.paths import atomic_file

CHANCE = 1 / len(LETTERS)
HARD_NAME = "C-Eval Hard"
# Without these a score cannot be repeated, so no report is written without them.
REQUIRED = (
    "model_sha256",
    "tokenizer_sha256",
    "questions_sha256",
    "questions",
    "prompt",
    "shots",
    "cot",
    "names",
    "method",
    "dtype",
    "versions",
)


@dataclass(frozen=True)
class Score:
    """The score of a part of the questions.

    Attributes:
        part: a subject's key, a category, `C-Eval Hard` or `all`.
        kind: `subject`, `category`, `hard` or `all`.
        questions, right, unextracted: how many there are, were right, gave no letter (and count as wrong).
        subjects: how many subjects are in it, and `of_subjects`: how many the benchmark has there.
        average_by_question: right / questions, with Wilson's interval.
        average_by_subject: mean of the subjects' shares, with the interval of `intervals.BY_SUBJECT`.
        always: letter → what always giving it would have scored, by question.
    """

    part: str
    kind: str
    questions: int
    right: int
    unextracted: int
    subjects: int
    of_subjects: int
    average_by_question: Estimate
    average_by_subject: Estimate
    always: Mapping[str, float]

    @property
    def best_letter(self) -> str:
        """The letter that would have scored most; the first of equals."""
        return max(LETTERS, key=lambda letter: self.always[letter])


@dataclass(frozen=True)
class Report:
    """The scores of a run.

    Attributes:
        scores: all, C-Eval Hard, the categories, the subjects; only parts that have questions.
        predicted, gold: how often each letter was chosen, and is right; `none` for what was not extracted.
        fewer_shots: questions that got fewer shots than asked for, because they did not fit.
        tied: questions where two letters shared the highest logit, and the first was taken.
        confidence: of every interval.
        settings: what the run was made with.
    """

    scores: tuple[Score, ...]
    predicted: Mapping[str, int]
    gold: Mapping[str, int]
    fewer_shots: int
    tied: int
    confidence: float
    settings: Mapping[str, Any]

    def part(self, name: str) -> Score:
        """The score of a part, such as `all`, `STEM` or `law`.

        Raises: CevalError: no question of it was scored.
        """
        for score in self.scores:
            if score.part == name:
                return score
        shown = ", ".join(score.part for score in self.scores[:6])
        raise CevalError(
            f"there is no score for {name!r}", where="part", remedy=f"there are {shown}, … in this run"
        )

    def table(self, *kinds: str) -> results.Table:
        """Percent, as text, ready to be shown; of some kinds (`subject`, …) or of all, with the lines of
        knowing nothing below."""
        rows = [_shown(score) for score in self.scores if not kinds or score.kind in kinds]
        whole = self.part("all")
        blank = dict.fromkeys(rows[0] if rows else _shown(whole), "")
        for name, share in (
            (f"always {whole.best_letter}", whole.always[whole.best_letter]),
            ("chance", CHANCE),
        ):
            by_question = {"part": name, "average by question, %": f"{100 * share:.1f}"}
            rows.append(blank | by_question)
        return results.table("ceval", rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it; shares are from 0 to 1."""
        return {
            "lab_version": __version__,
            "settings": dict(self.settings),
            "confidence": self.confidence,
            "intervals": {"average_by_question": BY_QUESTION, "average_by_subject": BY_SUBJECT},
            "chance": CHANCE,
            "predicted": dict(self.predicted),
            "gold": dict(self.gold),
            "fewer_shots": self.fewer_shots,
            "tied": self.tied,
            "scores": [asdict(score) for score in self.scores],
        }

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write `report.json` and `report.csv`, each whole or not at all; returns both paths.

        Each line of the CSV carries the settings too: a line that was copied elsewhere still says what it is.

        Raises: CevalError: the settings lack what is needed to repeat the run (`REQUIRED`).
        """
        lacks = [name for name in REQUIRED if self.settings.get(name) in (None, "", {})]
        if lacks:
            raise CevalError(
                f"the run does not say its {', '.join(lacks)}",
                where="settings",
                remedy="give the settings that the scorer wrote beside the rows",
            )
        table, whole = folder / "report.csv", folder / "report.json"
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        for path, content in ((table, self._csv()), (whole, text)):
            with atomic_file(path) as temporary:
                temporary.write_bytes(content.encode("utf-8"))
        return whole, table

    def _csv(self) -> str:
        shared = {"chance": CHANCE, "confidence": self.confidence, "lab_version": __version__}
        shared |= {f"run.{name}": value for name, value in _flat(self.settings).items()}
        stream = io.StringIO(newline="")
        writer: csv.DictWriter[str] | None = None
        for score in self.scores:
            row = _flat(asdict(score)) | shared
            if writer is None:
                writer = csv.DictWriter(stream, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
        return stream.getvalue()

    def __str__(self) -> str:
        whole = self.part("all")
        return (
            f"by question {whole.average_by_question}, by subject {whole.average_by_subject}; "
            f"{whole.questions:,} questions of {whole.subjects} subjects, {whole.unextracted:,} not "
            f"extracted; always {whole.best_letter} {100 * whole.always[whole.best_letter]:.1f} %, chance "
            f"{100 * CHANCE:.0f} %"
        )


def make_report(
    rows: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any] | None = None,
    *,
    benchmark: str | None = None,
    confidence: float = CONFIDENCE,
) -> Report:
    """The scores in the rows of a run.

    Args:
        rows: see `read_answers`. All of them: a half-finished run is refused where `settings` say how many
            questions there are (`questions`).
        settings: what the run was made with, as written beside the rows.
        benchmark: `ceval` or `cmmlu`, whose subjects have no categories here; None takes what `settings` say,
            or `ceval`.
        confidence: of the intervals.

    Raises: CevalError: rows missing, rows of several splits, right answers that are not published, or a
        subject that the benchmark does not have.
    """
    answers = read_answers(rows)
    settings = dict(settings or {})
    _check_rows(answers, settings)
    benchmark = benchmark or settings.get("benchmark") or "ceval"
    subjects = load_subjects(benchmark)
    parts: list[tuple[str, str, Sequence[str]]] = [("all", "all", list(subjects))]
    if benchmark == "ceval":
        parts.append((HARD_NAME, "hard", HARD))
        for category in CATEGORIES:
            inside = [key for key, subject in subjects.items() if subject.category == category]
            parts.append((category, "category", inside))
    parts += [(key, "subject", [key]) for key in subjects]
    unknown = sorted({answer.subject for answer in answers} - set(subjects))
    if unknown:
        raise CevalError(
            f"{benchmark} has no subject {unknown[0]!r}",
            where="rows",
            remedy="name the benchmark that the questions are from",
        )
    scores = []
    for name, kind, keys in parts:
        inside_of = set(keys)
        part = [answer for answer in answers if answer.subject in inside_of]
        if part:
            scores.append(_score(name, kind, part, len(keys), confidence))
    asked = settings.get("shots")
    return Report(
        scores=tuple(scores),
        predicted=letter_histogram(answer.predicted for answer in answers),
        gold=letter_histogram(answer.gold for answer in answers),
        fewer_shots=sum(asked is not None and a.shots is not None and a.shots < asked for a in answers),
        tied=sum(answer.tied for answer in answers),
        confidence=confidence,
        settings=settings,
    )


def _score(name: str, kind: str, part: Sequence[Answer], of_subjects: int, confidence: float) -> Score:
    counts = subject_counts(part)
    right = sum(answer.right for answer in part)
    return Score(
        part=name,
        kind=kind,
        questions=len(part),
        right=right,
        unextracted=sum(answer.predicted is None for answer in part),
        subjects=len(counts),
        of_subjects=of_subjects,
        average_by_question=average_by_question(right, len(part), confidence),
        average_by_subject=average_by_subject(list(counts.values()), confidence),
        always={letter: sum(answer.gold == letter for answer in part) / len(part) for letter in LETTERS},
    )


def _check_rows(answers: Sequence[Answer], settings: Mapping[str, Any]) -> None:
    expected = settings.get("questions")
    if expected is not None and expected != len(answers):
        raise CevalError(
            f"the run has {len(answers):,} rows and {expected:,} questions",
            where="rows",
            remedy="let it finish: it goes on where it stopped",
        )
    splits = sorted({answer.split for answer in answers})
    if len(splits) > 1:
        raise CevalError(
            f"the rows are of several splits: {', '.join(splits)}",
            where="rows",
            remedy="report each split by itself",
        )
    hidden = [answer.key for answer in answers if answer.gold is None]
    if hidden:
        raise CevalError(
            f"{len(hidden):,} questions have no published answer",
            where=shown_keys(hidden),
            remedy="write a submission instead (`make_submission`); C-Eval's site scores it",
        )


def _shown(score: Score) -> dict[str, str]:
    def percent(estimate: Estimate) -> tuple[str, str]:
        return f"{100 * estimate.value:.1f}", f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"

    by_question, its_interval = percent(score.average_by_question)
    by_subject, other_interval = percent(score.average_by_subject)
    return {
        "part": score.part,
        "subjects": str(score.subjects)
        if score.subjects == score.of_subjects
        else f"{score.subjects} of {score.of_subjects}",
        "questions": str(score.questions),
        "not extracted": str(score.unextracted),
        "average by question, %": by_question,
        "its interval": its_interval,
        "average by subject, %": by_subject,
        "interval by subject": other_interval,
        "best letter": f"{score.best_letter} {100 * score.always[score.best_letter]:.1f}",
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, names joined by dots; lists as JSON."""
    found: dict[str, Any] = {}
    for name, one in value.items():
        if isinstance(one, Mapping):
            found |= _flat(one, f"{prefix}{name}.")
        else:
            listed = isinstance(one, (list, tuple))
            found[prefix + name] = json.dumps(one, ensure_ascii=False) if listed else one
    return found
