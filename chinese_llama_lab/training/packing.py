"""Texts packed end to end into blocks of equal length, without loss and without padding.

Every document ends in EOS (the published v1 script writes none, so a model learns documents that run into
each other). The only tokens that are not trained on are those of the tail, shorter than one block, which is
reported. With `separate`, positions start again at each document and attention does not look back into the
one before: transformers reads that off `position_ids` when there is neither an attention mask nor a cache
(with `use_cache=True` it attends across documents and says nothing). arXiv 2407.09105.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from chinese_llama_lab.tokenization.base import utf8_lengths
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.instructions import IGNORED, Example

_TOKENIZE_AT_ONCE = 512  # documents


@dataclass(frozen=True)
class Packed:
    """Blocks of `block` tokens, as one flat array.

    Attributes:
        ids: token ids of all blocks and of the tail, 32 bits each.
        starts: where each document begins in `ids`; they lie in training order.
        documents: for each of them its number in the input: n is corpus document n, -1 - n replay document n.
        block: tokens a block. separate: whether positions start again at each document.
        characters: code points of all documents. replay_tokens: tokens of the replayed documents.
        replay_asked: the share of them that was asked for.
    """

    ids: array[int]
    starts: list[int]
    documents: list[int]
    block: int
    separate: bool
    characters: int
    replay_tokens: int
    replay_asked: float = 0.0

    def __len__(self) -> int:
        return len(self.ids) // self.block

    @property
    def tail(self) -> int:
        """Tokens at the end that fill no block and are not trained on."""
        return len(self.ids) % self.block

    @property
    def replay_share(self) -> float:
        """Share of the tokens that belong to replayed documents."""
        return self.replay_tokens / len(self.ids)

    @property
    def characters_per_token(self) -> float:
        """Of the whole mix, EOS counted as a token."""
        return self.characters / len(self.ids)

    def block_ids(self, index: int) -> list[int]:
        """Token ids of block `index`."""
        return list(self.ids[index * self.block : (index + 1) * self.block])

    def block_positions(self, index: int) -> list[int]:
        """Positions of the tokens of a block; a document that began in the block before starts at 0 here."""
        return block_positions(self._starts_in(index) if self.separate else (), self.block)

    def block_documents(self, index: int) -> list[int]:
        """Numbers of the documents that a block holds a part of, as in `documents`."""
        first = bisect_right(self.starts, index * self.block) - 1
        return self.documents[first : bisect_right(self.starts, (index + 1) * self.block - 1)]

    def block_replayed(self, index: int) -> list[bool]:
        """Whether each token of a block belongs to a replayed document."""
        return replayed_tokens(self._starts_in(index), self.block_documents(index), self.block)

    def _starts_in(self, index: int) -> list[int]:
        """Places in block `index` where documents begin, but for one that begins with it."""
        begin, end = index * self.block, (index + 1) * self.block
        inside = self.starts[bisect_right(self.starts, begin) : bisect_right(self.starts, end - 1)]
        return [start - begin for start in inside]

    def __repr__(self) -> str:
        replay = f", {self.replay_share:.1%} of the tokens replayed" if self.replay_asked else ""
        if abs(self.replay_share - self.replay_asked) > 0.02:  # a short run, and long documents to replay
            replay += f" ({self.replay_asked:.1%} asked for)"
        return (
            f"{len(self)} blocks of {self.block} tokens from {len(self.documents)} documents{replay}; "
            f"tail of {self.tail} tokens left out"
        )


def block_positions(starts: Sequence[int], block: int) -> list[int]:
    """Positions of a block's tokens; a document that began in the block before starts at 0 here."""
    positions: list[int] = []
    for start in [*starts, block]:
        positions.extend(range(start - len(positions)))
    return positions


