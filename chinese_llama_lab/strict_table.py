"""A CSV file whose columns are fixed: read row by row, refused where it is anything else."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from chinese_llama_lab.errors import LabError


def strict_rows(
    path: Path, columns: tuple[str, ...], error: type[LabError], what: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """(row number, column → cell) of each row below the head, which is row 1.

    Args:
        path: a UTF-8 file. columns: its head, in order. error: the class to raise. what: the file is called
            so in messages, such as `ledger`.

    Raises: `error`: no such file, not UTF-8, other columns, no rows, a row with more or fewer cells.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            head, *rows = list(csv.reader(stream, strict=True)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        raise error(
            f"the {what} cannot be read: {reason}", where=str(path), remedy="restore the file, in UTF-8"
        ) from reason
    if tuple(head) != columns:
        missing = [column for column in columns if column not in head]
        unknown = [column for column in head if column not in columns]
        said = "; ".join(
            f"{which} {', '.join(map(repr, names))}"
            for which, names in (("missing:", missing), ("unknown:", unknown))
            if names
        )
        raise error(
            f"the {what} has other columns ({said or 'another order'})",
            where=f"{path}, row 1",
            remedy=f"let the head be {','.join(columns)}",
        )
    if not rows:
        raise error(f"the {what} has no rows", where=str(path), remedy="restore the file")
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(columns):
            raise error(
                f"the row has {len(cells)} cells, the head {len(columns)}",
                where=f"{path}, row {number}",
                remedy="quote cells that hold a comma; remove empty lines",
            )
        yield number, dict(zip(columns, cells, strict=True))
