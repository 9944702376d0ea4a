"""SentencePiece's BPE in plain Python, for one piece at a time: what merges, in which order, and why not.

The rule (sentencepiece `bpe_model.cc`): start from characters; of all adjacent pairs whose concatenation is a
piece, merge the one with the highest score, the leftmost on a tie; repeat until no pair is left.

A consequence used everywhere in this package. If a piece shows up in the encoding of any text, then no merge
ever crossed its two ends, so the merges inside it happened as if it had stood alone. A piece is therefore
reachable exactly if encoding it alone gives it back, and there is one last merge (`left`, `right`), the same
in every text, by which it arises: its canonical merge.

This file does not encode text fast; SentencePiece and tokenizers do that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Merge:
    """One step: `left` and `right` became one symbol, which then was number `position`."""

    left: str
    right: str
    position: int


def merge_steps(symbols: Sequence[str], scores: Mapping[str, float]) -> tuple[list[str], list[Merge]]:
    """Encode one string, given as its starting symbols; returns the final symbols and each merge in order."""
    current = list(symbols)
    steps: list[Merge] = []
    while True:
        best: tuple[float, int] | None = None
        for i in range(len(current) - 1):
            score = scores.get(current[i] + current[i + 1])
            if score is not None and (best is None or score > best[0]):
                best = (score, i)
        if best is None:
            return current, steps
        i = best[1]
        steps.append(Merge(current[i], current[i + 1], i))
        current[i : i + 2] = [current[i] + current[i + 1]]


def can_still_become_one(symbols: Sequence[str], pieces: Mapping[str, float]) -> bool:
    """Whether some order of merges through known pieces joins `symbols` into one (a CKY chart, O(n^3))."""
    n = len(symbols)
    ends = [{i + 1} for i in range(n)]  # ends[i]: all j such that symbols[i:j] can become one piece
    for length in range(2, n + 1):
        for i in range(n - length + 1):
            j = i + length
            if "".join(symbols[i:j]) in pieces and any(
                k in ends[i] and j in ends[k] for k in range(i + 1, j)
            ):
                ends[i].add(j)
    return n in ends[0]