def replayed_tokens(starts: Sequence[int], documents: Sequence[int], block: int) -> list[bool]:
    """Whether each token of a block belongs to a replayed document.

    Args:
        starts: places in the block where documents begin; the first may lie in it or before it.
        documents: their numbers, below zero for those replayed, the one that began before included.
    """
    edges = [0, *(start for start in starts if start), block]
    spans = zip(documents, pairwise(edges), strict=True)
    return [number < 0 for number, (begin, end) in spans for _ in range(begin, end)]


def pack(
    texts: Iterable[Any],
    tokenizer: Any,
    block: int,
    *,
    seed: int = 0,
    separate: bool = True,
    bos: bool = False,
    replay: Iterable[Any] = (),
    replay_share: float = 0.0,
    tokens: int | None = None,
) -> Packed:
    """Shuffle documents by `seed`, tokenise, and lay them end to end.

    What looks like a special token in a text (`</s>`) is text: the only EOS are those at documents' ends.

    Args:
        texts: documents: strings, or objects with a `text` (as a corpus yields). Empty ones are left out.
        tokenizer: a transformers tokenizer with an EOS token (and a BOS token for `bos`).
        block: tokens a block.
        seed: of the order. The same texts, options and seed give the same blocks on every machine.
        separate: whether positions and attention start again at each document.
        bos: put BOS before each document, as the published v1 script does.
        replay: English documents against forgetting; as many as the share asks for are drawn by seed.
        replay_share: their share of the tokens of the mix, in [0, 1); met to within one document.
        tokens: stop when there are so many; a short run need not tokenise a long corpus.

    Returns: Packed.

    Raises: TrainingError: no text, fewer tokens than one block (both numbers are named), too little to
        replay, no EOS, or an impossible option. TextError: a document with a lone surrogate.
    """
    _check(tokenizer, block, bos, replay_share)
    if tokens is not None and tokens < 1:
        raise TrainingError(f"tokens is {tokens}", remedy="use at least 1, or None for all")
    shuffler = random.Random(seed)
    limit = None if tokens is None else tokens * (1 - replay_share) + block
    main = _encode(_shuffled(texts, shuffler, "corpus"), tokenizer, bos, limit, "corpus")
    if not main:
        raise TrainingError(
            "the corpus holds no text", where="corpus", remedy="give at least one document that is not empty"
        )
    documents = list(main)
    own = sum(len(ids) for _, ids, _ in main)
    wanted = replay_share / (1 - replay_share) * own
    replayed = 0
    if wanted:
        english = _encode(_shuffled(replay, shuffler, "replay"), tokenizer, bos, wanted, "replay")
        for number, ids, characters in english:
            # Stop where one document more would miss the share by more than leaving it out.
            if replayed + len(ids) / 2 > wanted:
                break
            documents.append((-1 - number, ids, characters))
            replayed += len(ids)
        else:
            if replayed < wanted * 0.95:
                raise TrainingError(
                    f"a replay share of {replay_share:.3g} needs {round(wanted)} tokens, and the replay texts"
                    f" hold {replayed}",
                    where="replay",
                    remedy=f"give more of them, or replay_share = {replayed / (replayed + own):.3f} or less",
                )
    shuffler.shuffle(documents)
    flat, starts = array("i"), []
    for _, ids, _ in documents:
        starts.append(len(flat))
        flat.extend(ids)
    if len(flat) < block:
        raise TrainingError(
            f"the corpus is shorter than one block: {len(flat)} tokens, and a block has {block}",
            where="corpus",
            remedy=f"give more text, or block = {len(flat)} or less",
        )
    characters = sum(count for _, _, count in documents)
    numbers = [number for number, _, _ in documents]
    return Packed(flat, starts, numbers, block, separate, characters, replayed, replay_share)


