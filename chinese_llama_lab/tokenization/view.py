"""See one text under several tokenizers: every token a box, tokens that are no whole characters marked."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.tokenization.base import Tokenizer
from chinese_llama_lab.tokenization.registry import as_tokenizer

# Two light tints that differ in lightness and hue, and a third for bytes; readable in black on white paper.
_TINTS = ("#cfe3f5", "#fbe5c0")
_BYTE_TINT = "#f3c6d3"


@dataclass(frozen=True)
class Piece:
    """One token as it is shown: its text, or the hexadecimal of bytes that are no whole characters."""

    text: str
    is_bytes: bool

    @property
    def plain(self) -> str:
        return f"‹{self.text}›" if self.is_bytes else self.text


@dataclass(frozen=True)
class TokenView:
    """`view(text, tokenizers)`: coloured boxes in a notebook, one line a tokenizer in plain text."""

    text: str
    rows: tuple[tuple[str, tuple[Piece, ...]], ...]

    def __repr__(self) -> str:
        width = max((len(name) for name, _ in self.rows), default=0)
        return "\n".join(
            f"{name:<{width}} {len(pieces):>4} | " + "|".join(piece.plain for piece in pieces)
            for name, pieces in self.rows
        )

    def _repr_html_(self) -> str:
        lines = []
        for name, pieces in self.rows:
            boxes = "".join(_box(number, piece) for number, piece in enumerate(pieces))
            lines.append(
                f'<div style="margin:4px 0;line-height:1.9"><span style="display:inline-block;width:9em">'
                f'{html.escape(name)}</span><span style="display:inline-block;width:3.5em;text-align:right;'
                f'padding-right:.8em">{len(pieces)}</span>{boxes}</div>'
            )
        return '<div style="font-family:sans-serif">' + "".join(lines) + "</div>"


def _box(number: int, piece: Piece) -> str:
    tint = _BYTE_TINT if piece.is_bytes else _TINTS[number % 2]
    style = f"background:{tint};color:#111;border-radius:3px;padding:1px 3px;margin:0 1px;white-space:pre"
    if piece.is_bytes:  # the mark does not depend on colour alone
        style += ";border:1px dashed #8a1c3c;font-family:monospace;font-size:85%"
    title = f"bytes {piece.text}" if piece.is_bytes else f"token {number + 1}"
    return f'<span title="{title}" style="{style}">{html.escape(piece.text)}</span>'


def _visible(character: str) -> str:
    """A character, or a sign for one that cannot be seen or would break the line."""
    sign = {" ": "␣", "\n": "⏎", "\t": "⇥"}.get(character)
    return sign or (character if character.isprintable() else ascii(character)[1:-1])


def pieces(tokenizer: Tokenizer, text: str) -> tuple[Piece, ...]:
    """The tokens of a text as they are shown: a space is `␣`, a line break `⏎`, the unknown token `[?]`.

    Other characters that cannot be seen are written as Python escapes, such as `\\u3000`.
    """
    shown = []
    for token_id in tokenizer.encode(text):
        data = tokenizer.token_bytes(token_id)
        if token_id == tokenizer.unknown_id or not data:
            shown.append(Piece("[?]", False))
            continue
        try:
            shown.append(Piece("".join(map(_visible, data.decode("utf-8"))), False))
        except UnicodeDecodeError:
            shown.append(Piece(data.hex(" ").upper(), True))
    return tuple(shown)


def view(text: str, tokenizers: Sequence[Any]) -> TokenView:
    """One text under several tokenizers.

    Args:
        text: a sentence or two.
        tokenizers: whatever `as_tokenizer` knows: names, paths, or tokenizers of ours or of the libraries.

    Raises:
        TextError: the text has a lone surrogate.
    """
    opened = [as_tokenizer(t) for t in ([tokenizers] if isinstance(tokenizers, str) else tokenizers)]
    return TokenView(text, tuple((tokenizer.name, pieces(tokenizer, text)) for tokenizer in opened))
