"""Token ids of documents, laid end to end into blocks and into files that `datasets` memory-maps.

A file is an Arrow stream with a row a block:

- `input_ids`: `block` ids, 16 or 32 bits each.
- `starts`: where documents begin in the block.
- `documents`: numbers of the documents that it holds a part of; n is document n of the text, -1 - n replay
  document n. There is one more than `starts` where the block begins inside a document.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Features, List, Value
from numpy.typing import NDArray

from chinese_llama_lab.paths import atomic_file
from chinese_llama_lab.sources.index import sha256_of
from chinese_llama_lab.training.errors import TrainingError

_ROWS = 1024  # blocks written at once


def shard_name(number: int) -> str:
    """`shard-00000.arrow` is the first."""
    return f"shard-{number:05d}.arrow"


def shard_features(block: int, dtype: str) -> Features:
    """Columns of a shard."""
    return Features(
        {
            "input_ids": List(Value(dtype), length=block),
            "starts": List(Value("int32")),
            "documents": List(Value("int64")),
        }
    )


class Closed(NamedTuple):
    """A shard that is in its place. `skip`: tokens of the document just added that it or one before holds."""

    name: str
    blocks: int
    documents: int
    characters: int
    bytes: int
    sha256: str
    skip: int


class ShardWriter:
    """Writes shards one after the other; to be used in a `with`, which removes what an error leaves.

    Args:
        folder: where to. block: tokens a row. blocks: rows a shard. dtype: of ids. first: number of the first
            shard to be written.
    """

    def __init__(self, folder: Path, *, block: int, blocks: int, dtype: str, first: int = 0) -> None:
        self._folder, self._block, self._blocks, self._number = folder, block, blocks, first
        self._schema = shard_features(block, dtype).arrow_schema
        self._ids: NDArray[Any] = np.empty(min(_ROWS, blocks) * block, dtype=dtype)
        self._filled = 0
        self._starts: list[int] = []
        self._numbers: list[int] = []
        self._current = 0  # the document that is going on at the buffer's beginning
        self._written = self._documents = self._characters = 0  # of this shard
        self._stack = ExitStack()
        self._sink: Any = None
        self._stream: Any = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def add(self, number: int, ids: NDArray[Any], characters: int, *, skip: int = 0) -> Iterator[Closed]:
        """Append a document; yields each shard that it fills. `skip`: its tokens that were written before."""
        if not skip:
            self._starts.append(self._filled)
            self._numbers.append(number)
            self._documents += 1
            self._characters += characters
        elif not self._filled:
            self._current = number
        at = skip
        while at < len(ids):
            room = min(len(self._ids), (self._blocks - self._written) * self._block) - self._filled
            part = ids[at : at + room]
            self._ids[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            at += len(part)
            if len(part) == room:
                self._flush(self._filled // self._block)
                if self._written == self._blocks:
                    yield self._close(at)

    def finish(self) -> tuple[Closed | None, int]:
        """The last shard (None if it would hold no block), and the tokens that fill no block."""
        tail = self._filled % self._block
        if self._filled >= self._block:
            self._flush(self._filled // self._block)
        return (self._close(0) if self._written else None), tail

    def _flush(self, rows: int) -> None:
        used = rows * self._block
        starts, numbers = [], []
        for begin in range(0, used, self._block):
            first = bisect_left(self._starts, begin)
            last = bisect_left(self._starts, begin + self._block)
            inside = self._numbers[first:last]
            if first == last or self._starts[first] != begin:
                inside = [self._numbers[first - 1] if first else self._current, *inside]
            starts.append([start - begin for start in self._starts[first:last]])
            numbers.append(inside)
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(self._ids[:used]), type=self._schema.field(0).type),
            pa.array(starts, type=self._schema.field(1).type),
            pa.array(numbers, type=self._schema.field(2).type),
        ]
        try:
            if self._sink is None:
                self._open()
            self._sink.write_batch(pa.record_batch(columns, schema=self._schema))
        except OSError as error:
            raise not_written(self._folder, shard_name(self._number), error) from error
        self._written += rows
        if self._numbers:
            self._current = self._numbers[-1]
        self._starts, self._numbers, self._filled = [], [], 0

    def _open(self) -> None:
        temporary = self._stack.enter_context(atomic_file(self._folder / shard_name(self._number)))
        self._stream = temporary.open("wb")
        self._stack.callback(_close_quietly, self._stream)
        self._sink = pa.ipc.new_stream(self._stream, self._schema)

    def _close(self, skip: int) -> Closed:
        name = shard_name(self._number)
        path = self._folder / name
        try:
            self._sink.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stack.close()  # here the file moves into its place
        except OSError as error:
            raise not_written(self._folder, name, error) from error
        closed = Closed(
            name,
            self._written,
            self._documents,
            self._characters,
            path.stat().st_size,
            sha256_of(path),
            skip,
        )
        self._sink, self._stream = None, None
        self._number += 1
        self._written = self._documents = self._characters = 0
        return closed


def _close_quietly(stream: Any) -> None:
    with suppress(OSError):  # the error that matters was raised when it was flushed
        stream.close()


def not_written(folder: Path, what: str, error: OSError) -> TrainingError:
    """The error for a disk that is full, or a folder that may not be written."""
    return TrainingError(
        f"{what} could not be written: {error.strerror or error}",
        where=str(folder),
        remedy="make room on the disk, or correct the folder's permissions; then resume=True (--resume) goes"
        " on behind the last shard",
    )
