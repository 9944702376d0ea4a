"""The manifest: which outside files the course uses, and which package carries each.

It says nothing about where the files are on this machine (`fetch`) or how an index is
reached (`index`).
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from chinese_llama_lab.errors import SourceError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same parser under its old name
    import tomli as tomllib


@dataclass(frozen=True)
class Package:
    """One archive on a Python index: a wheel (`.whl`) or a source distribution (`.tar.gz`)."""

    name: str
    version: str
    archive: str
    sha256: str
    size: int  # bytes to download


@dataclass(frozen=True)
class Member:
    """One file inside an archive."""

    member: str  # its path inside the archive
    sha256: str
    size: int  # bytes when unpacked

    @property
    def filename(self) -> str:
        """The name it is kept under: never a path, so it cannot land outside its folder."""
        return PurePosixPath(self.member).name


@dataclass(frozen=True)
class Source:
    """One thing the course uses: a model, a tokenizer, a text, a font."""

    name: str
    kind: str
    title: str
    licence: str
    purpose: str
    hub: str  # the same thing on the model hub, or ""
    package: Package
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Bytes on disk once unpacked."""
        return sum(member.size for member in self.members)


@dataclass(frozen=True)
class Manifest:
    """All sources by name, in the order of the file."""

    sources: Mapping[str, Source]

    def __getitem__(self, name: str) -> Source:
        try:
            return self.sources[name]
        except KeyError:
            near = difflib.get_close_matches(name, self.sources, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise SourceError(
                f"there is no source called {name!r}",
                remedy=f"{hint}the sources are: {', '.join(self.sources)}",
            ) from None

    def select(self, names: Iterable[str] = ()) -> list[Source]:
        """The named sources, or all of them when no name is given."""
        chosen = list(names)
        return [self[name] for name in chosen] if chosen else list(self.sources.values())

    def carried_by(self, package: Package) -> list[Source]:
        """Every source that comes in the same archive, so that one download serves them all."""
        return [source for source in self.sources.values() if source.package == package]


def parse_manifest(text: str, *, where: str = "manifest.toml") -> Manifest:
    """Read a manifest and refuse one that names a package it lacks, repeats a file or misses a key."""
    try:
        table = tomllib.loads(text)
        packages = {name: Package(name=name, **fields) for name, fields in table["packages"].items()}
        sources = {name: _source(name, fields, packages) for name, fields in table["sources"].items()}
    except (tomllib.TOMLDecodeError, AttributeError, KeyError, TypeError) as error:
        raise SourceError(
            f"the manifest cannot be read: {type(error).__name__}: {error}",
            where=where,
            remedy="restore the file from the repository",
        ) from error
    return Manifest(sources)


def _source(name: str, fields: dict[str, Any], packages: Mapping[str, Package]) -> Source:
    members = tuple(Member(**member) for member in fields["members"])
    names = [member.filename for member in members]
    if len(set(names)) != len(names) or not all(names) or ".." in names:
        raise SourceError(f"source {name!r} has members without distinct file names: {names}")
    plain = {key: value for key, value in fields.items() if key not in ("members", "package")}
    return Source(name=name, package=packages[fields["package"]], members=members, **plain)


@cache
def load_manifest() -> Manifest:
    """The manifest shipped with the package."""
    path = files(__package__) / "manifest.toml"
    return parse_manifest(path.read_text(encoding="utf-8"), where="chinese_llama_lab/sources/manifest.toml")
