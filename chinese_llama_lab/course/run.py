"""Walk through the course on the reader's machine; go on where it stopped."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from chinese_llama_lab.course import records
from chinese_llama_lab.course.build import failed, serialize
from chinese_llama_lab.course.chapters import Chapter
from chinese_llama_lab.course.drift import read_notebook
from chinese_llama_lab.course.execute import Run, execute
from chinese_llama_lab.course.html import write_html, write_index
from chinese_llama_lab.paths import atomic_file

STATE = "state.json"


class Progress:
    """One line a notebook: rewritten in place on a terminal, written once where it goes to a file."""

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self.name = name
        self.stream = stream or sys.stdout
        self._live = self.stream.isatty()

    def line(self, run: Run, note: str = "") -> str:
        """name, cells done, time, peak memory."""
        minutes, seconds = divmod(round(run.seconds), 60)
        cells = f"{run.done:>3}/{run.total} cells"
        return f"{self.name:<34} {cells}  {minutes:>3}:{seconds:02}  {run.peak_mib / 1024:>5.2f} GiB{note}"

    def update(self, run: Run) -> None:
        """Show how far it is, on a terminal only."""
        if self._live:
            self.stream.write(f"\r{self.line(run)}\x1b[K")
            self.stream.flush()

    def finish(self, run: Run, note: str = "") -> None:
        """The final state of the line."""
        self.stream.write(("\r" if self._live else "") + self.line(run, note))
        self.stream.write("\x1b[K\n" if self._live else "\n")
        self.stream.flush()


def run_course(
    chosen: list[Chapter],
    *,
    profile: str,
    output: Path,
    results: Path,
    fresh: bool = False,
    cell_timeout: float | None = None,
    package: Path | None = None,
    stream: TextIO | None = None,
) -> list[Run]:
    """Run the chapters in order into `output`: an executed copy and a web page each.

    A chapter that was run before in the same profile, with the same notebook, package, data and library
    versions, is not run again unless `fresh`.

    Args:
        results: the folder that the notebooks write their results to.
        package: the package whose text decides whether a chapter is out of date; this one by default.

    Raises:
        CourseError: at the first cell that fails. What was executed up to there is kept in `output`.
    """
    shared = surroundings(package or Path(__file__).resolve().parent.parent, profile)
    state = _load(output / STATE)
    runs: list[Run] = []
    for chapter in chosen:
        key = hashlib.sha256(f"{shared}\n{_code(chapter)}".encode()).hexdigest()
        target, page = output / f"{chapter.name}.ipynb", output / f"{chapter.name}.html"
        progress = Progress(chapter.name, stream)
        old = state.get(chapter.name, {})
        if not fresh and old.get("key") == key and target.is_file() and page.is_file():
            done = Run(old["cells"], old["cells"], old["seconds"], old["peak_mib"])
            progress.finish(done, "  done before, unchanged")
            runs.append(done)
            continue
        state.pop(chapter.name, None)
        _save(output / STATE, state)
        run = _run_one(chapter, profile, target, results, cell_timeout, progress.update)
        if run.failure:
            progress.finish(run, "  FAILED")
            raise failed(chapter.notebook, run.failure)
        write_html(read_notebook(target), page)
        records.store(results, records.as_row(chapter.number, profile, run))
        state[chapter.name] = {
            "key": key,
            "cells": run.total,
            "seconds": run.seconds,
            "peak_mib": run.peak_mib,
        }
        _save(output / STATE, state)
        progress.finish(run)
        runs.append(run)
    pages = sorted(output.glob("[0-9][0-9]_*.html"))
    write_index([(page.name, title(page.with_suffix(".ipynb"))) for page in pages], output / "index.html")
    return runs


def _run_one(
    chapter: Chapter,
    profile: str,
    target: Path,
    results: Path,
    cell_timeout: float | None,
    progress: Callable[[Run], None],
) -> Run:
    notebook = read_notebook(chapter.notebook)
    results.mkdir(parents=True, exist_ok=True)
    environment = {"LAB_PROFILE": profile, "LAB_RESULTS_DIR": str(results)}
    try:
        return execute(
            notebook,
            folder=chapter.notebook.parent,
            environment=environment,
            cell_timeout=cell_timeout,
            progress=progress,
        )
    finally:  # the part that was executed is worth keeping, after Ctrl-C too
        with atomic_file(target) as temporary:
            temporary.write_text(serialize(notebook), encoding="utf-8", newline="\n")


def surroundings(package: Path, profile: str) -> str:
    """A hash of all that a result depends on beside the notebook: package, data, profile, versions."""
    digest = hashlib.sha256(f"{profile}\n{platform.python_version()}\n".encode())
    for version in sorted(_installed()):
        digest.update(f"{version}\n".encode())
    for path in _files([package, package.parent / "data"]):
        digest.update(f"{path.relative_to(package.parent).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _installed() -> set[str]:
    return {f"{dist.metadata['Name']}=={dist.version}" for dist in metadata.distributions()}


def _files(folders: Iterable[Path]) -> list[Path]:
    kinds = {".py", ".toml", ".csv", ".json", ".jsonl", ".txt", ".md"}
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in kinds and "__pycache__" not in path.parts
    )


def _code(chapter: Chapter) -> str:
    # The outputs that were committed do not matter: they are made anew.
    cells = read_notebook(chapter.notebook).cells
    return json.dumps([[cell.cell_type, cell.source] for cell in cells], ensure_ascii=False)


def title(notebook: Path) -> str:
    """The first heading of a notebook, or its name."""
    if notebook.is_file():
        for cell in read_notebook(notebook).cells:
            for line in cell.source.splitlines():
                if cell.cell_type == "markdown" and line.startswith("# "):
                    return str(line[2:].strip())
    return notebook.stem


def _load(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: everything is run again, nothing is lost
        return {}
    return state if isinstance(state, dict) else {}


def _save(path: Path, state: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")
