"""The files of a folder or of a zip archive, under one face. Nothing is ever unpacked to disk."""

from __future__ import annotations

import lzma
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from chinese_llama_lab.ceval.errors import QuestionError
from chinese_llama_lab.ceval.questions import SPLITS

# The largest official file has a few hundred kilobytes; what unfolds to more is no file of questions.
MEMBER_BYTES = 64 << 20
# What zipfile raises for bytes that are not what they should be; ValueError: names that are no text.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    NotImplementedError,
    EOFError,
    RuntimeError,
    ValueError,
)


class Container:
    """A folder or a zip archive of questions.

    Args:
        path: the folder or archive.

    Raises: QuestionError: it is not there, is neither, as one CSV, is damaged, or holds paths that lead out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._infos: dict[str, zipfile.ZipInfo] = {}
        if path.is_dir():
            self.names = sorted(
                found.relative_to(path).as_posix()
                for found in path.rglob("*")
                if found.is_file() and _wanted(found.relative_to(path).as_posix())
            )
        elif path.is_file():
            self.names = self._list_archive()
        else:
            raise QuestionError(
                f"{path} does not exist", remedy="give a folder of CSV files, or the zip as it was downloaded"
            )

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises: QuestionError: it cannot be read, is damaged, or is larger than a file of questions can be.
        """
        where = self.where(name)
        try:
            if not self._infos:
                return (self.path / name).read_bytes()
            with zipfile.ZipFile(self.path) as archive, archive.open(self._infos[name]) as stream:
                data = stream.read(MEMBER_BYTES + 1)
        except _DAMAGE as error:
            raise QuestionError(
                f"{name} is damaged in {self.path.name}: {error}",
                where=where,
                remedy="download the archive again",
            ) from error
        except OSError as error:
            raise QuestionError(
                f"{name} cannot be read: {error.strerror or error}",
                where=where,
                remedy="correct its permissions, or copy it again",
            ) from error
        if len(data) > MEMBER_BYTES:
            raise QuestionError(
                f"{name} unfolds to more than {MEMBER_BYTES >> 20} MiB",
                where=where,
                remedy="do not use this archive; fetch it from its publisher",
            )
        return data

    def where(self, name: str) -> str:
        """How messages name a file of this container."""
        return f"{self.path}, {name}" if self._infos else str(self.path / name)

    def _list_archive(self) -> list[str]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
        except _DAMAGE as error:
            if self.path.suffix.lower() in (".csv", ".parquet"):
                raise QuestionError(
                    f"{self.path.name} is one {self.path.suffix[1:].upper()}, and a set is a folder of them",
                    where=str(self.path),
                    remedy=f"give its folder: {above_split(self.path.resolve().parent)}",
                ) from error
            raise QuestionError(
                f"{self.path.name} is not a whole zip archive: {error}",
                where=str(self.path),
                remedy="download it again; a folder of CSV files is read too",
            ) from error
        for info in infos:
            parts = info.filename.replace("\\", "/").split("/")
            mode = info.external_attr >> 16
            problem, remedy = "", "do not use this archive; fetch it from its publisher"
            if info.filename.startswith("/") or ".." in parts or ":" in parts[0]:
                problem = "has a path that leads out of its folder"
            elif "\\" in info.filename:
                problem = "has backslashes in its path, which no zip may have"
                remedy = "unpack it with the program that made it and give the folder; or fetch it again"
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                problem = "is not an ordinary file"
            elif info.flag_bits & 1:
                problem = "is encrypted"
            elif info.filename in self._infos:
                problem = "stands in the archive twice"
            if problem:
                raise QuestionError(
                    f"member {info.filename!r} {problem}", where=str(self.path), remedy=remedy
                )
            if not info.is_dir():
                self._infos[info.filename] = info
        return sorted(name for name in self._infos if _wanted(name))


def above_split(folder: Path) -> Path:
    """The folder of a set: above its `dev/`, `val/` and `test/`, where one of these is given."""
    return folder.parent if folder.name in SPLITS else folder


def _wanted(name: str) -> bool:
    """Leave out what operating systems put beside files: `__MACOSX/`, `._name`, `.DS_Store`."""
    return not any(part == "__MACOSX" or part.startswith(".") for part in PurePosixPath(name).parts)
