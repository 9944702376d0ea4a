"""New words of a notebook without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from chinese_llama_lab.course.build import build
from chinese_llama_lab.course.chapters import Chapter
from chinese_llama_lab.course.drift import drift, read_notebook
from chinese_llama_lab.course.words import take_words
from chinese_llama_lab.errors import CourseError

SOURCE = """# %% [markdown]
# # Toy

# %%
import time
print(time.time_ns())

# %% [markdown]
# The end.
"""


@pytest.fixture
def chapter(tmp_path: Path) -> Chapter:
    source = tmp_path / "notebooks" / "source" / "90_toy.py"
    source.parent.mkdir(parents=True)
    source.write_text(SOURCE, encoding="utf-8")
    made = Chapter("90", "90_toy", source, tmp_path / "notebooks" / "90_toy.ipynb")
    build(made, results=tmp_path / "results")
    return made


def test_words_change_and_what_was_measured_stays(chapter: Chapter) -> None:
    before = read_notebook(chapter.notebook)
    text = chapter.notebook.read_text(encoding="utf-8")
    assert not take_words(chapter) and chapter.notebook.read_text(encoding="utf-8") == text
    changed = SOURCE.replace("The end.", "The end, said otherwise.") + "\n# %% [markdown]\n# One more cell.\n"
    chapter.source.write_text(changed, encoding="utf-8")
    assert drift(chapter.source, chapter.notebook)
    assert take_words(chapter)
    assert drift(chapter.source, chapter.notebook) == []
    after = read_notebook(chapter.notebook)
    assert [cell.source for cell in after.cells if cell.cell_type == "markdown"] == [
        "# Toy",
        "The end, said otherwise.",
        "One more cell.",
    ]
    assert after.cells[1] == before.cells[1]  # a time that another run would not have printed


def test_code_that_changed_is_refused(chapter: Chapter) -> None:
    text = chapter.notebook.read_text(encoding="utf-8")
    chapter.source.write_text(SOURCE.replace("time_ns()", "time_ns() + 1"), encoding="utf-8")
    with pytest.raises(CourseError, match="the code of 90_toy has changed"):
        take_words(chapter)
    assert chapter.notebook.read_text(encoding="utf-8") == text
