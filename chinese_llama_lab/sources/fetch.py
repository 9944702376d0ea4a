"""Bring sources into the cache folder, and say what is there.

Layout of the cache folder: `sources/NAME/FILE` (checked files), `downloads/` (archives under way),
`derived/` (what the course made of them), `locks/`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from chinese_llama_lab.errors import SourceError
from chinese_llama_lab.paths import cache_dir, remove_leftovers
from chinese_llama_lab.sources import index
from chinese_llama_lab.sources.manifest import Manifest, Package, Source, load_manifest
from chinese_llama_lab.sources.unpack import extract


@dataclass(frozen=True)
class SourceStatus:
    """Whether a source is here. `state` is `here`, `missing` or `damaged`."""

    source: Source
    state: str
    folder: Path


def source_folder(name: str) -> Path:
    """The folder of a source's files in the cache."""
    return cache_dir() / "sources" / name


def _state(source: Source, verify: bool) -> str:
    folder = source_folder(source.name)
    found = [(member, folder / member.filename) for member in source.members]
    if not all(path.is_file() for _, path in found):
        return "missing"
    for member, path in found:
        if path.stat().st_size != member.size or (verify and index.sha256_of(path) != member.sha256):
            return "damaged"
    return "here"


def status(
    names: Iterable[str] = (), *, verify: bool = False, manifest: Manifest | None = None
) -> list[SourceStatus]:
    """The state of the named sources, or of all; sizes are compared, and hashes too with `verify`."""
    manifest = manifest or load_manifest()
    return [
        SourceStatus(source, _state(source, verify), source_folder(source.name))
        for source in manifest.select(names)
    ]


def packages_to_download(
    names: Iterable[str] = (), *, verify: bool = False, manifest: Manifest | None = None
) -> list[Package]:
    """The archives that `fetch(names)` would have to download, in order, each once."""
    wanting = (s.source.package for s in status(names, verify=verify, manifest=manifest) if s.state != "here")
    return list(dict.fromkeys(wanting))


def is_offline() -> bool:
    """Whether the reader has forbidden downloads with `LAB_OFFLINE=1`."""
    return os.environ.get("LAB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def fetch(
    names: Iterable[str] = (),
    *,
    progress: bool = True,
    verify: bool = False,
    manifest: Manifest | None = None,
) -> list[Path]:
    """Make the named sources (or all) present, and return their folders.

    What is here already costs nothing. Two processes may fetch at once: the second waits
    for the first and then finds the files.

    Raises:
        SourceError: unknown name, no network, wrong hash, full disk: each with what to do.
    """
    manifest = manifest or load_manifest()
    chosen = list(names)
    for package in packages_to_download(chosen, verify=verify, manifest=manifest):
        _fetch_package(package, manifest, progress=progress, verify=verify)
    return [source_folder(source.name) for source in manifest.select(chosen)]


@contextmanager
def cache_lock(name: str) -> Iterator[None]:
    """Let one process at a time work on one thing in the cache folder.

    Raises:
        SourceError: the cache folder cannot be written.
    """
    path = cache_dir() / "locks" / f"{name}.lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise SourceError(
            f"the cache folder cannot be written: {error.strerror or error}",
            where=str(cache_dir()),
            remedy="make room or correct its permissions, or set LAB_CACHE_DIR to another folder",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _fetch_package(package: Package, manifest: Manifest, *, progress: bool, verify: bool) -> None:
    sources = manifest.carried_by(package)
    with cache_lock(package.name):
        wanting = [source for source in sources if _state(source, verify) != "here"]
        if not wanting:  # another process was faster
            return
        for source in sources:  # a killed process cannot remove its own temporary files
            for member in source.members:
                remove_leftovers(source_folder(source.name) / member.filename)
        archive = cache_dir() / "downloads" / package.archive
        given_by_hand = archive.exists()
        if given_by_hand and index.sha256_of(archive) != package.sha256:
            raise SourceError(
                f"{archive.name} in the cache is not the file that the manifest names",
                where=str(archive),
                remedy=f"delete it; its sha256 must be {package.sha256}",
            )
        if not given_by_hand:
            _download(package, archive, wanting, progress)
        targets = {
            member.member: (member, source_folder(source.name) / member.filename)
            for source in wanting
            for member in source.members
        }
        extract(archive, targets)
        archive.unlink()


def _download(package: Package, archive: Path, wanting: list[Source], progress: bool) -> None:
    needed = package.size + sum(source.size for source in wanting)
    archive.parent.mkdir(parents=True, exist_ok=True)
    names = ", ".join(source.name for source in wanting)
    if is_offline():
        raise SourceError(
            f"{names} not in the cache, and downloads are switched off (LAB_OFFLINE): "
            f"{package.archive}, {package.size / 1e6:.1f} MB",
            where=str(cache_dir()),
            remedy=_elsewhere(wanting),
        )
    free = shutil.disk_usage(archive.parent).free
    if free < needed:
        raise SourceError(
            f"{names} needs {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free",
            where=str(cache_dir()),
            remedy="free some space there, or set LAB_CACHE_DIR to another folder",
        )
    try:
        index.download(package, archive, progress=progress)
    except SourceError as error:
        raise SourceError(
            f"{names} could not be fetched: {error.what}",
            where=error.where,
            remedy=f"{error.remedy}. {_elsewhere(wanting)}",
        ) from error


def _elsewhere(wanting: list[Source]) -> str:
    names = " ".join(source.name for source in wanting)
    return (
        f"on a machine with a network run `chinese-llama-lab fetch {names}` and copy the folder `sources` "
        f"of its cache into {cache_dir()}"
    )


def source_file(name: str, filename: str | None = None, *, progress: bool = True) -> Path:
    """Path of one file of a source, fetched if it is not here yet.

    Args:
        name: a source of the manifest.
        filename: which of its files; may be left out where there is only one.
    """
    source = load_manifest()[name]
    members = [m for m in source.members if filename is None or m.filename == filename]
    if len(members) != 1:
        raise SourceError(
            f"source {name!r} has no single file {filename or ''}",
            remedy=f"its files are: {', '.join(member.filename for member in source.members)}",
        )
    folder = fetch([name], progress=progress)[0]
    return folder / members[0].filename
