"""Checkers of notebook 07."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from chinese_llama_lab.exercises import Case, Verdict, exercise, expect_close, expect_function


def _nearest(x: float, code: list[float]) -> int:
    return min(range(len(code)), key=lambda number: abs(code[number] - x))


@exercise("7.1", hint="the one with the smallest abs(value - x)")
def _(answer: Any) -> Verdict:
    uneven = [-1.0, -0.25, 0.0, 0.25, 0.5, 1.0]
    return expect_function(
        answer,
        [
            Case((0.3, uneven), 3, "0.25 is 0.05 away"),
            Case((0.45, uneven), 4, "0.5 is nearer than 0.25, though it is larger"),
            Case((-0.7, uneven), 0, "the middle between −1 and −0.25 is −0.625"),
            Case((0.01, uneven), 2),
            Case((1.0, uneven), 5, "the largest of a block has the last code"),
            Case((-1.2, [-1.0, 1.0]), 0, "nothing lies below the first value; that is the nearest"),
        ],
        mistakes={
            "that rounds down; the value above may be nearer": lambda x, code: (
                sum(value <= x for value in code) - 1
            ),
            "that is right for an evenly spaced book alone": lambda x, code: round(
                (x + 1) / 2 * (len(code) - 1)
            ),
            "the value is wanted by its number, not by itself": lambda x, code: code[_nearest(x, code)],
        },
    )


def _pack(codes: list[int]) -> list[int]:
    return [16 * first + second for first, second in zip_longest(codes[::2], codes[1::2], fillvalue=0)]


@exercise("7.2", hint="16 · first + second, for each pair")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        [
            Case(([1, 2],), [0x12], "1 in the upper half is 16, and 2 in the lower one is 2"),
            Case(([15, 0, 7, 8],), [0xF0, 0x78]),
            Case(([3, 4, 5],), [0x34, 0x50], "an odd number: the last byte is filled up with code 0"),
            Case(([],), [], "no codes, no bytes"),
        ],
        mistakes={
            "the first code belongs in the upper half: 16 times the first": lambda codes: [
                first + 16 * second for first, second in zip_longest(codes[::2], codes[1::2], fillvalue=0)
            ],
            "the last of an odd number of codes is lost": lambda codes: [
                16 * first + second for first, second in zip(codes[::2], codes[1::2], strict=False)
            ],
            "a byte holds two codes, not one": lambda codes: list(codes),
        },
    )


def _unpack(packed: list[int], absmax: list[float], block: int, code: list[float]) -> list[float]:
    codes = [half for byte in packed for half in divmod(byte, 16)]
    return [code[number] * absmax[place // block] for place, number in enumerate(codes)]


@exercise("7.3", hint="weight number n has the scale absmax[n // block]")
def _(answer: Any) -> Verdict:
    code = [number / 8 - 1 for number in range(16)]
    cases = (
        ([0x0F, 0x88], [2.0], 4, code),
        ([0x1C, 0x84, 0xFE], [1.0, 10.0, 100.0], 2, code),
        ([0x12, 0x34, 0x56, 0x78], [0.5, 4.0], 4, code),
    )
    return expect_function(
        answer,
        [Case(case, _unpack(*case)) for case in cases],
        mistakes={
            "each block has its own scale: absmax[place // block]": lambda packed, absmax, block, code: [
                value * absmax[0] for value in _unpack(packed, [1.0] * 99, block, code)
            ],
            "the first weight is in the upper half of its byte": lambda packed, absmax, block, code: _unpack(
                [byte % 16 * 16 + byte // 16 for byte in packed], absmax, block, code
            ),
            "the values are not yet multiplied by the scales": lambda packed, absmax, block, code: _unpack(
                packed, [1.0] * 99, block, code
            ),
            "a code is a number in the book; look its value up": lambda packed, absmax, block, code: _unpack(
                packed, absmax, block, list(range(16))
            ),
        },
    )


@exercise("7.4", hint="4 + 32/block; doubled, a scale takes 8 bits, and 32 more for 256 scales together")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        [
            Case((64, False), 4.5),
            Case((64, True), 4 + 8 / 64 + 32 / (256 * 64), "the published 4.127"),
            Case((32, False), 5.0),
            Case((4096, True), 4 + 8 / 4096 + 32 / (256 * 4096)),
        ],
        mistakes={
            "the scales of the scales are missing: 32 bits for 256 blocks": lambda block, double: (
                4 + (8 / block if double else 32 / block)
            ),
            "256 counts scales, and each of them stands for a block of weights": lambda block, double: (
                4 + (8 / block + 32 / 256 if double else 32 / block)
            ),
            "the codes themselves take four bits": lambda block, double: (
                8 / block + 32 / (256 * block) if double else 32 / block
            ),
            "with double quantization a scale takes 8 bits, not 32": lambda block, double: 4 + 32 / block,
        },
    )


@exercise("7.5", hint="an outlier spoils the block it is in: what share of the weights is block/4096?")
def _(answer: Any) -> Verdict:
    return expect_close(
        answer,
        64,
        0.5,
        why={
            32: "allowed, but not the largest: with 64, 1.6 % of the weights share a block with an outlier",
            128: "128 of 4,096 weights are 3.1 %, more than 2 %",
            81.92: "that is 2 % of 4,096 weights; a block size is a power of two",
            82: "that is 2 % of 4,096 weights; a block size is a power of two",
        },
        praise="64 of 4,096 weights are 1.6 %",
    )
