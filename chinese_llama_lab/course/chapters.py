"""The chapters there are, and the reader's notebook that a source stands for.

A source is a py:percent file. Tags on its cells decide who sees them:

    # %% tags=["solution"]          a right answer to the exercise above: teachers and tests only
    # %% tags=["wrong-solution"]    an instructive wrong answer: tests only
    # %% tags=["chapter-card"]      the cell whose last value is `lab.chapter_card("01")`
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinese_llama_lab.errors import CourseError
from chinese_llama_lab.paths import repository_root

SOLUTION = "solution"
WRONG_SOLUTION = "wrong-solution"
CARD = "chapter-card"
_NAME = re.compile(r"(\d\d)_[a-z0-9_]+")

# The notebook must open anywhere: the plain name every Jupyter knows, and no version of this machine.
NOTEBOOK_METADATA: dict[str, Any] = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}


@dataclass(frozen=True)
class Chapter:
    """One chapter: its number "01", its name "01_tokenization_efficiency", its two files."""

    number: str
    name: str
    source: Path
    notebook: Path


def notebooks_dir() -> Path:
    """`notebooks/` of the checkout.

    Raises:
        CourseError: if the package is not installed from a checkout.
    """
    root = repository_root()
    if root is None:
        raise CourseError(
            "the notebooks are not part of the installed package",
            where="chinese_llama_lab",
            remedy="clone the repository and run `make course` in it",
        )
    return root / "notebooks"


def chapters(folder: Path) -> list[Chapter]:
    """Every chapter that has a source or a notebook in `folder`, in order.

    Raises:
        CourseError: on a file whose name is not NN_name, or two chapters of one number.
    """
    names = {path.stem for path in folder.glob("*.ipynb")}
    names |= {path.stem for path in (folder / "source").glob("*.py")}
    found: list[Chapter] = []
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None:
            raise CourseError(
                f"{name!r} is no name for a notebook",
                where=str(folder),
                remedy="name it NN_name in small letters, such as 01_tokenization_efficiency",
            )
        if found and found[-1].number == match[1]:
            raise CourseError(
                f"two chapters have the number {match[1]}: {found[-1].name} and {name}",
                where=str(folder),
                remedy="give one of them another number",
            )
        paths = folder / "source" / f"{name}.py", folder / f"{name}.ipynb"
        found.append(Chapter(match[1], name, *paths))
    return found


def select(all_chapters: list[Chapter], wanted: list[str]) -> list[Chapter]:
    """The chapters named by number ("1", "01") or name; all of them if nothing is wanted.

    Raises:
        CourseError: on a name that is no chapter; the message lists them.
    """
    if not wanted:
        return all_chapters
    chosen = set()
    for text in wanted:
        key = text.zfill(2) if text.isdigit() else text.removesuffix(".ipynb")
        matching = {c.name for c in all_chapters if key in (c.number, c.name)}
        if not matching:
            raise CourseError(
                f"there is no chapter {text!r}; there are {', '.join(c.number for c in all_chapters)}",
                remedy="name chapters by number, such as 01",
            )
        chosen |= matching
    return [chapter for chapter in all_chapters if chapter.name in chosen]


def source_hash(source: Path) -> str:
    """SHA-256 of a source, the same whether the checkout has LF or CRLF line ends."""
    return hashlib.sha256(source.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def cell_tags(cell: Any) -> list[str]:
    """The tags of a cell, an empty list if it has none."""
    return list(cell.get("metadata", {}).get("tags", []))


def read_source(source: Path, *, drop: tuple[str, ...] = (SOLUTION, WRONG_SOLUTION)) -> Any:
    """The notebook a source stands for, without outputs and without the cells tagged with one of `drop`.

    Raises:
        CourseError: if the file cannot be read, or is empty.
    """
    import jupytext
    import nbformat

    try:
        text = source.read_text(encoding="utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CourseError(
            f"cannot read the source: {error}", where=str(source), remedy="save it as UTF-8"
        ) from error
    parsed = jupytext.reads(text, fmt="py:percent")
    cells = []
    seen: Counter[str] = Counter()
    for cell in parsed.cells:
        tags = cell_tags(cell)
        if set(tags) & set(drop) or not cell.source.strip():
            continue
        kind = cell.cell_type
        make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}.get(
            kind, nbformat.v4.new_raw_cell
        )
        # jupytext notes the layout of the text file in the metadata; only the tags mean anything here.
        metadata = {"tags": tags} if tags else {}
        digest = hashlib.sha256(f"{kind}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] += 1
        # From the text alone, not the position: inserting a cell leaves every other id as it was.
        identifier = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        cells.append(make(source=cell.source, metadata=metadata, id=identifier))
    if not cells:
        raise CourseError("the source has no cells", where=str(source), remedy="start cells with `# %%`")
    header = {key: dict(value) for key, value in NOTEBOOK_METADATA.items()}
    return nbformat.v4.new_notebook(cells=cells, metadata=header)
