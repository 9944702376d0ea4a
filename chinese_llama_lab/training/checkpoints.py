"""Checkpoints that are whole or absent.

transformers' Trainer writes a checkpoint straight into its final folder and resumes from the one with the
highest number, whole or not; where its optimizer's state is missing it goes on in silence with another
result. Here a checkpoint is written beside its place, its pieces are listed with size and sha256 in
`manifest.json`, and only then it is moved. A piece that is missing, shorter or other than listed makes it
refused, by name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chinese_llama_lab.sources.index import sha256_of
from chinese_llama_lab.training.errors import TrainingError

MANIFEST = "manifest.json"
_PREFIX = "step-"


def checkpoints_dir(out: Path) -> Path:
    """The folder of a run's checkpoints."""
    return Path(out) / "checkpoints"


def checkpoint_path(out: Path, step: int) -> Path:
    """Where the checkpoint of a step is kept."""
    return checkpoints_dir(out) / f"{_PREFIX}{step:06d}"


def checkpoint_step(folder: Path) -> int:
    """The number of optimizer steps behind a checkpoint."""
    return int(folder.name.removeprefix(_PREFIX))


def checkpoints(out: Path) -> list[Path]:
    """All checkpoints of a run, oldest first; whether they are whole is not looked at."""
    found = [path for path in checkpoints_dir(out).glob(f"{_PREFIX}*") if path.name[len(_PREFIX) :].isdigit()]
    return sorted(found, key=checkpoint_step)


def seal(part: Path, target: Path, **about: Any) -> None:
    """List the pieces of a checkpoint that was just written, flush them to disk, and move it into place.

    Args:
        part: the folder as written. target: where it goes; must not exist.
        about: kept in the manifest, such as `step`.
    """
    pieces = {}
    for path in _pieces(part):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        pieces[path.relative_to(part).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
    text = json.dumps({**about, "pieces": pieces}, indent=1) + "\n"
    with (part / MANIFEST).open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    check_whole(part)
    os.rename(part, target)


def check_whole(folder: Path) -> None:
    """Raise TrainingError naming the first piece that is missing, of another size, or changed."""

    def refuse(what: str) -> None:
        raise TrainingError(
            f"checkpoint {folder.name} is damaged: {what}",
            where=str(folder),
            remedy="resume=True takes the newest whole one before it",
        )

    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["pieces"]
    except FileNotFoundError:
        return refuse(f"{MANIFEST} is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return refuse(f"{MANIFEST} cannot be read ({error})")
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            refuse(f"{name} is missing")
        size = path.stat().st_size
        if size != entry["bytes"]:
            refuse(f"{name} has {size} bytes instead of {entry['bytes']}")
        if sha256_of(path) != entry["sha256"]:
            refuse(f"{name} is not what was written (its sha256 differs)")


def newest_whole(out: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole (None if there is none), and why newer ones were refused.

    Refused ones are renamed to `damaged-step-N`, so that the run can write that step again.
    """
    refused: list[str] = []
    for folder in reversed(checkpoints(out)):
        try:
            check_whole(folder)
        except TrainingError as error:
            refused.append(error.what)
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        else:
            return folder, refused
    return None, refused


def last_good(out: Path) -> Path | None:
    """The newest whole checkpoint, for a message; nothing is renamed."""
    for folder in reversed(checkpoints(out)):
        try:
            check_whole(folder)
        except TrainingError:
            continue
        return folder
    return None


def remove_old(out: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for folder in checkpoints(out)[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)


def part_path(out: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it is moved."""
    return checkpoints_dir(out) / f".{_PREFIX}{step:06d}.part"


def remove_parts(out: Path) -> None:
    """Remove the beginnings of checkpoints that a killed run left; for a run that has just started."""
    for part in checkpoints_dir(out).glob(f".{_PREFIX}*.part"):
        shutil.rmtree(part, ignore_errors=True)


def _pieces(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
