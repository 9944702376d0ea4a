"""Walking through a course: one line a notebook, stop at the first failure, go on where it stopped."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from chinese_llama_lab.course import commands
from chinese_llama_lab.course.chapters import Chapter
from chinese_llama_lab.course.drift import read_notebook
from chinese_llama_lab.course.html import to_html
from chinese_llama_lab.course.run import Progress, run_course, surroundings
from chinese_llama_lab.errors import CourseError

FIRST = ["print('one', __import__('os').environ['LAB_PROFILE'])", "print('and two')"]
# Fails until the file `ready` stands beside the notebook, as something on a machine might.
SECOND = ["x = 1", "import pathlib\nassert pathlib.Path('ready').exists(), 'not ready'", "print('three')"]


class Course:
    """A toy course in a folder of its own."""

    def __init__(self, folder: Path, **texts: list[str]) -> None:
        self.notebooks, self.output = folder / "notebooks", folder / "build" / "course"
        self.results, self.package = folder / "build" / "results", folder / "package"
        for path in (self.notebooks, self.package):
            path.mkdir(parents=True)
        (self.package / "code.py").write_text("a = 1\n", encoding="utf-8")
        self.chapters = []
        for name, cells in texts.items():
            path = self.notebooks / f"{name[1:]}.ipynb"
            head = nbformat.v4.new_markdown_cell(f"# Title of {name[1:3]}\n\n[next](02_b.ipynb)")
            code = [nbformat.v4.new_code_cell(text) for text in cells]
            # A kernel that is installed nowhere: the course runs in the interpreter that runs the tests.
            metadata = {"kernelspec": {"name": "no-such-kernel", "display_name": "x", "language": "julia"}}
            nbformat.write(nbformat.v4.new_notebook(cells=[head, *code], metadata=metadata), path)
            self.chapters.append(Chapter(name[1:3], name[1:], path, path))

    def run(self, profile: str = "smoke", fresh: bool = False) -> str:
        stream = io.StringIO()
        try:
            run_course(
                self.chapters,
                profile=profile,
                output=self.output,
                results=self.results,
                package=self.package,
                fresh=fresh,
                stream=stream,
            )
        finally:
            self.printed = stream.getvalue()
        return self.printed


@pytest.fixture
def course(tmp_path: Path) -> Course:
    return Course(tmp_path, _01_a=FIRST, _02_b=SECOND)


def test_stop_at_the_first_failure_then_go_on_from_there(course: Course) -> None:
    before = {path: path.read_bytes() for path in course.notebooks.iterdir()}
    with pytest.raises(CourseError) as caught:
        course.run()
    message = str(caught.value)
    assert "02_b.ipynb stopped at code cell 2: AssertionError: not ready" in message
    assert "| import pathlib" in message
    lines = course.printed.splitlines()
    assert len(lines) == 2, "one line a notebook where the output is no terminal"
    assert "01_a" in lines[0] and "2/2 cells" in lines[0] and lines[0].endswith("GiB")
    assert "1/3 cells" in lines[1] and lines[1].endswith("FAILED")
    partial = read_notebook(course.output / "02_b.ipynb")
    assert partial.cells[2].outputs[0].ename == "AssertionError", "the partial copy is kept"
    assert not (course.output / "02_b.html").exists()

    (course.notebooks / "ready").touch()
    stamp = (course.output / "01_a.ipynb").stat().st_mtime_ns
    lines = course.run().splitlines()
    assert lines[0].endswith("done before, unchanged")
    assert "3/3 cells" in lines[1] and lines[1].endswith("GiB")
    assert (course.output / "01_a.ipynb").stat().st_mtime_ns == stamp
    assert [line.endswith("unchanged") for line in course.run().splitlines()] == [True, True]

    (course.notebooks / "ready").unlink()
    assert {path: path.read_bytes() for path in course.notebooks.iterdir()} == before
    rows = (course.results / "course_runs.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["01", "smoke"], ["02", "smoke"]]
    index = (course.output / "index.html").read_text(encoding="utf-8")
    assert 'href="01_a.html">Title of 01' in index and 'href="02_b.html">Title of 02' in index


def test_what_makes_a_chapter_run_again(tmp_path: Path) -> None:
    course = Course(tmp_path, _01_a=FIRST)

    def again() -> bool:
        return not course.run().strip().endswith("unchanged")

    assert again() and not again()
    notebook = course.chapters[0].notebook
    notebook.write_text(notebook.read_text(encoding="utf-8").replace("and two", "and 2"), encoding="utf-8")
    assert again() and not again()
    (course.package / "code.py").write_text("a = 2\n", encoding="utf-8")
    assert again() and not again()
    (course.output / "01_a.html").unlink()
    assert again() and not again()
    (course.output / "state.json").write_text("{broken", encoding="utf-8")
    assert again() and not again()
    assert not course.run(fresh=True).strip().endswith("unchanged")
    assert not course.run(profile="course").strip().endswith("unchanged")


def test_versions_and_profile_are_part_of_what_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = surroundings(tmp_path, "smoke")
    assert surroundings(tmp_path, "course") != before
    monkeypatch.setattr("chinese_llama_lab.course.run._installed", lambda: {"torch==0"})
    assert surroundings(tmp_path, "smoke") != before


RUNNER = """
import sys
from pathlib import Path
from chinese_llama_lab.course.chapters import Chapter
from chinese_llama_lab.course.run import run_course
folder = Path(sys.argv[1])
paths = sorted((folder / "notebooks").glob("*.ipynb"))
run_course([Chapter(p.stem[:2], p.stem, p, p) for p in paths], profile="smoke",
           output=folder / "build" / "course", results=folder / "build" / "results",
           package=folder / "package")
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a POSIX signal")
def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path: Path) -> None:
    slow = ["import pathlib, time\nif not pathlib.Path('ready').exists(): time.sleep(120)"]
    course = Course(tmp_path, _01_a=FIRST, _02_b=slow)
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(tmp_path)], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdout is not None
    assert "01_a" in process.stdout.readline()
    time.sleep(2)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    state = json.loads((course.output / "state.json").read_text(encoding="utf-8"))
    assert list(state) == ["01_a"]
    (course.notebooks / "ready").touch()
    lines = course.run().splitlines()
    assert lines[0].endswith("unchanged") and "1/1 cells" in lines[1]
    leftovers = [path.name for path in course.output.iterdir() if path.name.endswith(".tmp")]
    assert leftovers == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_line_is_rewritten_in_place(tmp_path: Path) -> None:
    course = Course(tmp_path, _01_a=["import time; time.sleep(1.2)", "1"])
    terminal = Terminal()
    run_course(
        course.chapters, profile="smoke", output=course.output, results=course.results,
        package=course.package, stream=terminal,
    )  # fmt: skip
    text = terminal.getvalue()
    assert text.count("\n") == 1 and text.count("\r") >= 3
    assert "0/2 cells" in text and "1/2 cells" in text and "2/2 cells" in text


