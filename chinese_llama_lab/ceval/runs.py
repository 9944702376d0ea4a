"""A run in its folder: `run.json` says what was asked of which model, `rows.jsonl` what was answered.

Rows are written batch by batch, whole lines at a time. A run that was stopped, or killed, goes on: a torn
last line is dropped, what is there is not asked again, and at the end the rows stand in the order of the
questions. Of several processes each writes a file of its own (`rows.1.jsonl`, …), and the first joins them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from chinese_llama_lab.ceval.asked import Key
from chinese_llama_lab.ceval.errors import RunError
from chinese_llama_lab.ceval.processes import Processes
from chinese_llama_lab.paths import atomic_file, remove_leftovers, write_json

ABOUT, ROWS, LOCK = "run.json", "rows.jsonl", ".lock"
_PART = re.compile(r"rows\.\d+\.jsonl")
# Where it lies and when it began does not change what is scored.
PASSING = ("date", "model", "question_set")
# How many questions at a time moves logits by rounding alone, and a run that ran out of memory has to go on.
BUDGET, BUDGETS_BEFORE = ("batch", "memory_gib"), "budgets_before"
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What was scored.

    Attributes:
        rows: one a question, in the order of the questions: `subject`, `split`, `number` (in its subject and
            split, from 0), `id`, `answer` (the right letter or None), `predicted` (or None), `shots` (really
            given), `tokens` (that were read), `prompt_sha256`; by letters `logits`, `tied`, `letters` (place
            in the settings' list of letter ids); by generation `text`, `rule`.
        settings: what the scores depend on, as in `run.json`.
        out: the folder, or None.
    """

    rows: tuple[Row, ...]
    settings: Mapping[str, Any]
    out: Path | None = None

    @property
    def complete(self) -> bool:
        """Whether every question has its row."""
        return len(self.rows) == self.settings["questions"]

    @property
    def accuracy(self) -> float | None:
        """Share of right answers by question, of those whose right answer is known; None without any."""
        judged = [row for row in self.rows if row["answer"] is not None]
        return sum(row["predicted"] == row["answer"] for row in judged) / len(judged) if judged else None


def read_run(folder: Path | str) -> Run:
    """A run from its folder, whether complete or not.

    Raises: RunError: there is no run, or it is damaged.
    """
    folder = Path(folder)
    settings = _settings(folder)
    if settings is None:
        raise RunError("there is no run", where=str(folder), remedy="give the folder that `score` wrote")
    return Run(tuple(_all_rows(folder)), settings, folder)


