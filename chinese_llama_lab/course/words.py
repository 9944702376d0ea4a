"""New words for a committed notebook whose code is as it was: nothing is run, what was measured stays."""

from __future__ import annotations

from typing import Any

from chinese_llama_lab.course import clean
from chinese_llama_lab.course.build import OURS, serialize
from chinese_llama_lab.course.chapters import Chapter, cell_tags, read_source, source_hash
from chinese_llama_lab.course.drift import read_notebook
from chinese_llama_lab.errors import CourseError
from chinese_llama_lab.paths import atomic_file


def take_words(chapter: Chapter) -> bool:
    """Write the source's text cells (and its solutions' hash) into the committed notebook.

    Returns: whether anything changed.

    Raises: CourseError: a cell of code differs, so that its output would not be its own; or the product holds
        what must not be committed.
    """
    source, notebook = read_source(chapter.source), read_notebook(chapter.notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    wanted = [cell for cell in source.cells if cell.cell_type == "code"]
    if [_identity(cell) for cell in wanted] != [_identity(cell) for cell in code]:
        raise CourseError(
            f"the code of {chapter.name} has changed, not its words alone",
            where=str(chapter.source),
            remedy=f"build it: chinese-llama-lab notebooks {chapter.number}",
        )
    before = serialize(notebook)
    executed = iter(code)
    notebook.cells = [next(executed) if cell.cell_type == "code" else cell for cell in source.cells]
    notebook.metadata[OURS]["source_sha256"] = source_hash(chapter.source)
    text = serialize(notebook)
    found = clean.faults(notebook, size=len(text.encode("utf-8")))
    if found:
        raise CourseError(
            f"the notebook must not be committed: {found[0]}",
            where=str(chapter.source),
            remedy="change the source; the committed notebook is as it was",
        )
    with atomic_file(chapter.notebook) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return text != before


def _identity(cell: Any) -> tuple[str, list[str]]:
    return cell.source, sorted(cell_tags(cell))
