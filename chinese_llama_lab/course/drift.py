"""How a committed notebook differs from its source, and from the template that every chapter follows."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from chinese_llama_lab.course import clean
from chinese_llama_lab.course.build import OURS, PROFILE, is_exercise
from chinese_llama_lab.course.chapters import Chapter, cell_tags, read_source, source_hash
from chinese_llama_lab.errors import CourseError

LONGEST_CELL = 25
ALTERNATIVE = "*Alternative text:*"
_REBUILD = "run `make notebooks`"


def read_notebook(path: Path) -> Any:
    """A notebook file.

    Raises:
        CourseError: if it is missing or no notebook.
    """
    import nbformat

    try:
        return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    except FileNotFoundError:
        raise CourseError("there is no such notebook", where=str(path), remedy=_REBUILD) from None
    except Exception as error:  # nbformat raises several kinds for a damaged file
        raise CourseError(
            f"this is no readable notebook: {type(error).__name__}", where=str(path), remedy=_REBUILD
        ) from error


def drift(source: Path, notebook: Path) -> list[str]:
    """Every difference between a source and its committed notebook, in words; empty if they agree."""
    if not source.is_file():
        return [f"{notebook.name} has no source {source.name} in {source.parent.name}/"]
    if not notebook.is_file():
        return [f"{notebook.name} is missing: {_REBUILD}"]
    wanted, found = read_source(source), read_notebook(notebook)
    differences = cell_differences(wanted.cells, found.cells)
    ours = found.metadata.get(OURS, {})
    if ours.get("source_sha256") != source_hash(source) and not differences:
        differences.append("the source has changed since (in a comment, or a solution)")
    if ours.get("profile") != PROFILE:
        differences.append(f"it was built in profile {ours.get('profile')!r}, not {PROFILE!r}")
    for number, cell in enumerate(found.cells, 1):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            differences.append(f"cell {number} was not executed")
    if not any(cell.get("outputs") for cell in found.cells):
        differences.append("it has no outputs at all")
    return differences


def cell_differences(wanted: list[Any], found: list[Any]) -> list[str]:
    """How cells differ in kind, text or tags, in words."""

    def identity(cell: Any) -> tuple[str, str, tuple[str, ...]]:
        return cell.cell_type, cell.source, tuple(cell_tags(cell))

    differences = []
    matcher = difflib.SequenceMatcher(
        None, [identity(c) for c in wanted], [identity(c) for c in found], autojunk=False
    )
    for operation, a, b, c, d in matcher.get_opcodes():
        if operation == "replace":
            for i in range(min(b - a, d - c)):
                new, old = _first(found[c + i]), _first(wanted[a + i])
                differences.append(f"cell {c + i + 1} was changed: {new}; the source has {old}")
            a, c = a + min(b - a, d - c), c + min(b - a, d - c)
        if operation != "equal":
            differences += [f"a cell of the source is missing: {_first(cell)}" for cell in wanted[a:b]]
            differences += [
                f"cell {c + i + 1} is not in the source: {_first(cell)}" for i, cell in enumerate(found[c:d])
            ]
    return differences


def _first(cell: Any) -> str:
    line = next((line for line in cell.source.splitlines() if line.strip()), "")
    return f"{cell.cell_type} {line[:60]!r}"


def faults(notebook: Path) -> list[str]:
    """What must not be in a committed notebook: see `clean`."""
    return clean.faults(read_notebook(notebook), size=notebook.stat().st_size)


def template_faults(chapter: Chapter, *, following: Chapter | None) -> list[str]:
    """How a notebook departs from the template: headings, setup, cell lengths, plots, exercises."""
    cells = read_notebook(chapter.notebook).cells
    found = _heading_faults(cells)
    if not any(c.cell_type == "code" and re.search(r"\bsetup\(", c.source) for c in cells):
        found.append("no cell calls lab.setup(…)")
    for number, cell in enumerate(cells, 1):
        lines = len(cell.source.strip().splitlines())
        if cell.cell_type == "code" and lines > LONGEST_CELL:
            found.append(f"code cell {number} has {lines} lines, more than {LONGEST_CELL}")
        after = cells[number].source.lstrip() if number < len(cells) else ""
        if has_plot(cell) and not after.startswith(ALTERNATIVE):
            found.append(f"the plot of cell {number} has no cell beginning {ALTERNATIVE!r} behind it")
    exercises = sum(1 for cell in cells if cell.cell_type == "code" and is_exercise(cell.source))
    if int(chapter.number) >= 1 and exercises < 3:
        found.append(f"it has {exercises} exercises, fewer than 3")
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    if following is not None and f"({following.name}.ipynb)" not in text:
        found.append(f"no link to the next notebook, {following.name}.ipynb")
    return found


def has_plot(cell: Any) -> bool:
    """Whether a cell shows a picture."""
    return any(
        mime.startswith("image/") for output in cell.get("outputs", []) for mime in output.get("data", {})
    )


def _heading_faults(cells: list[Any]) -> list[str]:
    found = []
    first = cells[0].source if cells and cells[0].cell_type == "markdown" else ""
    lines = [line for line in first.splitlines() if line.strip()]
    if not lines or not lines[0].startswith("# "):
        found.append("the first cell does not begin with a title (`# …`)")
    elif len(lines) < 2 or not re.search(r"[?？]", lines[1]):
        found.append("under the title there is no sentence that asks the chapter's question")
    headings = [
        match[1].strip()
        for cell in cells
        if cell.cell_type == "markdown"
        for match in re.finditer(r"^#{2,3} +(.+)$", cell.source, re.MULTILINE)
    ]
    wanted = ["What you will be able to do", "What we measured", "What can go wrong", "Where this came from"]
    places = []
    for title in wanted:
        place = next((i for i, h in enumerate(headings) if h.casefold().startswith(title.casefold())), None)
        if place is None:
            found.append(f"there is no section “{title}”")
        else:
            places.append(place)
    if places != sorted(places):
        found.append(f"these sections stand in another order than: {', '.join(wanted)}")
    if not any(re.match(r"1[.\s]", heading) for heading in headings):
        found.append("no section is numbered (`## 1. …`)")
    return found
