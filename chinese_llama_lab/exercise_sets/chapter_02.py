"""Checkers of notebook 02."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from chinese_llama_lab.exercises import Case, Verdict, exercise, expect_close, expect_function


def _bpe(symbols: list[str], scores: dict[str, float], pick: Any = min) -> list[str]:
    symbols = list(symbols)
    while True:
        pairs = [
            (-scores[left + right], place)
            for place, (left, right) in enumerate(pairwise(symbols))
            if left + right in scores
        ]
        if not pairs:
            return symbols
        place = pick(pairs)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


def _left_to_right(symbols: list[str], scores: dict[str, float]) -> list[str]:
    symbols, place = list(symbols), 0
    while place < len(symbols) - 1:
        if symbols[place] + symbols[place + 1] in scores:
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        else:
            place += 1
    return symbols


@exercise(
    "2.1", hint="the base keeps all its pieces; which of the extra ones are new, and how many different ones?"
)
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        [
            Case((["a", "b"], ["中", "文"]), 4),
            Case((["a", "中"], ["中", "文"]), 3, "中 is in both, and a vocabulary holds a piece once"),
            Case((["a"], ["中", "中"]), 2, "a piece that the extra list names twice is added once"),
            Case((["a"], []), 1, "an empty extra model adds nothing"),
        ],
        mistakes={
            "pieces that both have are counted twice": lambda base, extra: len(base) + len(extra),
            "a piece that the extra list names twice is added once": lambda base, extra: (
                len(base) + len([piece for piece in extra if piece not in base])
            ),
        },
    )


@exercise("2.2", hint="collect all neighbours whose join is in scores; join the best; begin again")
def _(answer: Any) -> Verdict:
    scores = {"eo": 0.0, "pe": -1.0, "op": -2.0, "peo": -3.0, "ple": -4.0, "le": -5.0, "people": -6.0}
    chinese = {"越来": -1.0, "越来越": -2.0, "来越": -3.0}
    return expect_function(
        answer,
        [
            Case((list("people"), scores), _bpe(list("people"), scores)),
            Case((list("越来越"), {"越来越": 0.0}), ["越", "来", "越"], "no two neighbours join to a piece"),
            Case((list("越来越"), chinese), ["越来越"], "two steps lead there: 越来, then 越来越"),
            Case((list("aaa"), {"aa": -1.0}), ["aa", "a"], "among equal scores the leftmost pair goes first"),
            Case(([], scores), [], "no symbols, no joins"),
        ],
        mistakes={
            "that joins from left to right; the score decides, wherever the pair stands": _left_to_right,
            "that joins the lowest score first; the highest goes first": lambda symbols, scores: _bpe(
                symbols, scores, pick=max
            ),
        },
    )


@exercise("2.3", hint="the last join cuts the word in two; both halves must have a path of their own")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        [
            Case(("越", set()), True, "a single character needs no join"),
            Case(("越来越", {"越来越"}), False, "its halves need to be pieces, too"),
            Case(("越来越", {"越来", "越来越"}), True),
            Case(("越来越", {"来越", "越来越"}), True, "the last join may be 越 + 来越"),
            Case(("越来越", {"越来", "来越"}), False, "the word itself must be a piece"),
            Case(("中华人民", {"中华人", "中华人民"}), False, "no join leads to the piece 中华人"),
            Case(
                ("改革开放", {"改革", "开放", "改革开放"}),
                True,
                "two words of two characters join to one of four",
            ),
        ],
        mistakes={
            "being a piece is not enough: BPE joins two strings at a time": lambda word, pieces: (
                len(word) == 1 or word in pieces
            ),
        },
    )


@exercise("2.4", hint="new rows × numbers in a row × matrices")
def _(answer: Any) -> Verdict:
    new = 49_953 - 32_000
    return expect_close(
        answer,
        new * 5120 * 2,
        0.5,
        why={
            new * 5120: "half of it: the head is a matrix of its own",
            49_953 * 5120 * 2: "that counts the old rows as well",
            20_000 * 5120 * 2: "the Chinese model had that many pieces, but LLaMA had some of them already",
        },
        praise="before a single one of them is trained",
    )
