"""CSV bytes to rows of text, with every fault named by file and row.

Python's csv module rather than pandas: pandas turns `NA`, `None` and `null` into NaN and `1` into a number,
and an option that is one of these words is then no longer what the question asked about.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from chinese_llama_lab.ceval.errors import QuestionError
from chinese_llama_lab.sources.textfiles import guess_encoding

_WIDE_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# A question is a few hundred characters; a field of a million is a quote that was never closed.
_FIELD_LIMIT = 1_000_000


@dataclass(frozen=True)
class Row:
    """One row: its cells by column name, and where it stands."""

    cells: dict[str, str]
    where: str


def decode(data: bytes, name: str) -> str:
    """Text of a UTF-8 file; a UTF-8 byte order mark is dropped, so that the first column keeps its name.

    Raises: QuestionError: another encoding, which is named where it can be told.
    """
    if data.startswith(_WIDE_MARKS):
        raise QuestionError(
            f"{name} is UTF-16 or UTF-32", where=name, remedy="save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        encoding = guess_encoding(data[max(0, error.start - 4096) :][:16384])
        shown = "GBK" if encoding == "gb18030" else encoding
        raise QuestionError(
            f"{name} is not UTF-8" + (f"; it looks like {shown}" if shown else ""),
            where=f"{name}, line {line}, byte {error.start}",
            remedy=f"convert it: iconv -f {encoding} -t utf-8 FILE > NEW_FILE"
            if encoding
            else "find out its encoding and convert it to UTF-8, or copy the file again",
        ) from None


def read_table(data: bytes, name: str, required: Sequence[str]) -> list[Row]:
    """The rows of a CSV file, every cell as text.

    Args:
        data: the file's bytes.
        name: the file's name, for messages.
        required: columns that must be there. Others are kept too.

    Raises: QuestionError: not UTF-8, no header, a column missing or named twice, a row with too many or too
        few cells, a quote that is never closed, a NUL byte.
    """
    reader = csv.reader(io.StringIO(decode(data, name), newline=""), strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    number, limit = 0, csv.field_size_limit(_FIELD_LIMIT)
    try:
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            if not cells:  # a blank line between rows or at the end
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_header(header, name, required)
                continue
            number += 1
            where = f"{name}, row {number} (line {line})"
            if any("\0" in cell for cell in cells):  # csv refuses it in Python 3.10 and keeps it in 3.11
                raise QuestionError("the row holds a NUL byte", where=where, remedy="copy the file again")
            if len(cells) != len(header):
                raise QuestionError(
                    f"the row has {len(cells)} cells and the header {len(header)}",
                    where=where,
                    remedy="put double quotes around a cell that holds a comma or a line break",
                )
            rows.append(Row(dict(zip(header, cells, strict=True)), where))
    except csv.Error as error:
        raise QuestionError(
            f"{name} is not a table: {error}",
            where=f"{name}, row {number + 1} (lines {line} to {reader.line_num})",
            remedy="close the double quote that was opened there, or copy the file again",
        ) from None
    finally:
        csv.field_size_limit(limit)
    if header is None:
        raise QuestionError(f"{name} is empty", where=name, remedy="copy the file again")
    return rows


def _check_header(header: list[str], name: str, required: Sequence[str]) -> None:
    where = f"{name}, header"
    missing = [column for column in required if column not in header]
    if missing:
        shown = ", ".join(repr(column) for column in missing)
        raise QuestionError(
            f"there is no column {shown}",
            where=where,
            remedy=f"the columns there are {', '.join(map(repr, header))}: rename one, or name the format",
        )
    repeated = {column for column in header if column and header.count(column) > 1}
    if repeated:
        raise QuestionError(
            f"column {sorted(repeated)[0]!r} stands twice", where=where, remedy="remove one of them"
        )