def test_the_page_needs_no_network() -> None:
    cells = [
        nbformat.v4.new_markdown_cell("# 标题\n\n$a^2$ and $$b$$ and [next](02_b.ipynb#part)"),
        nbformat.v4.new_code_cell("1 < 2"),
    ]
    page = to_html(nbformat.v4.new_notebook(cells=cells), "01_a")
    import re

    assert re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*\"", page) == []
    assert re.findall(r"(?:@import|url\()\s*['\"]?https?:", page) == []
    assert "require(" not in page and "requirejs" not in page
    assert 'href="02_b.html#part"' in page and "标题" in page


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands.add_commands(parser.add_subparsers())
    return parser.parse_args(words)


def test_the_course_command(course: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (course.notebooks / "ready").touch()
    monkeypatch.setattr("chinese_llama_lab.course.chapters.notebooks_dir", lambda: course.notebooks)
    monkeypatch.setattr("chinese_llama_lab.paths.build_dir", lambda: tmp_path / "build")
    monkeypatch.setenv("LAB_PROFILE", "smoke")
    parsed = arguments("course", "1")
    assert parsed.handler(parsed) == 0
    assert sorted(path.name for path in course.output.iterdir()) == [
        "01_a.html", "01_a.ipynb", "index.html", "state.json"
    ]  # fmt: skip
    executed = read_notebook(course.output / "01_a.ipynb")
    assert executed.cells[1].outputs[0].text == "one smoke\n"


def test_the_notebooks_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "notebooks" / "source" / "01_a.py"
    source.parent.mkdir(parents=True)
    source.write_text("# %%\nprint('hello')\n", encoding="utf-8")
    monkeypatch.setattr("chinese_llama_lab.course.chapters.notebooks_dir", lambda: tmp_path / "notebooks")
    monkeypatch.setattr("chinese_llama_lab.paths.committed_results_dir", lambda: tmp_path / "results")
    codes = []
    for words in (["--check"], [], ["--check"], ["--stale"], ["--solutions", str(tmp_path / "s")]):
        parsed = arguments("notebooks", *words)
        codes.append(parsed.handler(parsed))
    assert codes == [1, 0, 0, 0, 0]
    printed = capsys.readouterr().out.splitlines()
    assert "01_a.ipynb is missing" in printed[0] and "1/1 cells" in printed[1]
    assert printed[2:4] == ["01_a: up to date", "01_a: up to date"]
    assert (tmp_path / "s" / "01_a.ipynb").is_file()


def test_progress_shows_cells_time_and_memory() -> None:
    from chinese_llama_lab.course.execute import Run

    line = Progress("01_a", io.StringIO()).line(Run(3, 12, 125.4, 2048))
    assert line.split() == ["01_a", "3/12", "cells", "2:05", "2.00", "GiB"]
