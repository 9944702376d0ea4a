"""Checkers of notebook 08."""

from __future__ import annotations

from typing import Any

from chinese_llama_lab.exercises import (
    Case,
    Verdict,
    exercise,
    expect_choice,
    expect_close,
    expect_function,
)

_GIB = [Case((gb,), gb * 1e9 / 2**30, f"{gb:g} · 10⁹ bytes") for gb in (24, 13.48, 1.073741824)]
_CACHES = [
    Case(sizes, 2 * sizes[0] * sizes[1] * sizes[2] * sizes[3] * sizes[4], name)
    for sizes, name in (
        ((32, 32, 128, 2048, 2), "LLaMA-7B in bfloat16"),
        ((32, 8, 128, 8192, 2), "Llama-3-8B in bfloat16"),
        ((30, 3, 64, 100, 4), "SmolLM2 in float32"),
    )
]
_PAGES = [
    Case((characters, tokens, speed), characters * tokens / speed)
    for characters, tokens, speed in ((500, 1.8, 20.0), (500, 0.8, 20.0), (1200, 0.5, 30.0))
]


@exercise("8.1", hint="how many bytes is that? and how many times do 2³⁰ of them fit?")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _GIB,
        mistakes={
            "the other way round: a GiB is the larger unit, so there are fewer of them": lambda gb: (
                gb * 2**30 / 1e9
            ),
            "1,000/1,024 is the step of one kilobyte, and a gigabyte is three such steps": lambda gb: (
                gb * 1000 / 1024
            ),
        },
        praise="7 % lie between the two",
    )


@exercise("8.2", hint="estimate each, and compare `.gib` with 24; where do most of the bytes lie?")
def _(answer: Any) -> Verdict:
    return expect_choice(
        answer,
        "checkpointing",
        {
            "nf4-double": "the weights become smaller by 10 GB, but here activations are 72",
            "rank": "A and B, their gradients and moments are a third of a GB in all: half of that is little",
        },
        praise="activations are most of it, and only this change touches them",
    )


@exercise("8.3", hint="a key and a value, in each layer, for each key-value head, of each token")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _CACHES,
        mistakes={
            "keys are there; the values are missing": lambda layers, heads, width, tokens, size: (
                layers * heads * width * tokens * size
            ),
            "that counts numbers, not bytes": lambda layers, heads, width, tokens, size: (
                2 * layers * heads * width * tokens
            ),
            "that is one layer's": lambda layers, heads, width, tokens, size: (
                2 * heads * width * tokens * size
            ),
            "that is one token's": lambda layers, heads, width, tokens, size: (
                2 * layers * heads * width * size
            ),
        },
    )


@exercise("8.4", hint="how often can all the bytes be read in a second?")
def _(answer: Any) -> Verdict:
    return expect_close(
        answer,
        936 / 4.17,
        0.6,
        why={
            936 / 13.48: "that is the limit in bfloat16; in NF4 there are fewer bytes to read",
            4.17 / 936: "that is the seconds of a token; tokens per second are its reciprocal",
            936 / 4.17 * 8: "both figures are in bytes already",
        },
        praise="and one that nobody reaches: kernels take time to start, and four bits to unpack",
        unit="tokens per second",
    )


@exercise("8.5", hint="characters → tokens → seconds")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        _PAGES,
        mistakes={
            "tokens per character is turned over: more tokens a character make a page slower": (
                lambda characters, tokens, speed: characters / tokens / speed
            ),
            "a page is measured in characters; how many tokens is it?": lambda characters, tokens, speed: (
                characters / speed
            ),
            "that is pages per second": lambda characters, tokens, speed: speed / (characters * tokens),
        },
        praise="at the same tokens per second, the vocabulary alone decides",
    )
