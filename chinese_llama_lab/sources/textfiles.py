"""Read the reader's own text files: one document a line, UTF-8, in bounded memory."""

from __future__ import annotations

import codecs
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from chinese_llama_lab.errors import TextError

# A longer line is cut into several documents, so that memory stays bounded whatever the file holds.
LINE_BYTES = 1 << 22
_MARKS = {  # UTF-32's begins as UTF-16's does: it comes first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_ENCODINGS = ("gb18030", "big5", "utf-16-le", "utf-16-be")
_SHOWN = {"gb18030": "GBK/GB18030"}
# About a hundred of the most frequent characters, simplified and traditional.
_FREQUENT = frozenset(
    "的一是不了人我在有他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么"
    "心多天而能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长民"
    "這來個國說們為時會過學對裡後麼還發當無開經頭從動兩長樣現將與進實點聲話問機給幾業間電門東關內產軍"
)


def read_documents(path: Path) -> Iterator[str]:
    """The lines of a file, in order. Blank lines are left out.

    Only `\\n` ends a line; a `\\r` before it is dropped, and U+0085 and U+2028 are ordinary characters.
    A UTF-8 byte order mark is dropped.

    Raises:
        TextError: no such file, or bytes that are not UTF-8: the line and byte are named, and the
            encoding that would fit.
    """
    check_text_file(path)
    offset, number, only_ascii = 0, 1, True
    with path.open("rb") as stream:
        for line, whole in _lines(stream):
            if offset == 0:
                for mark, encoding in _MARKS.items():
                    if line.startswith(mark):
                        raise _not_utf8(path, 1, 0, line, encoding=encoding)
            data = line.removeprefix(codecs.BOM_UTF8) if offset == 0 else line
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                place = offset + len(line) - len(data) + error.start
                only_ascii = only_ascii and data[: error.start].isascii()
                # The sample comes from this line alone: a pipe cannot be read twice.
                sample = data[max(0, error.start - 4096) :][:16384] + stream.read(16384)
                raise _not_utf8(path, number, place, sample, only_ascii=only_ascii) from None
            only_ascii = only_ascii and data.isascii()
            offset += len(line)
            number += whole
            text = text.removesuffix("\n").removesuffix("\r") if whole else text
            if text.strip():
                yield text


def check_text_file(path: Path) -> None:
    """Raise TextError where a path is a folder, is not there or may not be read; nothing is read."""
    if path.is_dir() or not path.exists():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise TextError(f"{path} {problem}", remedy="give the path of a UTF-8 text file")
    if not os.access(path, os.R_OK):
        raise TextError(f"{path} may not be read", remedy="correct its permissions")


def read_all(paths: Iterable[Path]) -> Iterator[str]:
    """The documents of several files, one file after the other."""
    for path in paths:
        yield from read_documents(path)


def _lines(stream: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Lines as bytes, and whether each ended where the file's line did."""
    readline = stream.readline  # type: ignore[attr-defined]
    rest = b""
    while True:
        line = rest + readline(LINE_BYTES)
        rest = b""
        if not line:
            return
        if line.endswith(b"\n") or len(line) < LINE_BYTES:
            yield line, True
            continue
        # Cut before the last character that may be incomplete.
        back = next((b for b in range(1, 4) if line[-b] >= 0xC0), 0)
        line, rest = (line[:-back], line[-back:]) if back else (line, b"")
        yield line, False


def _not_utf8(
    path: Path, line: int, byte: int, sample: bytes, *, encoding: str | None = None, only_ascii: bool = True
) -> TextError:
    """The error for a file, given what stands at the place and whether all before it was ASCII."""
    if encoding is None and only_ascii and not _is_damaged_utf8(sample):
        encoding = guess_encoding(sample)
    guess = f"; it looks like {_SHOWN.get(encoding, encoding)}" if encoding else ""
    if encoding:
        names = shlex.quote(path.name), shlex.quote(f"{path.stem}.utf8{path.suffix}")
        fix = f"convert it: iconv -f {encoding} -t utf-8 {names[0]} > {names[1]}"
    elif sample.startswith(b"\x1f\x8b"):
        fix = "it is compressed: unpack it first, gunzip " + shlex.quote(path.name)
    elif not only_ascii:
        fix = (
            "the text before this place is UTF-8, so the damaged file must be copied again, or it "
            "was joined from two encodings and the second part must be converted on its own"
        )
    else:
        fix = "find out its encoding and convert it to UTF-8; a damaged file must be copied again"
    return TextError(
        f"{path.name} is not UTF-8{guess}", where=f"{path}, line {line}, byte {byte}", remedy=fix
    )


def _is_damaged_utf8(sample: bytes) -> bool:
    """Whether most of what is not ASCII is UTF-8: Chinese UTF-8 also decodes as GBK, to rare characters."""
    text = sample.decode("utf-8", errors="replace")
    return text.count("\ufffd") * 4 < sum(character > "\x7f" for character in text)


def guess_encoding(sample: bytes) -> str | None:
    """The encoding in which a sample reads as ordinary Chinese, or None where that is not clear.

    Nearly any bytes decode as GB18030 or Big5, mostly to rare characters. So the frequent characters are
    counted: they make up a third of real text and almost nothing of text that was read wrongly.
    """
    if sample.count(0) > len(sample) // 8:  # ASCII in wide encodings is full of zero bytes
        even, odd = sample[::2].count(0), sample[1::2].count(0)
        if max(even, odd) < 3 * min(even, odd):  # UTF-32, or no text at all
            return None
        return "utf-16-be" if even > odd else "utf-16-le"
    scores = {encoding: _frequent_share(sample, encoding) for encoding in _ENCODINGS}
    best, second = sorted(scores, key=lambda encoding: -scores[encoding])[:2]
    return best if scores[best] >= 0.1 and scores[best] >= 2 * scores[second] else None


def _frequent_share(sample: bytes, encoding: str) -> float:
    """Share of frequent Chinese characters among all that are not ASCII."""
    other = [character for character in sample.decode(encoding, errors="replace") if character > "\x7f"]
    return sum(character in _FREQUENT for character in other) / max(1, len(other))
