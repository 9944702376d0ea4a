"""From a claim to the figures that bear on it: `results/NAME.csv#column=value&column=value:column`.

Before `#` stands a file of the committed `results/`, before `:` the cells that pick out one row, then the
column whose cell is meant. Several are joined by ` | `. Where a name or value has one of `%`, `&`, `=`, `:`,
`#`, `|` in it, it is percent-encoded as in a web address (`%3A` for a colon).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from chinese_llama_lab.claims.errors import ClaimError
from chinese_llama_lab.paths import committed_results_dir
from chinese_llama_lab.results import read_table

SEPARATOR = " | "
_SYNTAX = "write results/NAME.csv#column=value&column=value:column, several joined by ' | '"
# `[^…]` leaves out what separates, so that each text can be read in one way only.
_PART = re.compile(r"results/(?P<name>[A-Za-z0-9_-]+)\.csv#(?P<row>[^#:|]+):(?P<column>[^#:|&=]+)")
_CELL = re.compile(r"(?P<column>[^&=]+)=(?P<value>[^&=]+)")
_BARE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True)
class Part:
    """One figure.

    Attributes:
        text: as written. name: of the result, without suffix.
        row: (column, value) pairs that pick out the row. column: where the figure stands.
    """

    text: str
    name: str
    row: tuple[tuple[str, str], ...]
    column: str


def parse(pointer: str) -> tuple[Part, ...]:
    """The parts of a pointer; files are not looked at.

    Raises: ClaimError: another syntax.
    """
    return tuple(_part(text) for text in pointer.split(SEPARATOR))


def _part(text: str) -> Part:
    found = _PART.fullmatch(text)
    cells = [_CELL.fullmatch(cell) for cell in found["row"].split("&")] if found else []
    if found is None or None in cells or _BARE_PERCENT.search(text) or text != text.strip():
        raise ClaimError(f"{text!r} is no pointer to a result", where="pointer", remedy=_SYNTAX)
    row = tuple((unquote(cell["column"]), unquote(cell["value"])) for cell in cells if cell is not None)
    return Part(text, found["name"], row, unquote(found["column"]))


def resolve(pointer: str, folder: Path | None = None) -> tuple[str, ...]:
    """The figures that a pointer names, as text, one for each part.

    Args:
        pointer: see the module. folder: with the CSV files (default: the committed `results/`).

    Raises:
        ClaimError: another syntax, no such file, column or row, more than one such row, or an empty cell.
        ResultError: the file is damaged.
    """
    return tuple(_value(part, folder or committed_results_dir()) for part in parse(pointer))


def _value(part: Part, folder: Path) -> str:
    path = folder / f"{part.name}.csv"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in folder.glob("*.csv"))) or "none"
        raise ClaimError(
            f"there is no result {part.name!r}",
            where=part.text,
            remedy=f"make it by its notebook or benchmark, or point to another; there are: {there}",
        )
    rows = read_table(path).rows
    columns = list(rows[0]) if rows else []
    for column in (part.column, *(name for name, _ in part.row)):
        if column not in columns:
            raise ClaimError(
                f"{path.name} has no column {column!r}",
                where=part.text,
                remedy=f"use one of: {', '.join(columns) or 'the file has no rows'}",
            )
    picked = [row for row in rows if all(row[column] == value for column, value in part.row)]
    if len(picked) != 1:
        asked = " and ".join(f"{column} = {value!r}" for column, value in part.row)
        first = part.row[0][0]
        known = ", ".join(dict.fromkeys(row[first] for row in rows))
        raise ClaimError(
            f"{len(picked)} rows of {path.name} have {asked}, not one",
            where=part.text,
            remedy=f"name the cells of one row; {first} is one of: {known}",
        )
    value = picked[0][part.column]
    if not value:
        raise ClaimError(
            f"{part.column!r} is empty in that row of {path.name}",
            where=part.text,
            remedy="point to a cell that holds a figure",
        )
    return value
