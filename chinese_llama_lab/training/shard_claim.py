"""Who writes shards to a folder, and from where: the lock, and what an earlier call left there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from chinese_llama_lab.paths import remove_leftovers
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.shard_index import INDEX, Options, ShardIndex, read_index
from chinese_llama_lab.training.shard_writer import not_written, shard_name

_LOCK = ".lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder, and keep other writers out of it. Raises: TrainingError: somebody is writing there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise TrainingError(
            "somebody is writing shards to this folder now",
            where=str(out),
            remedy="wait, or give another folder",
        ) from None
    except OSError as error:
        raise not_written(out, "the folder", error) from error
    try:
        yield
    finally:
        lock.release()


def claim(out: Path, options: Options, resume: bool) -> ShardIndex:
    """The index to go on from. What a kill left, and shards behind one that is damaged, are removed.

    Raises: TrainingError: the folder holds something else, or shards that were not asked to be gone on with,
        or that were begun with other options.
    """
    fresh = ShardIndex(out, options)
    if not (out / INDEX).is_file():
        leftovers = [path for path in out.iterdir() if not _is_ours(path)]
        if leftovers or (not resume and any(path.suffix == ".arrow" for path in out.iterdir())):
            raise TrainingError(
                "the folder is not empty, and holds no index of shards",
                where=str(out),
                remedy="give an empty or new folder",
            )
        kept = fresh
    else:
        kept = read_index(out)
        if not resume:
            raise TrainingError(
                "the folder holds shards already",
                where=str(out),
                remedy="resume=True (--resume) goes on with them; for others give another folder",
            )
        different = [
            f"{key} (now {getattr(options, key)}, there {getattr(kept.options, key)})"
            for key in Options.__dataclass_fields__
            if getattr(kept.options, key) != getattr(options, key)
        ]
        if different:
            raise TrainingError(
                f"the folder was begun with other options: {'; '.join(different)}",
                where=str(out),
                remedy="give what it was begun with, or another folder",
            )
        kept = _whole(kept)
    names = {shard.name for shard in kept.shards}
    remove_leftovers(out / INDEX)
    for path in out.glob("shard-*.arrow"):
        if path.name not in names:
            path.unlink()
    for path in out.glob(".shard-*.tmp"):
        path.unlink()
    return kept


def _is_ours(path: Path) -> bool:
    return path.name == _LOCK or path.name.startswith((f".{INDEX}.", ".shard-", shard_name(0)))


def _whole(index: ShardIndex) -> ShardIndex:
    """The index up to the first shard that is damaged, with a warning."""
    for place, shard in enumerate(index.shards):
        damage = shard.check(index.folder)
        if damage:
            warnings.warn(f"{damage}; it is written again, and all behind it", stacklevel=4)
            return replace(index, shards=index.shards[:place], complete=False, tail=0)
    return index
