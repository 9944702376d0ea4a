"""Make the committed notebooks from their sources: execute, clean, check, measure, write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chinese_llama_lab.course import clean, records
from chinese_llama_lab.course.chapters import (
    CARD,
    NOTEBOOK_METADATA,
    SOLUTION,
    WRONG_SOLUTION,
    Chapter,
    cell_tags,
    read_source,
    source_hash,
)
from chinese_llama_lab.course.execute import Failure, Run, execute
from chinese_llama_lab.errors import CourseError
from chinese_llama_lab.paths import atomic_file
from chinese_llama_lab.session import ChapterCard

OURS = "chinese_llama_lab"
PROFILE = "course"


def build(
    chapter: Chapter,
    *,
    results: Path,
    profile: str = PROFILE,
    cell_timeout: float | None = None,
    progress: Callable[[Run], None] | None = None,
) -> Run:
    """Execute a source and write its notebook, and its row in `results/course_runs.csv`.

    Nothing is written unless everything went well.

    Args:
        chapter: what to build.
        results: the folder that the notebook's own results and the row go to.
        profile: the profile to run in; the committed notebooks are built in `course`.
        cell_timeout: seconds a cell may take; None for no limit.
        progress: called as the run proceeds.

    Raises:
        CourseError: if a cell fails, or the product is too large or holds what must not be committed.
    """
    notebook = read_source(chapter.source)
    run = execute(
        notebook,
        folder=chapter.notebook.parent,
        environment={"LAB_PROFILE": profile, "LAB_RESULTS_DIR": str(results)},
        cell_timeout=cell_timeout,
        progress=progress,
    )
    if run.failure:
        raise failed(chapter.source, run.failure)
    clean.clean(notebook)
    # Running wrote the version of this Python into it.
    notebook.metadata["language_info"] = dict(NOTEBOOK_METADATA["language_info"])
    notebook.metadata[OURS] = {"profile": profile, "source_sha256": source_hash(chapter.source)}
    row = records.as_row(chapter.number, profile, run)
    fill_card(notebook, ChapterCard(chapter.number, row))
    write_notebook(chapter, notebook)
    records.store(results, row)
    return run


def write_notebook(chapter: Chapter, notebook: Any) -> str:
    """Write the notebook that is committed, and return its text.

    Raises: CourseError: it is too large, or holds what must not be committed; nothing is written then.
    """
    text = serialize(notebook)
    found = clean.faults(notebook, size=len(text.encode("utf-8")))
    if found:
        raise CourseError(
            f"the notebook must not be committed: {found[0]}"
            + "".join(f"\n    and: {fault}" for fault in found[1:8]),
            where=str(chapter.source),
            remedy="change the source and build again; the committed notebook is as it was",
        )
    with atomic_file(chapter.notebook) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return text


def fill_card(notebook: Any, card: ChapterCard) -> None:
    """Show in the card's cell the measurement of this very run, which ended after the cell did."""
    for cell in notebook.cells:
        if cell.cell_type != "code" or CARD not in cell_tags(cell):
            continue
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.data = {"text/plain": repr(card), "text/html": card._repr_html_()}


def serialize(notebook: Any) -> str:
    """The text of a notebook file, after a check that it is a valid notebook."""
    import nbformat

    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def write_solutions(chapter: Chapter, folder: Path) -> Path:
    """The teacher's copy: not executed, with the right answers in it and without the wrong ones."""
    notebook = read_source(chapter.source, drop=(WRONG_SOLUTION,))
    target = folder / f"{chapter.name}.ipynb"
    with atomic_file(target) as temporary:
        temporary.write_text(serialize(notebook), encoding="utf-8", newline="\n")
    return target


def solution_notebook(source: Path) -> Any:
    """The notebook that judges a source's own answers, those that are meant to be wrong first.

    A solution cell stands after the exercise cell and defines the names that the exercise's `check` takes;
    the call is repeated behind it. Right answers come last, so that the chapter goes on from them. The stubs
    themselves are left out.
    """
    import nbformat

    notebook = read_source(source, drop=())
    cells: list[Any] = []
    call, answers_from = "", 0
    for cell in notebook.cells:
        tags = set(cell_tags(cell))
        if cell.cell_type != "code":
            continue
        for answers in tags & set(_EXPECTED):
            if not call:
                raise CourseError(
                    f"a cell tagged {answers!r} stands before any exercise",
                    where=str(source),
                    remedy="put it right after the cell that ends in check(…)",
                )
            text = f"{cell.source}\n_verdict = {call}\nprint(_verdict)\n"
            text += f"assert _verdict.status == {_EXPECTED[answers]!r}, _verdict"
            judged = nbformat.v4.new_code_cell(source=text, metadata={"tags": [answers]})
            at = len(cells) if answers == SOLUTION else answers_from
            cells.insert(at, judged)
        if not tags & set(_EXPECTED):
            call = check_call(cell.source) or call
            if not check_call(cell.source):
                cells.append(cell)
            answers_from = len(cells)
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


_EXPECTED = {SOLUTION: "right", WRONG_SOLUTION: "wrong"}


def check_call(source: str) -> str:
    """The text of the `check("1.1", answer)` that a cell ends in, or an empty string."""
    import ast

    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with a magic
        return ""
    if not body or not isinstance(body[-1], ast.Expr) or not isinstance(body[-1].value, ast.Call):
        return ""
    function = body[-1].value.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return ast.unparse(body[-1].value) if name == "check" else ""


def is_exercise(source: str) -> bool:
    """Whether a cell leaves something to the reader: it ends in `check(…)` and a stub stands in it."""
    import ast

    if not check_call(source):
        return False
    return any(
        (isinstance(node, ast.Constant) and node.value is Ellipsis)
        or (isinstance(node, ast.Name) and node.id == "NotImplementedError")
        for node in ast.walk(ast.parse(source))
    )


def failed(place: Path, failure: Failure) -> CourseError:
    """The error that names the notebook, the cell, its text and what it raised."""
    lines = failure.source.strip().splitlines()
    shown = "\n".join(f"    | {line}" for line in lines[:12]) + ("\n    | …" if len(lines) > 12 else "")
    return CourseError(
        f"{place.name} stopped at code cell {failure.cell}: {failure.error}\n{shown}",
        where=f"{place}, code cell {failure.cell}",
        remedy="run `chinese-llama-lab doctor`; open the notebook at that cell with `make lab`",
    )
