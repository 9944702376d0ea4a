"""Which questions are read together: grouped by the prefix that they share, longest first, within a budget.

The plan follows from the questions and the settings alone, so that a run that goes on after a stop, or that
several processes share, computes the same batches and with them the same logits, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.ceval.asked import Asked
from chinese_llama_lab.ceval.prefix import common_start

# A processor's matrix products are at their best from a few hundred rows on; beyond that its caches lose.
CPU_TOKENS = 768
_MASK_BYTES = 4


@dataclass(frozen=True)
class Sizes:
    """What reading takes of memory, from a model's config.

    Attributes:
        cached: bytes of keys and values of one token, all layers.
        passing: bytes of activations of one token, in one layer.
        logits: bytes of one row of logits, in the model's dtype and in float32.
    """

    cached: int
    passing: int
    logits: int

    @staticmethod
    def of(model: Any) -> Sizes:
        """The sizes of a model."""
        config = model.config.get_text_config()
        width = model.dtype.itemsize
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        of_keys = (getattr(config, "num_key_value_heads", None) or heads) * size
        rows = int(model.get_input_embeddings().weight.shape[0])
        # What a layer takes, gives and holds in between; norms are computed in float32.
        passing = width * (4 * config.hidden_size + 3 * config.intermediate_size + 4 * heads * size)
        return Sizes(
            config.num_hidden_layers * 2 * of_keys * width,
            passing + 8 * config.hidden_size,
            rows * (width + 4),
        )

    def batch(self, tokens: int, longest: int, before: int, rows: int) -> int:
        """Bytes of reading a batch behind a prefix of `before` tokens."""
        mask = longest * (before + longest) * _MASK_BYTES if before else 0
        return tokens * self.passing + mask + rows * self.logits

    def prefix(self, before: int, room: int) -> int:
        """Bytes of a prefix and the room behind it."""
        return (before + room) * self.cached if before else 0


@dataclass(frozen=True)
class Group:
    """Questions of one prefix.

    Attributes:
        subject: whose questions these are.
        prefix: the ids that all of them begin with; may be empty.
        batches: questions that are read together.
    """

    subject: str
    prefix: tuple[int, ...]
    batches: tuple[tuple[Asked, ...], ...]

    @property
    def room(self) -> int:
        """The most tokens that a question has behind the prefix."""
        return max(one.longest for batch in self.batches for one in batch) - len(self.prefix)

    @property
    def tokens(self) -> int:
        """What reading all of it takes."""
        return len(self.prefix) + sum(tokens_behind(one, len(self.prefix)) for b in self.batches for one in b)


def tokens_behind(asked: Asked, before: int) -> int:
    """Tokens of a question behind a prefix, all its contexts."""
    return sum(len(context) - before for context in asked.contexts)


def plan(
    asked: Sequence[Asked],
    sizes: Sizes,
    memory: int,
    *,
    batch: int | None = None,
    tokens: int | None = None,
    new_tokens: int = 0,
    share: bool = True,
) -> list[Group]:
    """Groups in the order of their first question.

    Args:
        asked: what is asked.
        sizes: of the model.
        memory: bytes that a batch and its prefix may take. A question that takes more is read alone.
        batch: at most so many questions together; None for no limit but memory.
        tokens: at most so many tokens together.
        new_tokens: by generation, how many are written; each question then holds keys and values of its own.
        share: False reads every question from its beginning, alone.
    """
    by_prefix: dict[tuple[str, str, str], list[Asked]] = {}
    for one in asked:
        by_prefix.setdefault((*one.key[:2], one.prompt.prefix), []).append(one)
    groups = []
    for (subject, _, _), members in by_prefix.items():
        before = common_start([context for one in members for context in one.contexts]) if share else 0
        prefix = members[0].contexts[0][:before]
        longest_first = sorted(members, key=lambda one: (-one.longest, one.place))
        left = memory - sizes.prefix(before, longest_first[0].longest - before)
        batches: list[tuple[Asked, ...]] = []
        current: list[Asked] = []
        for one in longest_first:
            larger = [*current, one]
            if current and (
                not share
                or (batch is not None and len(larger) > batch)
                or _bytes(larger, sizes, before, new_tokens) > left
                or (tokens is not None and sum(tokens_behind(each, before) for each in larger) > tokens)
            ):
                batches.append(tuple(current))
                larger = [one]
            current = larger
        groups.append(Group(subject, prefix, (*batches, tuple(current))))
    return groups


def _bytes(members: Sequence[Asked], sizes: Sizes, before: int, new_tokens: int) -> int:
    longest = members[0].longest - before
    if new_tokens:  # padded, each with keys and values of its own, the prefix's too
        total = len(members) * longest
        own = len(members) * (before + longest + new_tokens) * sizes.cached
        return 2 * own + sizes.batch(total, longest, before, len(members)) * 2
    rows = sum(len(one.contexts) for one in members)
    return sizes.batch(sum(tokens_behind(one, before) for one in members), longest, before, rows)


def share_out(groups: Iterable[Group], processes: int) -> list[list[Group]]:
    """The groups for each process, about equally many tokens each.

    Where there are few groups their batches are dealt out instead, and the prefix is read more than once.
    """
    pieces = list(groups)
    if len(pieces) < 2 * processes:
        pieces = [Group(g.subject, g.prefix, (batch,)) for g in pieces for batch in g.batches]
    shares: list[list[Group]] = [[] for _ in range(processes)]
    for piece in sorted(pieces, key=lambda group: -group.tokens):
        min(shares, key=lambda share: sum(group.tokens for group in share)).append(piece)
    return shares
