"""Which token stands for A, B, C and D behind a prompt; worked out for each prompt, never assumed.

A letter on its own is not what the model would write: SentencePiece puts `▁` before a text, so `A` alone is
`▁A`, while behind `答案：` it is a bare `A`. So the prompt and each letter are encoded *together*, and cut
where the four results part. A tokenizer may join the letter to the prompt's last character (`：A`): then the
context ends one token earlier, and the joined token stands for the letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.ceval.errors import LetterError
from chinese_llama_lab.ceval.prompts import Prompt
from chinese_llama_lab.ceval.questions import LETTERS

FORMS = ("bare", "spaced")


@dataclass(frozen=True)
class LetterIds:
    """The tokens of the four letters behind one prompt.

    Attributes:
        form: `bare` (the letter follows at once) or `spaced` (a space stands between).
        context: ids that the model reads; its logits behind the last one are looked at.
        ids: the id of A, B, C and D.
        tokens: the same as the tokenizer writes them, for the record.
        taken: how many of the prompt's last tokens went into the letters' tokens.
    """

    form: str
    context: tuple[int, ...]
    ids: tuple[int, int, int, int]
    tokens: tuple[str, ...]
    taken: int


def encode(tokenizer: Any, text: str, *, writes_bos: bool = False) -> list[int]:
    """Ids of a text to be continued: with BOS where the tokenizer adds one, and never with EOS.

    Args:
        tokenizer: a transformers tokenizer.
        text: any text.
        writes_bos: the text holds its BOS already.
    """
    ids = list(tokenizer(text, add_special_tokens=not writes_bos)["input_ids"])
    eos = getattr(tokenizer, "eos_token_id", None)
    if not writes_bos and ids and ids[-1] == eos and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    return ids


def letter_ids(tokenizer: Any, prompt: Prompt, form: str = "bare") -> LetterIds:
    """The context and the four ids for a prompt.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: what stands before the letter.
        form: `bare` or `spaced`. A prompt that ends in a space has it already: both are then the same.

    Raises: LetterError: unknown form, a letter of several tokens, two letters of one id, an unknown token.
    """
    if form not in FORMS:
        raise LetterError(f"form is {form!r}", where="form", remedy=f"use one of {', '.join(FORMS)}")
    alone, context, rests = _parted(tokenizer, prompt, form)
    for letter, rest in zip(LETTERS, rests, strict=True):
        if len(rest) != 1:
            shown = " ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(rest))
            raise LetterError(
                f"the letter {letter} takes {len(rest)} tokens behind this prompt: {shown}",
                where=f"style {prompt.style}, form {form}",
                remedy=_way_out(tokenizer, prompt, form),
            )
    ids = [rest[0] for rest in rests]
    tokens = tuple(str(token) for token in tokenizer.convert_ids_to_tokens(ids))
    if len(set(ids)) < len(LETTERS) or getattr(tokenizer, "unk_token_id", None) in ids:
        raise LetterError(
            f"the tokenizer cannot tell the letters apart: {', '.join(tokens)}",
            where=f"style {prompt.style}, form {form}",
            remedy="score by generation, or use a tokenizer that knows capital letters",
        )
    if not context:
        raise LetterError("nothing stands before the letter", where="prompt", remedy="give a prompt")
    return LetterIds(form, tuple(context), _four(ids), tokens, alone - len(context))


def _parted(tokenizer: Any, prompt: Prompt, form: str) -> tuple[int, list[int], list[list[int]]]:
    """How many ids the prompt alone has, those it shares with all letters behind it, each letter's own."""
    text = prompt.text
    space = " " if form == "spaced" and not text.endswith(" ") else ""
    alone = encode(tokenizer, text, writes_bos=prompt.writes_bos)
    joint = [encode(tokenizer, text + space + letter, writes_bos=prompt.writes_bos) for letter in LETTERS]
    context = _shared_start([alone, *joint])
    return len(alone), context, [ids[len(context) :] for ids in joint]


def _way_out(tokenizer: Any, prompt: Prompt, form: str) -> str:
    """The other form where it works, for the message."""
    other = "bare" if form == "spaced" else "spaced"
    if all(len(rest) == 1 for rest in _parted(tokenizer, prompt, other)[2]):
        return f"use form={other!r}, or score by generation"
    return "score by generation, or use a tokenizer that has one token for each letter"


def _shared_start(rows: Sequence[Sequence[int]]) -> list[int]:
    shared = []
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return shared


def _four(ids: Sequence[int]) -> tuple[int, int, int, int]:
    a, b, c, d = ids
    return a, b, c, d
