"""Checkers of notebook 01. Right answers are computed from the same text that the notebook uses."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

from chinese_llama_lab.exercises import (
    Case,
    Verdict,
    exercise,
    expect_choice,
    expect_close,
    expect_function,
    right,
    wrong,
)
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.tokenization.fertility import compare
from chinese_llama_lab.tokenization.registry import open_tokenizer

# Each length's first and last code point: where a comparison that is off by one goes wrong.
_EDGES = {1: "\x00a\x7f", 2: "\x80é\u07ff", 3: "\u0800中\uffff", 4: "\U00010000𠮷\U0010ffff"}


@cache
def _sample() -> list[str]:
    return load_corpus("peoples-daily").raw().texts()[::20]


@cache
def _tokens_per_character() -> dict[str, float]:
    names = ("llama", "smollm2", "deepseek-v4")
    measured = compare(names, _sample(), reference=None, coverage=False, resamples=2)
    return {name: result.tokens_per_character for name, result in zip(names, measured, strict=True)}


@exercise("1.1", hint="ord(character) is the code point; it fits one byte below 1 << 7, two below 1 << 11, …")
def _(answer: Any) -> Verdict:
    cases = [
        Case((character,), length, f"U+{ord(character):04X} has {length} byte{'s' * (length > 1)} in UTF-8")
        for length, characters in _EDGES.items()
        for character in characters
    ]
    return expect_function(
        answer,
        cases,
        mistakes={
            "characters from U+10000 on have four bytes": lambda c: (
                1 + (ord(c) >= 1 << 7) + (ord(c) >= 1 << 11)
            ),
            "at exactly 2⁷, 2¹¹ and 2¹⁶ the bits no longer fit, and one more byte is needed": (
                lambda c: 1 + (ord(c) > 1 << 7) + (ord(c) > 1 << 11) + (ord(c) > 1 << 16)
            ),
            "not every character beyond ASCII has three bytes": lambda c: 1 if ord(c) < 128 else 3,
            "that counts characters, not bytes": len,
        },
    )


@exercise("1.2", hint="fertility(name, sample).tokens gives a count; divide SmolLM2's by DeepSeek-V4's")
def _(answer: Any) -> Verdict:
    rates = _tokens_per_character()
    smollm2, deepseek = rates["smollm2"], rates["deepseek-v4"]
    return expect_close(
        answer,
        smollm2 / deepseek,
        0.01,
        why={
            deepseek / smollm2: "that is the other way round: how many times as few",
            smollm2 - deepseek: "that is a difference; a ratio is asked for",
            smollm2: "that is SmolLM2's tokens per character; divide it by DeepSeek-V4's",
        },
        praise="three tokens where one would do",
    )


@exercise(
    "1.3", hint="count all characters, then walk from the most frequent down to the first without a token"
)
def _(answer: Any) -> Verdict:
    if not isinstance(answer, str) or len(answer) != 1:
        return wrong("one character is wanted, as a string")
    if not "\u4e00" <= answer <= "\u9fff":
        return wrong(f"{answer} is not among the characters that are counted here")
    counts = Counter(c for text in _sample() for c in text if "\u4e00" <= c <= "\u9fff")
    llama = open_tokenizer("llama")
    if llama.find_token(answer.encode()) is not None:
        return wrong(
            f"{answer} is frequent, but LLaMA has a token for it: id {llama.find_token(answer.encode())}"
        )
    best = next(c for c, _ in counts.most_common() if llama.find_token(c.encode()) is None)
    # Several characters may be equally frequent: each of them is a right answer.
    if counts[answer] == counts[best]:
        return right(f"{counts[best]} times in the sample, at three tokens each time")
    return wrong(f"{answer} has no token, but occurs {counts[answer]} times; another one occurs more often")


@exercise("1.4", hint="cache_per_token is in bytes; a character of the sample costs so many tokens")
def _(answer: Any) -> Verdict:
    rate = _tokens_per_character()["llama"]
    token = 2 * 32 * 4096 * 2 / 1024
    return expect_close(
        answer,
        token * rate,
        2.0,
        unit="KiB",
        why={
            token * rate / 2: "half of it: each layer keeps a key and a value",
            token: "that is for one token; a character costs more than one",
            token / rate: "divided where it should be multiplied: a character costs more than one token",
        },
        praise="for one single character",
    )


@exercise("1.5", hint="which figure is low because text was thrown away?")
def _(answer: Any) -> Verdict:
    return expect_choice(
        answer,
        "C",
        {
            "A": "a low figure without unknown tokens is a real saving",
            "B": "nearly a token for each character, and nothing lost: dear, but comparable",
            "D": "dear, but honest: every character can be read back",
        },
        praise="each unknown token may have swallowed a whole word: its figure is too low",
    )
