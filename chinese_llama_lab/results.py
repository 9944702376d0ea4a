"""Results on disk: one CSV an experiment, with where each came from.

`save("01_fertility", rows, …)` writes `01_fertility.csv` and, beside it, `01_fertility.json` with the
provenance: seed, versions, hardware, date. Readers' runs write under `build/results/PROFILE`, so that the
checkout stays clean; only `make notebooks` (which sets `LAB_RESULTS_DIR`) renews the committed `results/`.
"""

from __future__ import annotations

import csv
import datetime
import html
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from chinese_llama_lab.errors import ResultError
from chinese_llama_lab.paths import atomic_file, build_dir, committed_results_dir
from chinese_llama_lab.profiles import current_profile

_VERSIONS = (
    "torch",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "tiktoken",
    "numpy",
    "peft",
    "bitsandbytes",
)


@dataclass(frozen=True)
class Table:
    """Rows of one result, shown as a table; values are text, as the CSV holds them."""

    name: str
    rows: tuple[dict[str, str], ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return list(self.rows[0]) if self.rows else []

    def only(self, *columns: str, **equal: str) -> Table:
        """Some columns (all, if none is named), and the rows whose values are as given."""
        kept = [row for row in self.rows if all(row.get(key) == value for key, value in equal.items())]
        chosen = columns or tuple(self.columns)
        return Table(self.name, tuple({c: row[c] for c in chosen} for row in kept), self.provenance)

    def __repr__(self) -> str:
        cells = [self.columns, *([row[c] for c in self.columns] for row in self.rows)]
        widths = [max(len(row[place]) for row in cells) for place in range(len(self.columns))]
        lines = ("  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in cells)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(row[c])}</td>" for c in self.columns) + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def results_dir() -> Path:
    """Where this run writes: `LAB_RESULTS_DIR`, else `build/results/PROFILE`."""
    override = os.environ.get("LAB_RESULTS_DIR")
    return Path(override) if override else build_dir() / "results" / current_profile().name


def provenance(**extra: Any) -> dict[str, Any]:
    """What a number needs beside it: profile, versions, processor, date, and what the caller adds."""
    from chinese_llama_lab.machine import memory_bytes, processor_name, usable_cores

    versions = {}
    for package in _VERSIONS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "profile": current_profile().name,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": versions,
        "hardware": {
            "processor": processor_name(),
            "cores": usable_cores(),
            "memory_gib": round(memory_bytes() / 2**30, 1),
        },
        **extra,
    }


def save(
    name: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    seed: int | None = None,
    model: str | None = None,
    **extra: Any,
) -> Table:
    """Write one result with its provenance; both files move into place whole.

    Args:
        name: such as `01_fertility`; the file names without suffix.
        rows: mappings with the same keys.
        seed, model, extra: kept in the provenance.

    Raises:
        ResultError: no rows, rows with different columns, or a NaN.
    """
    listed = [dict(row) for row in rows]
    if not listed:
        raise ResultError(f"result {name!r} has no rows", remedy="write nothing, or the rows")
    columns = list(listed[0])
    for number, row in enumerate(listed):
        if list(row) != columns:
            raise ResultError(
                f"row {number} of result {name!r} has columns {list(row)}, the first has {columns}",
                remedy="give every row the same columns",
            )
        bad = [key for key, value in row.items() if isinstance(value, float) and value != value]
        if bad:
            raise ResultError(f"row {number} of result {name!r} has no number in {', '.join(bad)} (NaN)")
    origin = provenance(seed=seed, model=model, **extra)
    folder = results_dir()
    with atomic_file(folder / f"{name}.csv") as path, path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)
    with atomic_file(folder / f"{name}.json") as path:
        path.write_text(json.dumps(origin, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return load(name)


def table(name: str, rows: Iterable[Mapping[str, Any]]) -> Table:
    """Rows that were just computed, shown as a table; nothing is written."""
    return Table(name, tuple({key: str(value) for key, value in row.items()} for row in rows))


def read_table(path: Path) -> Table:
    """A CSV file as a table.

    Raises:
        ResultError: no such file, not UTF-8, or a row with more or fewer cells than the head.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultError(
            f"the table cannot be read: {error}", where=str(path), remedy="restore the file"
        ) from error
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ResultError(
                "a row has not as many cells as the head",
                where=f"{path}, row {number}",
                remedy="restore the file, or quote cells that hold a comma",
            )
    return Table(path.stem, tuple(rows))


def load(name: str) -> Table:
    """A result: this run's own if there is one, else the committed one.

    Raises:
        ResultError: neither is there (what results exist is said), or the file is damaged.
    """
    folders: Sequence[Path] = (results_dir(), committed_results_dir())
    for folder in folders:
        path = folder / f"{name}.csv"
        if not path.is_file():
            continue
        origin = path.with_suffix(".json")
        try:
            known = json.loads(origin.read_text(encoding="utf-8")) if origin.is_file() else {}
        except ValueError as error:  # not JSON, or not UTF-8
            raise ResultError(
                f"the provenance cannot be read: {error}",
                where=str(origin),
                remedy="run its notebook again, or restore the file",
            ) from error
        return replace(read_table(path), provenance=known)
    there = sorted({path.stem for folder in folders for path in folder.glob("*.csv")})
    raise ResultError(
        f"there is no result called {name!r}",
        where=" or ".join(str(folder) for folder in folders),
        remedy=f"run its notebook first; there are: {', '.join(there) or 'none yet'}",
    )
