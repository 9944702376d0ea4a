"""One reader for every form that the questions come in.

| kind | layout | columns |
|---|---|---|
| `ceval` | `val/accountant_val.csv`, in a folder or the zip | `id,question,A,B,C,D,answer[,explanation]` |
| `hub` | `accountant/val-00000-of-00001.parquet` | the same |
| `cmmlu` | `dev/agronomy.csv`, in a folder or zip | an unnamed one for the id, `Question,A,B,C,D,Answer` |
| `ceval-lab` | as `ceval`, with a `set.json` that says how many questions there are | the same |

C-Eval and CMMLU are CC-BY-NC-SA-4.0: they are read where the reader has them and never kept in this project.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from chinese_llama_lab.ceval.containers import Container, above_split
from chinese_llama_lab.ceval.errors import QuestionError
from chinese_llama_lab.ceval.questions import (
    LETTERS,
    SPLITS,
    Question,
    QuestionSet,
    refuse_repeated_ids,
    shortfalls,
)
from chinese_llama_lab.ceval.subjects import Subject, find_subject, load_subjects
from chinese_llama_lab.ceval.tables import Row, decode, read_table

KINDS = ("ceval", "hub", "cmmlu", "ceval-lab")
HUB_DATA_SET = "ceval/ceval-exam"
_CSV = re.compile(r"(?P<subject>.+)_(?P<split>dev|val|test)\.csv")
_PARQUET = re.compile(r"(?P<split>dev|val|test)-\d+-of-\d+\.parquet")
_SET = "set.json"


def read_questions(
    path: Path | str, kind: str | None = None, *, splits: Iterable[str] = SPLITS
) -> QuestionSet:
    """All questions under a path, checked, with what is missing named.

    Args:
        path: a folder or a zip archive.
        kind: one of `KINDS`; None finds out from the names of the files.
        splits: which of dev, val and test to read.

    Returns: the questions and `shortfalls` against the official counts (C-Eval: 260, 1,346 and 12,342).

    Raises:
        QuestionError: nothing to read, a damaged or hostile archive, a file that is no table of this kind, or
            a row that is no question; file, row and remedy are named.
        SubjectError: a file is named after no known subject.
    """
    container = Container(Path(path))
    kind = _checked_kind(kind) or find_kind(container)
    wanted = set(splits)
    questions: list[Question] = []
    seen: dict[tuple[str, str, int], str] = {}
    for subject, split, part, name in _files(container, kind):
        if split not in wanted:
            continue
        key = (subject.key, split, part)
        if key in seen:
            raise QuestionError(
                f"{subject.key} has two files for {split}",
                where=f"{container.where(seen[key])}; {container.where(name)}",
                remedy="keep one of them",
            )
        seen[key] = name
        questions += _read_file(container, name, kind, subject, split)
    if not questions:
        raise QuestionError(
            f"no questions of {', '.join(s for s in SPLITS if s in wanted)} in {container.path}",
            where=str(container.path),
            remedy="give the folder that holds dev/, val/ and test/",
        )
    return _finished(kind, questions, _expected(container, kind, wanted))


def read_hub(name: str = HUB_DATA_SET, *, splits: Iterable[str] = SPLITS) -> QuestionSet:
    """C-Eval through `datasets.load_dataset`, one configuration a subject; the hub's cache is used.

    Raises: QuestionError: the hub does not answer, or has no such data set.
    """
    from datasets import load_dataset

    found = {}
    for key in load_subjects("ceval"):
        try:
            found[key] = load_dataset(name, key)
        except Exception as error:  # the library raises a dozen unrelated classes here
            raise QuestionError(
                f"{name} could not be loaded: {error}",
                where=f"subject {key}",
                remedy="go online once, set HF_ENDPOINT to a mirror, or read the official zip instead",
            ) from error
    return from_hub(found, splits=splits, where=name)


def from_hub(
    data: Mapping[str, Mapping[str, Iterable[Mapping[str, Any]]]],
    *,
    splits: Iterable[str] = SPLITS,
    where: str = HUB_DATA_SET,
) -> QuestionSet:
    """The hub's data set, already loaded: subject → split → rows.

    Raises: QuestionError, SubjectError: as `read_questions`.
    """
    wanted = set(splits)
    questions = []
    for name, parts in data.items():
        subject = find_subject(name, "ceval", where=where)
        for split, rows in parts.items():
            if split in wanted:
                questions += _from_hub_rows(rows, subject, split, f"{where}, {name}, {split}")
    return _finished("hub", questions, _official(load_subjects("ceval"), wanted))


def find_kind(container: Container) -> str:
    """The kind of a container, from the names of its files.

    Raises: QuestionError: nothing in it looks like questions.
    """
    names = [PurePosixPath(name) for name in container.names]
    if any(name.name == _SET for name in names):
        return "ceval-lab"
    if any(_PARQUET.fullmatch(name.name) for name in names):
        return "hub"
    if any(_CSV.fullmatch(name.name) for name in names):
        return "ceval"
    if any(name.suffix == ".csv" and name.parent.name in SPLITS for name in names):
        return "cmmlu"
    # CMMLU names its files after subjects alone: the folder says which split they are.
    lone = [name for name in names if name.suffix == ".csv" and name.stem in load_subjects("cmmlu")]
    if lone:
        folder = container.path.resolve()
        above = above_split(folder)
        raise QuestionError(
            f"{lone[0].name} is named as a file of CMMLU, and no dev/ or test/ stands above it",
            where=container.where(str(lone[0])),
            remedy="give the folder above dev/ and test/" + (f": {above}" if above != folder else ""),
        )
    archives = [name for name in names if name.suffix == ".zip"]
    raise QuestionError(
        f"no files of questions in {container.path}",
        where=str(container.path),
        remedy=f"give {container.path / archives[0]}"
        if archives
        else "give a folder with files such as val/accountant_val.csv, or the official zip",
    )


def _checked_kind(kind: str | None) -> str | None:
    if kind is not None and kind not in KINDS:
        raise QuestionError(
            f"there is no kind {kind!r}", where="kind", remedy=f"use one of {', '.join(KINDS)}"
        )
    return kind


def _files(container: Container, kind: str) -> Iterator[tuple[Subject, str, int, str]]:
    """(subject, split, number of the part, name) of every file of questions, in the table's order."""
    found = []
    benchmark = "cmmlu" if kind == "cmmlu" else "ceval"
    suffix = ".parquet" if kind == "hub" else ".csv"
    order = {key: number for number, key in enumerate(load_subjects(benchmark))}
    for name in container.names:
        path = PurePosixPath(name)
        if path.suffix != suffix:
            continue
        where, part = container.where(name), 0
        if kind == "cmmlu":
            subject, split = path.stem, path.parent.name
        elif match := (_PARQUET if kind == "hub" else _CSV).fullmatch(path.name):
            split = match["split"]
            subject = path.parent.name if kind == "hub" else match["subject"]
            part = int(path.name.split("-")[1]) if kind == "hub" else 0
        else:
            subject, split = "", ""
        if split not in SPLITS:
            shown = {"cmmlu": "dev/agronomy.csv", "hub": "accountant/val-00000-of-00001.parquet"}
            raise QuestionError(
                f"{path.name} is not named as a file of questions of kind {kind}",
                where=where,
                remedy=f"name it like {shown.get(kind, 'val/accountant_val.csv')}, or move it elsewhere",
            )
        found.append((find_subject(subject, benchmark, where=where), split, part, name))
    yield from sorted(found, key=lambda file: (order[file[0].key], SPLITS.index(file[1]), file[2]))


