"""Texts as token ids for scoring: each from its beginning, after BOS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def encoded(tokenizer: Any, text: str) -> list[int]:
    """Token ids after BOS (EOS where there is none, as in `bits_per_character`); none for an empty text.

    What looks like a special token is text, as it was in training.
    """
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [first, *ids] if ids and first is not None else list(ids)


def blocks_of(tokenizer: Any, texts: Iterable[str], block: int) -> Iterator[list[int]]:
    """Texts cut into blocks of at most so many tokens; no block holds parts of two."""
    for text in texts:
        ids = encoded(tokenizer, text)
        yield from (ids[at : at + block] for at in range(0, len(ids), block))
