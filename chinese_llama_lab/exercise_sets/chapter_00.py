"""Checkers of notebook 00."""

from __future__ import annotations

from typing import Any

from chinese_llama_lab.exercises import Verdict, exercise, expect_close


@exercise("0.1", hint="the number before the boxes counts the tokens; divide it by the characters")
def _(answer: Any) -> Verdict:
    return expect_close(
        answer,
        35 / 28,
        0.005,
        why={
            28 / 35: "that is characters per token; tokens per character is the other way round",
            35: "that is the number of tokens; divide it by the number of characters",
            15 / 28: "that is Qwen's figure; the question is about LLaMA's tokenizer",
        },
        praise="35 tokens for 28 characters: more tokens than characters",
    )