def _read_file(container: Container, name: str, kind: str, subject: Subject, split: str) -> list[Question]:
    data, where = container.read(name), container.where(name)
    if kind == "hub":
        return _from_hub_rows(_parquet_rows(data, where), subject, split, where)
    columns = {"id": "", "question": "Question", "answer": "Answer"} if kind == "cmmlu" else {}
    has_answer = split != "test" or kind in ("cmmlu", "ceval-lab")
    required = [columns.get("id", "id"), columns.get("question", "question"), *LETTERS]
    if has_answer:
        required.append(columns.get("answer", "answer"))
    if split == "dev" and kind != "cmmlu":
        required.append("explanation")
    rows = read_table(data, where, required)
    return [_question(row, subject, split, columns, has_answer) for row in rows]


def _question(
    row: Row, subject: Subject, split: str, columns: Mapping[str, str], has_answer: bool
) -> Question:
    cells = row.cells
    number = cells[columns.get("id", "id")].strip()
    if not number:
        raise QuestionError("the id is empty", where=row.where, remedy="number the rows from 0")
    answer = cells.get(columns.get("answer", "answer"), "").strip()
    if not answer and has_answer:
        raise QuestionError("the answer is empty", where=row.where, remedy="write A, B, C or D")
    return Question(
        subject=subject.key,
        split=split,
        id=number,
        text=cells[columns.get("question", "question")],
        options=(cells["A"], cells["B"], cells["C"], cells["D"]),
        answer=answer or None,
        explanation=cells.get("explanation", ""),
        benchmark=subject.benchmark,
        where=row.where,
    )


