"""Shots leave from the left until the prompt fits into the model's context, and it is said how many left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chinese_llama_lab.ceval.errors import PromptError
from chinese_llama_lab.ceval.letters import encode
from chinese_llama_lab.ceval.prompts import Prompt, build_prompt
from chinese_llama_lab.ceval.questions import Question


def fit_prompt(
    tokenizer: Any,
    style: str,
    question: Question,
    shots: Sequence[Question] = (),
    *,
    max_tokens: int | None,
    cot: bool = False,
    names: str = "chinese",
) -> Prompt:
    """The prompt with as many of the shots as fit, the last ones.

    Args:
        tokenizer: counts the tokens, BOS included.
        style, question, shots, cot, names: as in `build_prompt`.
        max_tokens: longest prompt in tokens; None for no limit. Leave room for what is generated.

    Returns: the prompt; `dropped` says how many shots are missing.

    Raises: PromptError: the question is too long even on its own. A model reads beyond its context without a
        word and answers at random there.
    """
    for dropped in range(len(shots) + 1):
        prompt = build_prompt(style, question, shots[dropped:], cot=cot, names=names, tokenizer=tokenizer)
        if max_tokens is None:
            return prompt
        length = len(encode(tokenizer, prompt.text, writes_bos=prompt.writes_bos))
        if length <= max_tokens:
            return replace(prompt, dropped=dropped)
    raise PromptError(
        f"the question takes {length} tokens without any shots, and {max_tokens} fit",
        where=question.where or f"{question.subject}, id {question.id}",
        remedy="use a model with a longer context or leave this question out; the other scores stay",
    )


def dropped_note(prompt: Prompt, asked: int) -> str:
    """A sentence about the shots that left, or an empty string."""
    if not prompt.dropped:
        return ""
    return f"{prompt.dropped} of {asked} shots were dropped from the left: the context is too short"
