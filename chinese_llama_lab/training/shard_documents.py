"""Documents of a text of any size, as token ids, in order and in bounded memory.

Each worker is one process on one core. No more than a few batches are under way at once, so that a slow disk
or a slow tokenizer holds up reading instead of filling the memory.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chinese_llama_lab.errors import TextError
from chinese_llama_lab.tokenization.base import utf8_lengths
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.packing import _encode
from chinese_llama_lab.training.shard_index import Place

_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 1 << 20
_AHEAD = 3  # batches under way, a worker
_PARALLELISM = "TOKENIZERS_PARALLELISM"


class Encoded(NamedTuple):
    """A document: its number in the input, its text in UTF-8, code points, and ids (none if it is empty)."""

    number: int
    data: bytes
    characters: int
    ids: NDArray[Any]


class Encoder:
    """Tokenizes batches of texts on `workers` cores, in order; to be used in a `with`.

    One worker is this process itself; several are processes of their own, started anew (`spawn`), so that
    no thread of this one is copied.
    """

    def __init__(self, tokenizer: Any, *, bos: bool, dtype: str, workers: int) -> None:
        self._start = (tokenizer, bos, dtype)
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Encoder:
        # The library would use every core for a batch: a worker would not be one core.
        self._stack.enter_context(_one_core())
        if self.workers > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, context, _start_worker, self._start)
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._stack.close()

    def over(self, batches: Iterable[list[str]]) -> Iterator[tuple[list[str], list[NDArray[Any]]]]:
        """Each batch with the ids of its texts."""
        if self._pool is None:
            tokenizer, bos, dtype = self._start
            for texts in batches:
                yield texts, _split(*_tokenize(texts, tokenizer, bos, dtype))
            return
        waiting: deque[tuple[list[str], Future[Any]]] = deque()
        try:
            for texts in batches:
                waiting.append((texts, self._pool.submit(_work, texts)))
                if len(waiting) == _AHEAD * self.workers:
                    first, future = waiting.popleft()
                    yield first, _split(*future.result())
            while waiting:
                first, future = waiting.popleft()
                yield first, _split(*future.result())
        except BrokenProcessPool as error:
            raise TrainingError(
                "a worker process died; most often memory ran out",
                where=f"{self.workers} workers",
                remedy="use fewer workers; resume=True (--resume) goes on behind the last shard",
            ) from error


class TokenStream:
    """The documents of one text as ids, one after the other, and the place in it.

    Args:
        documents: from the beginning, also when some were taken before.
        place: what was taken before; those documents are read again, compared and left out.

    Raises: TrainingError: the text is not the one of which `place` was taken.
    """

    def __init__(self, documents: Iterator[str], encoder: Encoder, name: str, place: Place) -> None:
        self.name, self.tokens = name, place.tokens
        self._read, self._documents = place.read, place.documents
        self._characters, self._bytes = place.characters, place.bytes
        self._digest = hashlib.sha256()
        for number in range(place.read):
            text = next(documents, None)
            if text is None:
                raise self._other(f"it ends after {number} documents, and {place.read} were taken from it")
            self._digest.update(_framed(_utf8(text, number, name)))
        if self._digest.hexdigest() != place.digest:
            raise self._other(f"its first {place.read} documents are not those that were taken")
        self._entries = self._encoded(documents, encoder)
        self.next = next(self._entries, None)  # the document to be taken next, or None at the end

    def _other(self, what: str) -> TrainingError:
        return TrainingError(
            f"the {self.name} is another one: {what}",
            where=self.name,
            remedy="give the same text in the same order, or write to another folder",
        )

    def _encoded(self, documents: Iterator[str], encoder: Encoder) -> Iterator[Encoded]:
        number = self._read
        for texts, ids in encoder.over(_batches(documents, number, self.name)):
            for text, its in zip(texts, ids, strict=True):
                yield Encoded(number, text.encode("utf-8"), len(text), its)
                number += 1

    def take(self) -> None:
        """Count the next document as taken."""
        entry = self.next
        assert entry is not None
        self._digest.update(_framed(entry.data))
        self._read += 1
        if len(entry.ids):
            self._documents += 1
            self.tokens += len(entry.ids)
            self._characters += entry.characters
            self._bytes += len(entry.data)
        self.next = next(self._entries, None)

    def place(self) -> Place:
        """What was taken so far."""
        return Place(
            self._read, self._documents, self.tokens, self._characters, self._bytes, self._digest.hexdigest()
        )


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data  # two documents are not one that is as long


def _utf8(text: str, number: int, name: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        try:
            utf8_lengths([text], first=number)
        except TextError as error:
            raise TextError(error.what, where=f"{name}, {error.where}", remedy=error.remedy) from None
        raise


def _batches(documents: Iterator[str], first: int, name: str) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for number, text in enumerate(documents, start=first):
        _utf8(text, number, name)
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _tokenize(
    texts: Sequence[str], tokenizer: Any, bos: bool, dtype: str
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """All ids of a batch as one array, and the number of each text's: the same ids as `pack` makes."""
    lengths = np.zeros(len(texts), dtype=np.int64)
    flat = array("i")
    for number, ids, _ in _encode(enumerate(texts), tokenizer, bos, None, "batch"):
        lengths[number] = len(ids)
        flat.extend(ids)
    return np.frombuffer(flat, dtype=np.int32).astype(dtype), lengths


def _split(flat: NDArray[Any], lengths: NDArray[np.int64]) -> list[NDArray[Any]]:
    ends = np.cumsum(lengths)
    return [flat[end - size : end] for end, size in zip(ends.tolist(), lengths.tolist(), strict=True)]


_WORKER: list[Any] = []  # in a worker: tokenizer, bos, dtype


def _start_worker(tokenizer: Any, bos: bool, dtype: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's business
    _WORKER[:] = [tokenizer, bos, dtype]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed leaves its workers waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(texts: list[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    tokenizer, bos, dtype = _WORKER
    return _tokenize(texts, tokenizer, bos, dtype)


@contextmanager
def _one_core() -> Iterator[None]:
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLELISM]
        else:
            os.environ[_PARALLELISM] = before
