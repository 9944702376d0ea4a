"""Every local link in a document or a notebook leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from chinese_llama_lab.course.drift import read_notebook

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {".venv", "build", ".git", "node_modules", ".ipynb_checkpoints", "dl", ".pytest_cache"}
# [text](target), ![text](target "title") and <img src="target">.
LINK = re.compile(r"\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def links(markdown: str) -> Iterator[str]:
    for match in LINK.finditer(CODE.sub("", markdown)):
        yield match[1] or match[2]


def headings(markdown: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    found = set()
    for title in re.findall(r"^#{1,6} +(.+?) *$", markdown, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", title.lower())
        found.add(plain.replace(" ", "-"))
    return found


def markdown_of(path: Path) -> str:
    if path.suffix == ".ipynb":
        cells = read_notebook(path).cells
        return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return path.read_text(encoding="utf-8")


def broken(path: Path) -> list[str]:
    found = []
    for link in links(markdown_of(path)):
        if re.match(r"[a-z][a-z0-9+.-]*:|//", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists():
            found.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in headings(markdown_of(target)):
            found.append(f"{link}: no such heading")
    return found


def documents() -> list[Path]:
    found = [*ROOT.rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    return sorted(path for path in found if not SKIPPED & set(path.relative_to(ROOT).parts))


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_local_links_lead_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    (tmp_path / "b.md").write_text("# One two: 三\n", encoding="utf-8")
    page.write_text(
        "[ok](b.md) [ok](b.md#one-two-三) [ok](https://example.org/x) [ok](#here) `[code](no.md)`\n# Here\n"
        '[bad](c.md) [bad](b.md#three) ![bad](p%20q.png "t") <img src="no.svg">',
        encoding="utf-8",
    )
    assert broken(page) == [
        "c.md: no such file",
        "b.md#three: no such heading",
        "p%20q.png: no such file",
        "no.svg: no such file",
    ]
