"""The first cell of every notebook: seeds, plot style, and what the notebook is running on."""

from __future__ import annotations

import csv
import os
import platform
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib import metadata

from chinese_llama_lab import machine
from chinese_llama_lab.errors import CourseError
from chinese_llama_lab.paths import committed_results_dir
from chinese_llama_lab.profiles import Profile, current_profile
from chinese_llama_lab.quiet import quiet_libraries

# The libraries whose version changes what the course measures.
_SHOWN = ("torch", "transformers", "tokenizers", "sentencepiece", "tiktoken", "peft", "datasets", "numpy")
COURSE_RUNS = "course_runs.csv"


@dataclass(frozen=True)
class Session:
    """What `setup` found: chapter, seed, profile, versions, cores and memory in GiB."""

    chapter: str
    seed: int
    profile: Profile
    versions: Mapping[str, str]
    cores: int
    memory_gib: float

    def summary(self) -> str:
        """Four short lines that always have the same shape."""
        versions = " · ".join(f"{name} {version}" for name, version in self.versions.items())
        return "\n".join(
            [
                f"chapter   {self.chapter} · profile {self.profile.name} · seed {self.seed}",
                f"python    {platform.python_version()} on {platform.system()} {platform.machine()}",
                f"machine   {self.cores} cores · {self.memory_gib:.0f} GiB of memory",
                f"versions  {versions}",
            ]
        )

    def __repr__(self) -> str:
        return f"Session(chapter={self.chapter!r}, profile={self.profile.name!r}, seed={self.seed})"


def setup(seed: int = 0, chapter: str = "", *, torch: bool = False) -> Session:
    """Seed every generator, install the plot style, print what the notebook runs on.

    Args:
        seed: for `random`, numpy and (see `torch`) torch. A function that draws still takes its own seed.
        chapter: the number of the notebook, "01".
        torch: import torch and seed it. Importing it takes seconds, so that by default it is seeded only
            where it has been imported before.

    Raises:
        ProfileError: if `LAB_PROFILE` names no profile.
        ValueError: if the seed is not between 0 and 2**32 - 1, which is what numpy takes.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie between 0 and 2**32 - 1, not {seed}")
    profile = current_profile()
    seed_everything(seed, torch=torch)

    from chinese_llama_lab import plots

    plots.use_style()
    quiet_libraries()
    session = Session(
        chapter=chapter,
        seed=seed,
        profile=profile,
        versions=installed(_SHOWN),
        cores=machine.usable_cores(),
        memory_gib=machine.memory_bytes() / machine.GIB,
    )
    print(session.summary())
    return session


def seed_everything(seed: int, *, torch: bool = False) -> None:
    """Seed `random`, numpy's legacy generator, and torch if it is loaded or `torch` is true."""
    random.seed(seed)
    import numpy

    numpy.random.seed(seed)
    if torch:
        import torch as _torch  # noqa: F401
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Versions by distribution name, without importing anything; a missing one says so."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True)
class ChapterCard:
    """What running a chapter cost when it was last built: time, memory and where."""

    chapter: str
    row: Mapping[str, str] | None

    def __repr__(self) -> str:
        if self.row is None:
            return f"chapter {self.chapter}: not measured yet"
        return (
            f"chapter {self.chapter}: {_duration(float(self.row['seconds']))}, "
            f"{_memory(float(self.row['peak_mib']))} of memory at most "
            f"({self.row['cells']} code cells, profile {self.row['profile']}, "
            f"measured {self.row['date'][:10]} on {self.row['hardware']})"
        )

    def _repr_html_(self) -> str:
        if self.row is None:
            return f"<em>{escape(repr(self))}</em>"
        rows = [
            ("time, all cells", _duration(float(self.row["seconds"]))),
            ("memory at most", _memory(float(self.row["peak_mib"]))),
            ("measured on", self.row["hardware"]),
            ("profile", self.row["profile"]),
            ("date", self.row["date"][:10]),
        ]
        body = "".join(
            f'<tr><th style="text-align: left">{escape(name)}</th>'
            f'<td style="text-align: left">{escape(value)}</td></tr>'
            for name, value in rows
        )
        return f"<table><tbody>{body}</tbody></table>"


def chapter_card(chapter: str, profile: str = "course") -> ChapterCard:
    """The measured cost of a chapter, from `results/course_runs.csv`.

    Args:
        chapter: "01".
        profile: the profile it was measured in.

    Raises:
        CourseError: if the file is there but a column of the row is missing or no number.
    """
    quiet_libraries()  # the first cell of a notebook, before it imports them
    path = committed_results_dir() / COURSE_RUNS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("chapter") == chapter]
    except FileNotFoundError:
        rows = []
    chosen = [row for row in rows if row.get("profile") == profile]
    if not chosen:
        return ChapterCard(chapter, None)
    card = ChapterCard(chapter, chosen[-1])
    try:
        repr(card)
    except (KeyError, TypeError, ValueError) as error:
        raise CourseError(
            f"the row of chapter {chapter} is damaged: {type(error).__name__}: {error}",
            where=os.path.join("results", COURSE_RUNS),
            remedy="run `make notebooks` to measure it again",
        ) from error
    return card


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _memory(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"
