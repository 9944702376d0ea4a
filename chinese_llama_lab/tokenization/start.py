"""What stands before a text when a model scores it."""

from __future__ import annotations

from typing import Any

from chinese_llama_lab.errors import TextError


def ids_before(tokenizer: Any, start: str | None = None, most: int = 1) -> list[int]:
    """Ids that stand before each text: of `start`, at most `most` of them, or BOS, or EOS.

    Raises: TextError: there are none, or too many.
    """
    if start is not None:
        ids: list[int] = tokenizer.encode(start, add_special_tokens=False, split_special_tokens=True)
        if not 0 < len(ids) <= most:
            raise TextError(f"start={start!r} is {len(ids)} tokens.", remedy=f"Use 1 to {most} tokens.")
        return ids
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise TextError(
            "The tokenizer has neither a BOS nor an EOS token.", remedy="Set tokenizer.bos_token."
        )
    return [first]