def _check(tokenizer: Any, block: int, bos: bool, replay_share: float) -> None:
    if block < 2:
        raise TrainingError(f"block is {block}", remedy="use at least 2 tokens")
    if not 0 <= replay_share < 1:
        raise TrainingError(f"replay_share is {replay_share}", remedy="use 0 or more, and less than 1")
    if tokenizer.eos_token_id is None:
        raise TrainingError("the tokenizer has no EOS token", remedy="set tokenizer.eos_token")
    if bos and tokenizer.bos_token_id is None:
        raise TrainingError(
            "the tokenizer has no BOS token", remedy="set tokenizer.bos_token, or bos = false"
        )


def _shuffled(texts: Iterable[Any], shuffler: random.Random, name: str) -> list[tuple[int, Any]]:
    if isinstance(texts, (str, bytes, Mapping)):  # a text would be taken for a list of characters
        raise TrainingError(
            f"the {name} is {type(texts).__name__}, not a list of documents",
            where=name,
            remedy="give [text], or the documents of read_documents",
        )
    numbered = list(enumerate(texts))
    shuffler.shuffle(numbered)
    return numbered


def _encode(
    numbered: Iterable[tuple[int, Any]], tokenizer: Any, bos: bool, limit: float | None, name: str
) -> list[tuple[int, array[int], int]]:
    """(number, ids with EOS, characters) of documents that are not empty, until there are `limit` tokens."""
    start = [tokenizer.bos_token_id] if bos else []
    found: list[tuple[int, array[int], int]] = []
    batch: list[tuple[int, str]] = []
    count = 0

    def flush() -> None:
        nonlocal count
        if batch:
            # verbose=False: a document may well be longer than the model reads; it is cut into blocks here.
            texts = [text for _, text in batch]
            options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
            encoded = tokenizer(texts, **options)["input_ids"]
            for (number, text), ids in zip(batch, encoded, strict=True):
                if limit is not None and count >= limit:
                    break
                found.append((number, array("i", [*start, *ids, tokenizer.eos_token_id]), len(text)))
                count += len(found[-1][1])
            batch.clear()

    for number, document in numbered:
        text = document if isinstance(document, str) else getattr(document, "text", None)
        if not isinstance(text, str):
            raise TrainingError(
                f"document {number} is {type(document).__name__}, not text",
                where=name,
                remedy="give strings, or objects with a `text`",
            )
        utf8_lengths([text], first=number)  # names the document that holds a lone surrogate
        if text.strip():
            batch.append((number, text))
        if len(batch) == _TOKENIZE_AT_ONCE:
            flush()
            if limit is not None and count >= limit:
                break
    flush()
    return found


@dataclass(frozen=True)
class Bin:
    """Whole instruction rows side by side in one sequence, kept apart by their positions."""

    examples: tuple[Example, ...]

    @property
    def input_ids(self) -> list[int]:
        return [i for example in self.examples for i in example.input_ids]

    @property
    def labels(self) -> list[int]:
        # The first token of a row follows the last of another: nothing may be learnt from that.
        return [i for example in self.examples for i in [IGNORED, *example.labels[1:]]]

    @property
    def position_ids(self) -> list[int]:
        return [i for example in self.examples for i in range(len(example.input_ids))]


def pack_examples(examples: Sequence[Example], length: int) -> list[Bin]:
    """Put whole rows into as few sequences of at most `length` tokens as first-fit decreasing finds.

    Raises: TrainingError: a row is longer than `length`.
    """
    order = sorted(range(len(examples)), key=lambda n: (-len(examples[n].input_ids), n))
    bins: list[list[Example]] = []
    room: list[int] = []
    for number in order:
        size = len(examples[number].input_ids)
        if size > length:
            raise TrainingError(
                f"row {examples[number].row} has {size} tokens and a sequence {length}",
                remedy="encode the rows with max_length no larger",
            )
        place = next((n for n, left in enumerate(room) if left >= size), None)
        if place is None:
            bins.append([])
            room.append(length)
            place = len(bins) - 1
        bins[place].append(examples[number])
        room[place] -= size
    return [Bin(tuple(rows)) for rows in bins]
