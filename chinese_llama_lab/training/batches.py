"""From packed blocks and instruction rows to the batches of a run, in an order that a seed fixes."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chinese_llama_lab.training.instructions import IGNORED, EncodedInstructions, Example
from chinese_llama_lab.training.packing import Bin, Packed, pack_examples

_SORTED_AT_ONCE = 50  # batches; rows are sorted by length within so many


@dataclass(frozen=True)
class Item:
    """One sequence of a batch: ids, labels, and positions where they start again within it.

    `replayed`, where it matters: whether each token belongs to a replayed document.
    """

    input_ids: list[int]
    labels: list[int]
    positions: list[int] | None
    replayed: list[bool] | None = None


class Sequences:
    """What a run trains on: sequences, where each comes from, and their order.

    Attributes:
        lengths: tokens of each sequence. characters_per_token: of the whole, EOS and prompts counted as
            tokens.
        summary: one line for the report. digest: sha256 over what they hold.
    """

    lengths: list[int]
    characters_per_token: float
    summary: str
    digest: str

    def __len__(self) -> int:
        return len(self.lengths)

    def item(self, index: int) -> Item:
        """Sequence number `index`."""
        raise NotImplementedError

    def documents(self, index: int) -> list[str]:
        """Names of what it holds, for messages."""
        raise NotImplementedError

    def epoch(self, number: int, seed: int, micro_batch: int) -> list[int]:
        """The order of one pass."""
        order = list(range(len(self)))
        if number:  # documents were shuffled before packing: the first pass takes the blocks as they come
            random.Random(seed * 1_000_003 + number).shuffle(order)
        return order


class BlockSequences(Sequences):
    """Packed blocks. `mark_replayed`: items say which tokens are replayed."""

    def __init__(self, packed: Packed, *, mark_replayed: bool = False) -> None:
        self._packed, self._mark = packed, mark_replayed
        self.lengths = [packed.block] * len(packed)
        self.characters_per_token = packed.characters_per_token
        self.summary = repr(packed)
        digest = hashlib.sha256(packed.ids.tobytes())
        digest.update(json.dumps([packed.block, packed.separate]).encode())
        self.digest = digest.hexdigest()

    def item(self, index: int) -> Item:
        ids = self._packed.block_ids(index)
        positions = self._packed.block_positions(index) if self._packed.separate else None
        return Item(ids, ids, positions, self._packed.block_replayed(index) if self._mark else None)

    def documents(self, index: int) -> list[str]:
        numbers = self._packed.block_documents(index)
        return [f"document {n}" if n >= 0 else f"replay document {-1 - n}" for n in numbers]


class InstructionSequences(Sequences):
    """Instruction rows, one a sequence or several packed into one."""

    def __init__(self, encoded: EncodedInstructions, *, batching: str, block: int) -> None:
        self._held: list[Example] | list[Bin]
        if batching == "packing":
            self._held = pack_examples(encoded.examples, block)
        else:
            self._held = encoded.examples
        self._length_groups = batching == "length"
        self.lengths = [len(entry.input_ids) for entry in self._held]
        self.characters_per_token = sum(e.characters for e in encoded.examples) / sum(self.lengths)
        self.summary = repr(encoded) + (
            f"\npacked into {len(self._held)} sequences" if batching == "packing" else ""
        )
        held = json.dumps([[entry.input_ids, entry.labels] for entry in self._held])
        self.digest = hashlib.sha256(held.encode()).hexdigest()

    def item(self, index: int) -> Item:
        entry = self._held[index]
        positions = entry.position_ids if isinstance(entry, Bin) else None
        return Item(entry.input_ids, entry.labels, positions)

    def documents(self, index: int) -> list[str]:
        entry = self._held[index]
        return [f"row {one.row}" for one in (entry.examples if isinstance(entry, Bin) else (entry,))]

    def epoch(self, number: int, seed: int, micro_batch: int) -> list[int]:
        shuffler = random.Random(seed * 1_000_003 + number)
        order = list(range(len(self)))
        shuffler.shuffle(order)
        if not self._length_groups:
            return order
        # Rows of like length side by side, so that little is padded; which batch comes when stays random.
        span = micro_batch * _SORTED_AT_ONCE
        batches: list[list[int]] = []
        for at in range(0, len(order), span):
            group = sorted(order[at : at + span], key=lambda n: self.lengths[n])
            batches += [group[k : k + micro_batch] for k in range(0, len(group), micro_batch)]
        # An incomplete batch stays last: in front of others it would shift them all.
        last = [batches.pop()] if len(order) % micro_batch and len(batches[-1]) < micro_batch else []
        shuffler.shuffle(batches)
        return [n for batch in batches + last for n in batch]


class Ordered(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The sequences in the order of a whole run; each element knows its number."""

    def __init__(self, sequences: Sequences, order: Sequence[int]) -> None:
        self.sequences, self.order = sequences, list(order)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[int, Item]:
        index = self.order[place]
        return index, self.sequences.item(index)


def run_order(
    sequences: Sequences, *, epochs: int, steps: int, batch: int, micro: int, seed: int
) -> list[int]:
    """Numbers of the sequences of a whole run: `steps` batches, or (steps = 0) `epochs` passes."""
    order: list[int] = []
    number = 0
    while (len(order) < steps * batch) if steps else (number < epochs):
        order += sequences.epoch(number, seed, micro)
        number += 1
    return order[: steps * batch] if steps else order


def collate(pad: int, rows: Sequence[tuple[int, Item]]) -> dict[str, torch.Tensor]:
    """Right-padded int64 tensors of shape (rows, longest), and `sequence`: their numbers.

    `replayed`, bool, is there where a row says which tokens are; padding is not.

    There is no attention mask: attention is causal and padding comes last, so no real token sees any.
    The first label is set aside, since nothing comes before it.
    """
    longest = max(len(item.input_ids) for _, item in rows)
    ids = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), IGNORED)
    positions = torch.arange(longest).repeat(len(rows), 1)
    packed = False
    for n, (_, item) in enumerate(rows):
        size = len(item.input_ids)
        ids[n, :size] = torch.tensor(item.input_ids)
        labels[n, :size] = torch.tensor(item.labels)
        if item.positions is not None:
            packed = True
            positions[n, :size] = torch.tensor(item.positions)
            # Padding counts on, as if it belonged to the last document.
            positions[n, size:] = item.positions[-1] + 1 + torch.arange(longest - size)
    labels[:, 0] = IGNORED
    batch = {"input_ids": ids, "labels": labels, "sequence": torch.tensor([index for index, _ in rows])}
    if any(item.replayed for _, item in rows):
        batch["replayed"] = torch.zeros(len(rows), longest, dtype=torch.bool)
        for n, (_, item) in enumerate(rows):
            if item.replayed:
                batch["replayed"][n, : len(item.replayed)] = torch.tensor(item.replayed)
    return batch | {"position_ids": positions} if packed else batch
