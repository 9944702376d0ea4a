"""What a checker says about an answer: one of three words, and why."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

Status = Literal["not answered", "right", "wrong"]

# A symbol, a word and a colour: the first two carry the meaning, the colour only helps.
# Blue and vermilion of the Okabe-Ito palette stay apart for colour-blind readers.
_MARKS: dict[Status, tuple[str, str, str]] = {
    "right": ("✔", "right", "#0072B2"),
    "wrong": ("✘", "wrong", "#D55E00"),
    "not answered": ("…", "not answered yet", "#767676"),
}


@dataclass(frozen=True)
class Verdict:
    """`status` is "right", "wrong" or "not answered"; `why` is one or two sentences for the reader."""

    status: Status
    why: str

    def __post_init__(self) -> None:
        if self.status not in _MARKS:
            raise ValueError(f"unknown status {self.status!r}; there are {', '.join(map(repr, _MARKS))}")

    def __repr__(self) -> str:
        symbol, word, _ = _MARKS[self.status]
        return f"{symbol} {word} — {self.why}" if self.why else f"{symbol} {word}"

    def _repr_html_(self) -> str:
        symbol, word, colour = _MARKS[self.status]
        why = f" — {escape(self.why)}".replace("\n", "<br>") if self.why else ""
        return (
            f'<div style="border-left: 4px solid {colour}; padding: 0.2em 0.8em">'
            f'<strong style="color: {colour}">{symbol} {word}</strong>{why}</div>'
        )


def right(why: str = "") -> Verdict:
    """The answer is right, and why it is."""
    return Verdict("right", why)


def wrong(why: str) -> Verdict:
    """The answer is wrong, and what the mistake is likely to be."""
    return Verdict("wrong", why)


def not_answered(hint: str = "") -> Verdict:
    """The stub is still there."""
    return Verdict("not answered", hint)