def _from_hub_rows(
    rows: Iterable[Mapping[str, Any]], subject: Subject, split: str, where: str
) -> list[Question]:
    questions = []
    needed = ["id", "question", *LETTERS, *(["answer"] if split != "test" else [])]
    for number, row in enumerate(rows, start=1):
        place = f"{where}, row {number}"
        for column in needed:
            if column not in row:
                raise QuestionError(
                    f"there is no column {column!r}",
                    where=place,
                    remedy=f"the columns there are {', '.join(map(repr, row))}; this reads {HUB_DATA_SET}",
                )
            if row[column] is None:
                raise QuestionError(
                    f"column {column!r} is null",
                    where=place,
                    remedy="read the table with every column as text: `None` and `NA` are options here",
                )
        cells = {column: value if isinstance(value, str) else str(value) for column, value in row.items()}
        for column in ("answer", "explanation"):
            if row.get(column) is None:
                cells[column] = ""
        questions.append(_question(Row(cells, place), subject, split, {}, split != "test"))
    return questions


def _parquet_rows(data: bytes, where: str) -> list[dict[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        return list(parquet.read_table(pyarrow.BufferReader(data)).to_pylist())
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise QuestionError(
            f"the parquet file is damaged: {error}", where=where, remedy="download it again"
        ) from error


def _expected(container: Container, kind: str, splits: set[str]) -> dict[tuple[str, str], int]:
    if kind != "ceval-lab":
        return _official(load_subjects("cmmlu" if kind == "cmmlu" else "ceval"), splits)
    name = next((name for name in container.names if PurePosixPath(name).name == _SET), None)
    if name is None:
        raise QuestionError(
            f"there is no {_SET}", where=str(container.path), remedy="read it as kind 'ceval', or copy it too"
        )
    where = container.where(name)
    try:
        stated = json.loads(decode(container.read(name), where))
        counts = stated["questions_per_subject"]
        subjects = [find_subject(key, "ceval", where=where).key for key in stated["subjects"]]
        numbers = {split: int(count) for split, count in counts.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise QuestionError(
            f"{_SET} does not say which subjects there are and how many questions: {error!r}",
            where=where,
            remedy="restore it from the project",
        ) from error
    return {(key, split): n for key in subjects for split, n in numbers.items() if split in splits}


def _official(subjects: Mapping[str, Subject], splits: set[str]) -> dict[tuple[str, str], int]:
    return {
        (key, split): count
        for key, subject in subjects.items()
        for split, count in subject.counts.items()
        if split in splits
    }


def _finished(kind: str, questions: list[Question], expected: dict[tuple[str, str], int]) -> QuestionSet:
    refuse_repeated_ids(questions)
    least = ("test",) if kind == "cmmlu" else ()
    return QuestionSet(kind, tuple(questions), shortfalls(questions, expected, least=least))
