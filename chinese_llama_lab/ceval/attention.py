"""Attention over questions that lie end to end in one row and share the keys and values of a prefix.

Padding and copies are what batches of questions usually cost. Here the questions of a batch are one row of
tokens: layers that look at one token at a time (all but attention) see no padding, and have the tall
matrices that processors are fast with. In attention each question sees the prefix and itself. The prefix is
there once, with room behind it into which each question's own keys and values are written in turn, so that
nothing is copied or repeated; the query heads that share a key head (GQA) become rows of one batch.

It is an attention function of transformers' `AttentionInterface`, which hands `packed` on to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from chinese_llama_lab.ceval.errors import CevalError

NAME = "packed_questions"
# Attention over everything before, and nothing else: neither windows nor soft caps.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass
class Prefix:
    """Keys and values of a prefix.

    Attributes:
        length: P, number of tokens.
        room: R, how many tokens of a question fit behind it.
        keys, values: for each layer [key heads, P + R, head size].
    """

    length: int
    room: int
    keys: list[Any] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Packed:
    """How a row of tokens is to be read.

    Attributes:
        segments: (first, behind the last) token of each question.
        prefix: what all of them see before themselves; None for nothing.
        mask: [longest, P + longest], 0 where a token is seen, else minus infinity; None without a prefix.
        into: the row is a prefix, whose keys and values are to be kept there.
    """

    segments: Sequence[tuple[int, int]]
    prefix: Prefix | None = None
    mask: Any = None
    into: Prefix | None = None


def see_before(prefix: int, longest: int, like: Any) -> Any:
    """The mask of `Packed`, in the dtype and on the device of `like`."""
    import torch

    closed = torch.full((longest, prefix + longest), float("-inf"), dtype=like.dtype, device=like.device)
    return closed.triu_(prefix + 1)


def packed_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    packed: Packed | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Query [1, heads, N, size], key and value [1, key heads, N, size] → [1, N, heads, size].

    Raises: CevalError: the model's own code did not hand `packed` on, or asks for a sliding window.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if packed is None or sliding_window is not None:
        raise CevalError(
            "the model's attention cannot be shared between questions",
            where=type(module).__name__,
            remedy="pass shared=False: each question is then read with its prefix, on its own",
        )
    heads, size = key.shape[1], query.shape[3]
    group = query.shape[1] // heads
    query, key, value = query[0].unflatten(0, (heads, group)), key[0], value[0]
    prefix, before = packed.prefix, 0
    if prefix is not None:
        kept_keys, kept_values = prefix.keys[module.layer_idx], prefix.values[module.layer_idx]
        before = prefix.length
    outputs = []
    for first, behind in packed.segments:
        keys, values, mask, length = key[:, first:behind], value[:, first:behind], None, behind - first
        if prefix is not None:
            kept_keys[:, before : before + length] = keys
            kept_values[:, before : before + length] = values
            keys, values = kept_keys[:, : before + length], kept_values[:, : before + length]
            mask = packed.mask[:length, : before + length]
        shape = (heads, group, before + length, size)
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, first:behind],
                keys[:, None].expand(shape),
                values[:, None].expand(shape),
                attn_mask=mask,
                scale=scaling,
                is_causal=prefix is None and length > 1,
            )
        )
    if packed.into is not None:
        _keep(packed.into, key, value)
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return joined.flatten(0, 1).transpose(0, 1)[None].contiguous(), None


def _keep(prefix: Prefix, key: Any, value: Any) -> None:
    """Layers run in order, so that appending is numbering."""
    for kept, new in ((prefix.keys, key), (prefix.values, value)):
        rows = new.new_empty(new.shape[0], prefix.length + prefix.room, new.shape[2])
        rows[:, : prefix.length] = new
        kept.append(rows)


def can_pack(model: Any) -> bool:
    """Whether the model's attention is of the plain kind that questions can share."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    # Some configs name a window and leave it unused.
    window = "layer_types" not in config.to_dict() and getattr(config, "sliding_window", None) is not None
    return config.model_type in MODEL_TYPES and kinds == {"full_attention"} and not window


@contextmanager
def packed_questions(model: Any) -> Iterator[None]:
    """Within the block the model's attention is `packed_attention`; a peft model's too."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    before = model.config._attn_implementation
    # No mask of this name is registered, so that transformers builds none.
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
