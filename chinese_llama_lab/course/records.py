"""What running each chapter cost: one row a chapter and profile in `course_runs.csv`."""

from __future__ import annotations

import csv
import platform
from datetime import datetime, timezone
from pathlib import Path

from chinese_llama_lab import machine
from chinese_llama_lab.course.execute import Run
from chinese_llama_lab.paths import atomic_file
from chinese_llama_lab.session import COURSE_RUNS, installed

COLUMNS = ("chapter", "profile", "cells", "seconds", "peak_mib", "hardware", "versions", "date")
_VERSIONS = ("torch", "transformers", "tokenizers", "numpy")


def as_row(chapter: str, profile: str, run: Run) -> dict[str, str]:
    """The row that describes this run, made on this machine, now."""
    versions = {"python": platform.python_version(), **installed(_VERSIONS)}
    return {
        "chapter": chapter,
        "profile": profile,
        "cells": str(run.total),
        "seconds": f"{run.seconds:.1f}",
        "peak_mib": f"{run.peak_mib:.0f}",
        "hardware": machine.describe(),
        "versions": " ".join(f"{name}={version}" for name, version in versions.items()),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def store(folder: Path, row: dict[str, str]) -> None:
    """Put `row` in place of the one of the same chapter and profile."""
    path = folder / COURSE_RUNS
    key = row["chapter"], row["profile"]
    rows = [old for old in read(path) if (old["chapter"], old["profile"]) != key]
    rows = sorted([*rows, row], key=lambda item: (item["chapter"], item["profile"]))
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    """The rows there are; none if there is no file yet."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if row.get("chapter") and row.get("profile")]
    except FileNotFoundError:
        return []
