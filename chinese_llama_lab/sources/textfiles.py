"""Read the reader's own text files: one document a line, UTF-8, in bounded memory."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from chinese_llama_lab.errors import TextError

# A longer line is cut into several documents, so that memory stays bounded whatever the file holds.
LINE_BYTES = 1 << 24
_OTHER_ENCODINGS = ("gb18030", "big5", "shift_jis")
_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def read_documents(path: Path) -> Iterator[str]:
    """The lines of a file, in order. Blank lines are left out.

    Only `\\n` ends a line; a `\\r` before it is dropped, and U+0085 and U+2028 are ordinary characters.
    A UTF-8 byte order mark is dropped.

    Raises:
        TextError: no such file, or bytes that are not UTF-8: the line and byte are named, and the
            encoding that would fit.
    """
    check_text_file(path)
    offset, number = 0, 1
    with path.open("rb") as stream:
        for line, whole in _lines(stream):
            if offset == 0:
                for mark, encoding in _MARKS.items():
                    if line.startswith(mark):
                        raise _not_utf8(path, 1, 0, line, encoding)
            data = line.removeprefix(codecs.BOM_UTF8) if offset == 0 else line
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                place = offset + len(line) - len(data) + error.start
                raise _not_utf8(path, number, place, _sample(path, place)) from None
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


def _sample(path: Path, place: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(max(0, place - 4096))
        return stream.read(16384)


def _not_utf8(path: Path, line: int, byte: int, sample: bytes, encoding: str | None = None) -> TextError:
    if encoding is None and not _is_damaged_utf8(sample):
        encoding = next((name for name in _OTHER_ENCODINGS if _decodes(sample, name)), None)
    guess = f"; it looks like {'GBK/GB18030' if encoding == 'gb18030' else encoding}" if encoding else ""
    fix = (
        f"convert it: iconv -f {encoding} -t utf-8 {path.name} > {path.stem}.utf8{path.suffix}"
        if encoding
        else "find out its encoding and convert it to UTF-8; a damaged file must be copied again"
    )
    return TextError(
        f"{path.name} is not UTF-8{guess}", where=f"{path}, line {line}, byte {byte}", remedy=fix
    )


def _is_damaged_utf8(sample: bytes) -> bool:
    """Whether most of what is not ASCII is UTF-8: Chinese UTF-8 also decodes as GBK, to rare characters."""
    text = sample.decode("utf-8", errors="replace")
    return text.count("\ufffd") * 4 < sum(character > "\x7f" for character in text)


def _decodes(sample: bytes, encoding: str) -> bool:
    """Whether `sample` is mostly Chinese in `encoding`; its ends may be cut inside a character."""
    text = sample.decode(encoding, errors="replace")
    han = sum("一" <= character <= "鿿" for character in text)
    return text.count("�") <= max(4, len(text) // 100) and han >= max(1, len(text) // 20)
