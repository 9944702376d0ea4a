"""Where things live, and how a file is written so that nobody ever sees half of it."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path


def repository_root() -> Path | None:
    """The checkout this package is installed from in editable mode, or None."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def cache_dir() -> Path:
    """Folder for everything fetched or derived; `LAB_CACHE_DIR` overrides the user's cache folder."""
    override = os.environ.get("LAB_CACHE_DIR")
    return Path(override).expanduser() if override else user_cache_path("chinese_llama_lab", appauthor=False)


def data_dir() -> Path:
    """The course's own data (`data/` of the checkout)."""
    return (repository_root() or Path.cwd()) / "data"


def build_dir() -> Path:
    """Folder for executed notebooks and other products that git ignores."""
    return (repository_root() or Path.cwd()) / "build"


def committed_results_dir() -> Path:
    """`results/` of the checkout: the measurements that the course ships."""
    return (repository_root() or Path.cwd()) / "results"


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; move it into place only if the block succeeds.

    A kill or a full disk leaves `target` as it was. The temporary file is removed on error.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; give the product the permissions any other file would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(target: Path, content: Any, *, indent: int = 1, allow_nan: bool = True) -> None:
    """Content as JSON in UTF-8 that ends in a line break, whole or not at all.

    Raises: ValueError: NaN or infinity where `allow_nan` is False.
    """
    text = json.dumps(content, ensure_ascii=False, indent=indent, allow_nan=allow_nan) + "\n"
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Like `atomic_file`, for a whole folder that must not exist yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Remove what a killed `atomic_file` or `atomic_folder` left beside `target`.

    Only for whoever holds the lock on `target`: a running process has such files too.
    """
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
