"""Text of any size, tokenized and packed into shards on disk: what `pack` does in memory, for 20 or 120 GB.

Documents come as a stream, in their own order, and end in EOS. They are laid end to end without padding,
across shards too: the only tokens that are left out are those at the very end that fill no block. Nothing is
shuffled here, since the text does not fit in memory; the blocks are, when they are trained on
(`shard_reading.py`). Memory holds a few batches and 1,024 blocks, whatever the size of the text.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.packing import _check
from chinese_llama_lab.training.shard_claim import claim, locked
from chinese_llama_lab.training.shard_documents import Encoded, Encoder, TokenStream
from chinese_llama_lab.training.shard_index import (
    INDEX,
    Options,
    Place,
    Shard,
    ShardIndex,
    read_index,
    tokenizer_fingerprint,
)
from chinese_llama_lab.training.shard_sources import documents_of
from chinese_llama_lab.training.shard_writer import Closed, ShardWriter, not_written

SHARD_TOKENS = 1 << 26  # 134 MB of 16-bit ids


def write_shards(
    texts: Any,
    tokenizer: Any,
    out: Path,
    *,
    block: int = 512,
    bos: bool = False,
    replay: Any = (),
    replay_share: float = 0.0,
    column: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    workers: int = 1,
    resume: bool = False,
    progress: bool = True,
) -> ShardIndex:
    """Tokenize and pack documents into shards.

    The ids are those of `pack` on the same documents in the same order. What looks like a special token in a
    text is text. The same text and options give the same bytes, however many workers there are and however
    often the run was killed.

    Args:
        texts: a path or paths of text files, a document a line; a `datasets` Dataset or IterableDataset; or
            any iterable of strings or of objects with a `text`. It is read once, as a stream.
        tokenizer: a transformers tokenizer with an EOS token (and a BOS token for `bos`).
        out: folder of the shards and of `index.json`; new or empty, or with `resume` one that was begun.
        block: tokens a block. bos: put BOS before each document.
        replay: English documents against forgetting, as `texts`; they are mixed in as the text goes.
        replay_share: their share of the tokens, in [0, 1); met to within one document all along.
        column: the column of the text, where documents are rows of a data set.
        shard_tokens: tokens a shard, rounded down to whole blocks.
        workers: processes that tokenize, each on one core.
        resume: go on behind the last shard that is whole, from the start if there is none. The text before
            is read again and compared, which takes a small part of the time that tokenizing it took.
        progress: show a bar.

    Returns: ShardIndex, with tokens a second and MB a second.

    Raises:
        TrainingError: fewer tokens than one block; too little to replay (as soon as it is certain); a folder
            with other shards, or one that somebody writes to; with `resume`, another tokenizer, other
            options or another text; a full disk; a worker that died.
        TextError: a file that is not UTF-8 (with line and byte), a document with a lone surrogate.
    """
    out = Path(out)
    options = _options(tokenizer, block, bos, replay_share, shard_tokens)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise TrainingError(f"workers is {workers!r}", remedy="use a whole number, 1 or more")
    with locked(out):
        index = replace(claim(out, options, resume), workers=workers)
        if index.complete:
            return read_index(out)
        return _Run(index, texts, replay, tokenizer, column, progress).write()


class _Run:
    """One process's part of the writing."""

    def __init__(
        self, index: ShardIndex, texts: Any, replay: Any, tokenizer: Any, column: str, progress: bool
    ) -> None:
        self._index, self._texts, self._replay = index, texts, replay
        self._tokenizer, self._column = tokenizer, column
        self._before = index.shards[-1].seconds if index.shards else 0.0
        self._started = time.perf_counter()
        self._bar = tqdm(
            initial=index.tokens, disable=not progress, desc=index.folder.name, unit="tok", unit_scale=True
        )

    @property
    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def write(self) -> ShardIndex:
        options, shards = self._index.options, self._index.shards
        main, replay = (shards[-1].main, shards[-1].replay) if shards else (Place(), Place())
        encoder = Encoder(self._tokenizer, bos=options.bos, dtype=options.dtype, workers=self._index.workers)
        writer = ShardWriter(
            self._index.folder,
            block=options.block,
            blocks=options.shard_tokens // options.block,
            dtype=options.dtype,
            first=len(shards),
        )
        with self._bar, encoder, writer:
            self._main = self._stream(self._texts, "corpus", main, encoder)
            english = self._replay if options.replay_share else ()
            self._english = self._stream(english, "replay", replay, encoder)
            skip = shards[-1].skip if shards else 0
            for stream, entry in self._mixed():
                number = entry.number if stream is self._main else -1 - entry.number
                if len(entry.ids):
                    for closed in writer.add(number, entry.ids, entry.characters, skip=skip):
                        self._note(closed)
                    self._bar.update(len(entry.ids) - skip)
                    skip = 0
                stream.take()
            return self._finish(writer)

    def _stream(self, source: Any, name: str, place: Place, encoder: Encoder) -> TokenStream:
        return TokenStream(documents_of(source, column=self._column, name=name), encoder, name, place)

    def _mixed(self) -> Iterator[tuple[TokenStream, Encoded]]:
        """Documents in the order in which they are written; the caller takes each."""
        share = self._index.options.replay_share
        while True:
            wanted = share / (1 - share) * self._main.tokens
            english = self._english.next
            # As `pack`: not where one document more would miss the share by more than leaving it out.
            if english is not None and self._english.tokens + len(english.ids) / 2 <= wanted and wanted:
                yield self._english, english
            elif english is None and self._english.tokens < wanted * 0.95:
                raise TrainingError(
                    f"the replay texts end: they hold {self._english.tokens} tokens, and a share of"
                    f" {share:.3g} needs {round(wanted)} beside the {self._main.tokens} of the corpus so far",
                    where="replay",
                    remedy="give more of them, or a smaller replay_share, and write to a new folder",
                )
            elif self._main.next is not None:
                yield self._main, self._main.next
            else:
                return

    def _note(self, closed: Closed) -> None:
        """Add a shard to the index; the document under way is not yet taken."""
        self._index = replace(self._index, shards=(*self._index.shards, self._shard(closed)))
        self._save()

    def _shard(self, closed: Closed) -> Shard:
        return Shard(
            name=closed.name,
            blocks=closed.blocks,
            tokens=closed.blocks * self._index.options.block,
            documents=closed.documents,
            characters=closed.characters,
            bytes=closed.bytes,
            sha256=closed.sha256,
            main=self._main.place(),
            replay=self._english.place(),
            skip=closed.skip,
            seconds=round(self._seconds, 3),
        )

    def _save(self, **changes: Any) -> None:
        main, replay, seconds = self._main.place(), self._english.place(), round(self._seconds, 3)
        self._index = replace(self._index, main=main, replay=replay, seconds=seconds, **changes)
        try:
            self._index.save()
        except OSError as error:
            raise not_written(self._index.folder, INDEX, error) from error

    def _finish(self, writer: ShardWriter) -> ShardIndex:
        last, tail = writer.finish()
        shards = (*self._index.shards, self._shard(last)) if last else self._index.shards
        if not shards:
            block, documents = self._index.options.block, self._main.place().documents
            raise TrainingError(
                f"the corpus is shorter than one block: {tail} tokens, and a block has {block}"
                if documents
                else "the corpus holds no text",
                where="corpus",
                remedy=f"give more text, or block = {tail} or less" if documents else "give more text",
            )
        # One write: an index that lists the last shard is complete.
        self._save(shards=shards, complete=True, tail=tail)
        return self._index


def _options(tokenizer: Any, block: int, bos: bool, replay_share: float, shard_tokens: int) -> Options:
    _check(tokenizer, block, bos, replay_share)
    if shard_tokens < block:
        raise TrainingError(
            f"shard_tokens is {shard_tokens}, and a block has {block}",
            where="shard_tokens",
            remedy=f"use at least {block}; {SHARD_TOKENS} is usual",
        )
    return Options(
        block=block,
        bos=bool(bos),
        shard_tokens=shard_tokens // block * block,
        replay_share=float(replay_share),
        # Not their number: a vocabulary may have holes.
        vocabulary=max(tokenizer.get_vocab().values()) + 1,
        tokenizer=tokenizer_fingerprint(tokenizer),
        eos=int(tokenizer.eos_token_id),
    )
