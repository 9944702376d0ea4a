"""The committed notebooks are those that their sources make, and follow the template."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from chinese_llama_lab.course.build import WRONG_SOLUTION, check_call, is_exercise, solution_notebook
from chinese_llama_lab.course.chapters import SOLUTION, Chapter, cell_tags, chapters, read_source
from chinese_llama_lab.course.drift import drift, faults, read_notebook, template_faults
from chinese_llama_lab.course.execute import execute

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = chapters(ROOT / "notebooks")


def _following(chapter: Chapter) -> Chapter | None:
    place = CHAPTERS.index(chapter)
    return CHAPTERS[place + 1] if place + 1 < len(CHAPTERS) else None


def each(chosen: list[Chapter] = CHAPTERS) -> Any:
    return pytest.mark.parametrize("chapter", chosen, ids=lambda chapter: chapter.name)


def _has(chapter: Chapter, tag: str) -> bool:
    cells = read_source(chapter.source, drop=()).cells if chapter.source.is_file() else []
    return any(tag in cell_tags(cell) for cell in cells)


@each()
def test_a_notebook_is_what_its_source_makes(chapter: Chapter) -> None:
    assert drift(chapter.source, chapter.notebook) == []


@each()
def test_a_notebook_holds_nothing_that_must_not_be_committed(chapter: Chapter) -> None:
    assert faults(chapter.notebook) == []


@each()
def test_a_notebook_follows_the_template(chapter: Chapter) -> None:
    assert template_faults(chapter, following=_following(chapter)) == []


@each()
def test_a_notebook_opens_in_any_jupyter(chapter: Chapter) -> None:
    metadata = read_notebook(chapter.notebook).metadata
    assert metadata.kernelspec.name == "python3"
    assert json.loads(chapter.notebook.read_text(encoding="utf-8"))["nbformat"] == 4


@each()
def test_no_notebook_gives_the_answers_away(chapter: Chapter) -> None:
    tags = {tag for cell in read_notebook(chapter.notebook).cells for tag in cell_tags(cell)}
    assert not tags & {SOLUTION, WRONG_SOLUTION}


@each()
def test_every_exercise_has_a_solution(chapter: Chapter) -> None:
    waiting = ""
    for cell in read_source(chapter.source, drop=()).cells:
        if cell.cell_type != "code":
            continue
        if is_exercise(cell.source):
            call = check_call(cell.source)
            assert not waiting, f"{waiting} has no solution cell"
            waiting = call
        elif SOLUTION in cell_tags(cell):
            waiting = ""
    assert not waiting, f"{waiting} has no solution cell"


@each([chapter for chapter in CHAPTERS if _has(chapter, SOLUTION)])
def test_solutions_are_right_and_wrong_solutions_wrong(chapter: Chapter, tmp_path: Path) -> None:
    run = execute(
        solution_notebook(chapter.source),
        folder=ROOT / "notebooks",
        environment={**os.environ, "LAB_PROFILE": "smoke", "LAB_RESULTS_DIR": str(tmp_path)},
        cell_timeout=300,
    )
    assert run.failure is None, run.failure


def test_there_is_a_course() -> None:
    if not CHAPTERS:
        pytest.skip("no notebook has been written yet")
    assert CHAPTERS[0].number == "00"
