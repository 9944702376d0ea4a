"""New words for a committed notebook whose code is as it was: nothing is run, what was measured stays."""

from __future__ import annotations

from chinese_llama_lab.course.build import OURS, write_notebook
from chinese_llama_lab.course.chapters import Chapter, read_source, source_hash
from chinese_llama_lab.course.drift import cell_differences, read_notebook
from chinese_llama_lab.errors import CourseError


def take_words(chapter: Chapter) -> bool:
    """Write the source's text cells (and its solutions' hash) into the committed notebook.

    Returns: whether anything changed.

    Raises: CourseError: a cell of code differs, so that its output would not be its own; or the product holds
        what must not be committed.
    """
    source, notebook = read_source(chapter.source), read_notebook(chapter.notebook)
    before = chapter.notebook.read_text(encoding="utf-8")
    executed, wanted = (
        [cell for cell in cells if cell.cell_type == "code"] for cells in (notebook.cells, source.cells)
    )
    if cell_differences(wanted, executed):
        raise CourseError(
            f"the code of {chapter.name} has changed, not its words alone",
            where=str(chapter.source),
            remedy=f"build it: chinese-llama-lab notebooks {chapter.number}",
        )
    outputs = iter(executed)
    notebook.cells = [next(outputs) if cell.cell_type == "code" else cell for cell in source.cells]
    notebook.metadata[OURS]["source_sha256"] = source_hash(chapter.source)
    return write_notebook(chapter, notebook) != before