class RunFolder:
    """A run while it is being written.

    Args:
        out: the folder; new, empty, or of this run. None keeps rows in memory alone.
        settings: what makes it this run.
        prompts: key → sha256 of its prompt, for each question in order.
        resume: go on with what is there. `batch` and `memory_gib` may be others; those before are kept.
        processes: who takes part.

    Raises: RunError: the folder holds a run and `resume` is False, another run, rows that are not of this
        one, something else, or is being written by somebody else.
    """

    def __init__(
        self,
        out: Path | None,
        settings: Mapping[str, Any],
        prompts: Mapping[Key, str],
        *,
        resume: bool,
        processes: Processes,
    ) -> None:
        self.out, self.settings, self.processes = out, settings, processes
        self._order = {key: place for place, key in enumerate(prompts)}
        self._new: list[Row] = []
        self._before: list[Row] = []
        self._lock: FileLock | None = None
        if out is None:
            if processes.count > 1:
                raise RunError(
                    "several processes have nowhere to meet", where="out", remedy="give a folder (--out)"
                )
            return
        self._mine = out / (ROWS if processes.main else f"rows.{processes.rank}.jsonl")
        if processes.main:
            self._lock = _take(out)
            try:
                self.settings = _claim(out, settings, resume)
                self._join(prompts)
            except BaseException:
                self.close()
                raise
        processes.wait()
        self._before = _read(out / ROWS)

    @property
    def before(self) -> tuple[Row, ...]:
        """The rows that were there when this process came."""
        return tuple(self._before)

    def write(self, rows: Iterable[Row]) -> None:
        """Rows of a batch; on disk when this returns."""
        new = list(rows)
        self._new += new
        if self.out is not None and new:
            with self._mine.open("ab") as stream:
                stream.write(b"".join(map(_line, new)))

    def finish(self) -> Run:
        """All rows in the order of the questions, on disk too."""
        if self.out is None:
            return Run(tuple(self._sorted(self._new)), self.settings)
        self.processes.wait()
        if self.processes.main:
            self._join()
        self.processes.wait()
        self.close()
        return Run(tuple(_read(self.out / ROWS)), self.settings, self.out)

    def close(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.release()

    def _join(self, prompts: Mapping[Key, str] | None = None) -> None:
        """Every process's rows into one file, in order; what a kill left is removed."""
        assert self.out is not None
        path = self.out / ROWS
        for written in (path, self.out / ABOUT):
            remove_leftovers(written)
        rows = _all_rows(self.out)
        seen: set[Key] = set()
        for row in rows:
            key = key_of(row)
            if key in seen or key not in self._order:
                raise RunError(
                    f"{key[0]}, {key[1]}, id {key[2]} "
                    + ("was answered twice" if key in seen else "is not asked in this run"),
                    where=str(path),
                    remedy="restore the folder, or score into another one",
                )
            if prompts is not None and row.get("prompt_sha256") != prompts[key]:
                raise RunError(
                    f"{key[0]}, {key[1]}, id {key[2]} was asked with another prompt",
                    where=str(path),
                    remedy="score into another folder",
                )
            seen.add(key)
        data = b"".join(map(_line, self._sorted(rows)))
        if not path.is_file() or path.read_bytes() != data:
            with atomic_file(path) as temporary:
                temporary.write_bytes(data)
        for file in _files(self.out):
            if file != path:
                file.unlink()

    def _sorted(self, rows: Sequence[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: self._order[key_of(row)])


def key_of(row: Mapping[str, Any]) -> Key:
    """Which question a row is about."""
    return row["subject"], row["split"], row["id"]


def _line(row: Row) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _files(out: Path) -> list[Path]:
    found = [path for path in sorted(out.iterdir()) if path.name == ROWS or _PART.fullmatch(path.name)]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _all_rows(out: Path) -> list[Row]:
    """The rows of all files; one that a kill left in two, between joining and removing, comes once."""
    rows: list[Row] = []
    for path in _files(out):
        before = {key_of(row): row for row in rows}
        rows += [row for row in _read(path) if before.get(key_of(row)) != row]
    return rows


def _read(path: Path) -> list[Row]:
    """The whole lines of a file; a last one without its end is left out."""
    if not path.is_file():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            key_of(row)
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"the line is no row: {line[:60]!r}",
                where=f"{path}, line {number}",
                remedy="remove the line, and its question is asked again",
            ) from error
        rows.append(row)
    return rows


def _take(out: Path) -> FileLock:
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            "somebody is scoring into this folder now", where=str(out), remedy="wait, or give another folder"
        ) from None
    return lock


def _settings(out: Path) -> Row | None:
    path = out / ABOUT
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("questions"), int):
            return found
    except ValueError:
        pass
    raise RunError(f"{ABOUT} is damaged", where=str(path), remedy="restore it, or score into another folder")


def _claim(out: Path, settings: Mapping[str, Any], resume: bool) -> Mapping[str, Any]:
    """Write what the run is, or compare it with what is there."""
    there = _settings(out)
    if there is None:
        other = [path.name for path in out.iterdir() if path.name != LOCK and not path.name.endswith(".tmp")]
        if other:
            raise RunError(
                f"the folder holds no run, and is not empty: {sorted(other)[0]}",
                where=str(out),
                remedy="give a new or empty folder",
            )
        write_json(out / ABOUT, settings)
        return settings
    if not resume:
        raise RunError(
            "the folder holds a run already",
            where=str(out),
            remedy="resume=True (--resume) goes on with it; for another run give another folder",
        )
    wanted = json.loads(json.dumps(settings))
    different = [
        f"{key} ({_short(there.get(key))} there, {_short(wanted.get(key))} now)"
        for key in dict.fromkeys([*there, *wanted])
        if key not in (*PASSING, *BUDGET, BUDGETS_BEFORE) and there.get(key) != wanted.get(key)
    ]
    if different:
        raise RunError(
            f"the folder holds another run: it differs in {', '.join(different)}",
            where=str(out / ABOUT),
            remedy="give what it was begun with, or another folder",
        )
    before, now = ({key: some.get(key) for key in BUDGET} for some in (there, wanted))
    if before != now:
        there |= now | {BUDGETS_BEFORE: [*there.get(BUDGETS_BEFORE, []), before]}
        write_json(out / ABOUT, there)
    return there


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
