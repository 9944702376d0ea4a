"""Shards as what a run trains on: memory-mapped, so that a run sees 100 GB of ids and holds a few blocks.

Order: the blocks of all shards are shuffled anew for each pass, by the recipe's seed and the number of the
pass, with numpy's `RandomState`, whose stream is the same in every version. The first pass is shuffled too:
unlike those of `pack`, the blocks lie in the order of the text. A run of a given number of steps takes the
beginning of that order, so it is a random sample of the whole text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, concatenate_datasets

from chinese_llama_lab.training.batches import Item, Sequences
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.packing import block_positions, replayed_tokens
from chinese_llama_lab.training.recipe import Recipe
from chinese_llama_lab.training.shard_index import ShardIndex, read_index, tokenizer_fingerprint


def load_shards(
    folder: Path, tokenizer: Any = None, *, separate: bool = True, verify: bool = True
) -> ShardSequences:
    """Open the shards of a folder.

    Args:
        folder: that `write_shards` wrote. tokenizer: of the model to be trained, compared with the shards'.
        separate: positions start again at each document, and attention stays within it; `pretrain` sets this
            by the recipe.
        verify: read every file once and compare its sha256, about a second a GB; without it only sizes and
            rows are compared.

    Returns: ShardSequences, for `pretrain` in place of a corpus.

    Raises: TrainingError: no shards, shards that are not complete, a file that is missing or damaged (its
        name is given), another tokenizer.
    """
    index = read_index(Path(folder))
    if not index.complete:
        raise TrainingError(
            f"the shards are not complete: there are {len(index.shards)} so far",
            where=str(folder),
            remedy="write_shards(…, resume=True) (`chinese-llama-lab shards … --resume`) goes on",
        )
    if tokenizer is not None:
        check_tokenizer(index, tokenizer)
    parts = [_open(index, place, verify) for place in range(len(index.shards))]
    return ShardSequences(index, concatenate_datasets(parts), separate=separate)


def check_tokenizer(index: ShardIndex, tokenizer: Any) -> None:
    """Raise TrainingError unless the shards were written with a tokenizer of the same vocabulary."""
    if tokenizer_fingerprint(tokenizer) != index.options.tokenizer:
        raise TrainingError(
            f"the shards were written with another tokenizer: its vocabulary has {index.options.vocabulary}"
            f" ids, and this one's {max(tokenizer.get_vocab().values()) + 1}",
            where=str(index.folder),
            remedy="give the model that the tokenizer belongs to, or write the shards anew",
        )
    if tokenizer.eos_token_id != index.options.eos:
        raise TrainingError(
            f"documents end in id {index.options.eos}, and the tokenizer's EOS is {tokenizer.eos_token_id}",
            where=str(index.folder),
            remedy="set tokenizer.eos_token to what the shards were written with, or write them anew",
        )


def _open(index: ShardIndex, place: int, verify: bool) -> Dataset:
    shard = index.shards[place]
    path = index.folder / shard.name
    damage = shard.check(index.folder) if verify else None
    if damage is None and not path.is_file():
        damage = f"{shard.name} is missing"
    if damage is None and path.stat().st_size != shard.bytes:
        damage = f"{shard.name} has {path.stat().st_size} bytes instead of {shard.bytes}"
    if damage is None:
        try:
            data = Dataset.from_file(str(path))
            if len(data) == shard.blocks:
                return data
            damage = f"{shard.name} has {len(data)} blocks instead of {shard.blocks}"
        except (OSError, pa.ArrowException, ValueError, TypeError) as error:
            damage = f"{shard.name} cannot be read: {error}"
    raise TrainingError(
        damage,
        where=str(path),
        remedy="write_shards with the same text and resume=True (--resume) writes it anew, and all behind it",
    )


class ShardSequences(Sequences):
    """Blocks of shards; only those that are read are in memory.

    Attributes:
        index: what the folder holds. separate: whether positions start again at each document.
        mark_replayed: whether items say which tokens are replayed.
        others as in `Sequences`; `summary` is the index's.
    """

    def __init__(self, index: ShardIndex, data: Dataset, *, separate: bool = True) -> None:
        self.index, self.separate, self._data = index, separate, data
        self.mark_replayed = False
        # A list would take 8 bytes a block, all of them the same number.
        self.lengths = cast("list[int]", _Same(index.options.block, len(data)))
        self.characters_per_token = index.characters_per_token
        self.summary = repr(index).splitlines()[0]
        self._most = len(data)

    @property
    def digest(self) -> str:  # type: ignore[override]
        """sha256 over the shards' own, and whether documents are kept apart."""
        shards = [shard.sha256 for shard in self.index.shards]
        about = json.dumps([shards, self.index.options.block, self.separate])
        return hashlib.sha256(about.encode()).hexdigest()

    def item(self, index: int) -> Item:
        row = self._data[index]
        ids = row["input_ids"]
        positions = block_positions(row["starts"], len(ids)) if self.separate else None
        replayed = replayed_tokens(row["starts"], row["documents"], len(ids)) if self.mark_replayed else None
        return Item(ids, ids, positions, replayed)

    def documents(self, index: int) -> list[str]:
        numbers = self._data[index]["documents"]
        return [f"document {n}" if n >= 0 else f"replay document {-1 - n}" for n in numbers]

    def epoch(self, number: int, seed: int, micro_batch: int) -> list[int]:
        order = np.arange(len(self), dtype=np.uint32)
        np.random.RandomState([seed, number]).shuffle(order)
        return cast("list[int]", order[: self._most].tolist())

    def for_run(self, recipe: Recipe, tokenizer: Any) -> ShardSequences:
        """The same shards as a recipe wants them.

        Raises: TrainingError: they were written with another block, BOS, share of replay, or tokenizer.
        """
        check_tokenizer(self.index, tokenizer)
        for key in ("block", "bos", "replay_share"):
            there, wanted = getattr(self.index.options, key), getattr(recipe, key)
            if there != wanted:
                value = str(there).lower()
                raise TrainingError(
                    f"the shards were written with {key} = {value}, and the recipe has {str(wanted).lower()}",
                    where=str(self.index.folder),
                    remedy=f"recipe.replace({key}={there!r}) (--set {key}={value}), or write the shards anew",
                )
        found = copy(self)
        found.separate = recipe.separate_documents
        found.mark_replayed = recipe.replay_target == "base"
        steps = recipe.steps * recipe.batch
        if 0 < steps < len(self):  # one pass is more than the run takes: the rest needs no place in a list
            found._most = steps
        return found


class _Same(Sequence[int]):
    """The same number, many times."""

    def __init__(self, value: int, times: int) -> None:
        self._value, self._times = value, times

    def __len__(self) -> int:
        return self._times

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        if isinstance(place, slice):
            return _Same(self._value, len(range(*place.indices(self._times))))
        if not -self._times <= place < self._times:
            raise IndexError(place)
        return self._value
