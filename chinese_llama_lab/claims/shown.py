"""The ledger as a table that can be filtered: text, HTML, and with widgets in a live notebook."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.claims.errors import ClaimError
from chinese_llama_lab.claims.ledger import TOPICS, VERDICTS, Claim, counts, known, load_claims

ALL = "all"
_WIDTH = 100
# A symbol, a word and a colour: the first two carry the meaning. Okabe-Ito's tones, dark enough for text.
_MARKS: Mapping[str, tuple[str, str]] = {
    "confirmed": ("✔", "#0072B2"),
    "refuted": ("✘", "#B34700"),
    "partly": ("≈", "#7A5C00"),
    "cannot be checked here": ("…", "#666666"),
}
_LABELS = (
    *(("claimed_by", "claimed by"), ("primary", "primary sources"), ("reference", "reference")),
    *(("measured", "measured"), ("pointer", "pointer"), ("why", "why"), ("command", "would settle it")),
)


@dataclass(frozen=True)
class ClaimTable:
    """Claims to be shown.

    Attributes:
        claims: in the order of the ledger. full: whether the text form has every column.
    """

    claims: tuple[Claim, ...]
    full: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Verdict → number of claims."""
        return counts(self.claims)

    @property
    def summary(self) -> str:
        """How many claims of each verdict, in words."""
        parts = ", ".join(f"{number} {verdict}" for verdict, number in self.counts.items() if number)
        one = len(self.claims) == 1
        return f"{len(self.claims)} claim{'' if one else 's'}" + (f": {parts}" if parts else "")

    def __len__(self) -> int:
        return len(self.claims)

    def __repr__(self) -> str:
        lines = [self.summary]
        for claim in self.claims:
            lines += ["", *_in_full(claim)] if self.full else _wrapped(_headline(claim), "    ")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = ("claim", "who", "primary sources", "measured here", "verdict")
        titles = "".join(f"<th>{title}</th>" for title in head)
        body = "".join(_html_row(claim) for claim in self.claims)
        return (
            f"<p><b>{html.escape(self.summary)}</b></p>"
            f'<table style="text-align:left"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>'
        )


def table(
    verdict: str | None = None,
    topic: str | None = None,
    search: str | None = None,
    *,
    claims: Sequence[Claim] | None = None,
    full: bool = False,
) -> ClaimTable:
    """The claims that are asked for, in the order of the ledger.

    Args:
        verdict, topic: one of `VERDICTS`, `TOPICS` (default: all).
        search: words in any cell, in whatever case; all of them have to be there.
        claims: to choose from (default: the ledger). full: every column in the text form.

    Raises: ClaimError: an unknown verdict or topic; the ledger is damaged.
    """
    if verdict is not None:
        known(verdict, VERDICTS, "verdict")
    if topic is not None:
        known(topic, TOPICS, "topic")
    words = (search or "").casefold().split()
    kept = [
        claim
        for claim in (load_claims() if claims is None else claims)
        if verdict in (None, claim.verdict) and topic in (None, claim.topic) and _has(claim, words)
    ]
    return ClaimTable(tuple(kept), full)


def _has(claim: Claim, words: Sequence[str]) -> bool:
    text = "\n".join(claim.cells().values()).casefold()
    return all(word in text for word in words)


def _headline(claim: Claim) -> str:
    return f"{_MARKS[claim.verdict][0]} {claim.verdict} | {claim.id}: {claim.claim}"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _in_full(claim: Claim) -> list[str]:
    lines = _wrapped(_headline(claim), "  ")
    for column, label in _LABELS:
        text = getattr(claim, column)
        if text:
            lines += _wrapped(f"  {label}: {text}", "    ")
    return lines


def _html_row(claim: Claim) -> str:
    symbol, colour = _MARKS[claim.verdict]
    cells = {column: html.escape(text) for column, text in claim.cells().items()}
    measured = cells["measured"] + _code(cells["pointer"])
    mark = f'<b style="color:{colour}">{symbol} {cells["verdict"]}</b>'
    verdict = f"{mark}<br>{cells['why']}{_code(cells['command'])}"
    shown = (
        f"{cells['claim']}<br><small>{cells['id']}; {cells['topic']}</small>",
        cells["claimed_by"],
        f"{cells['primary']}<br><small>{cells['reference']}</small>",
        measured,
        verdict,
    )
    style = 'style="text-align:left;vertical-align:top;padding:0.3em 0.6em"'
    return "<tr>" + "".join(f"<td {style}>{cell}</td>" for cell in shown) + "</tr>"


def _code(text: str) -> str:
    return f"<br><small><code>{text}</code></small>" if text else ""


class ClaimBrowser:
    """Dials over `table`; the table changes as they are turned.

    In a notebook, end a cell with `ClaimBrowser(verdict="refuted").box`.

    Args:
        claims: to choose from (default: the ledger).
        start: where dials stand at first: `verdict`, `topic`, `search`.

    Attributes:
        dials: name → widget. box: all of it, to be shown. answer: the widget with the table.
        shown: the `ClaimTable` as the dials stand.

    Raises: ClaimError: no such dial, verdict or topic; the ledger is damaged.
    """

    def __init__(self, claims: Sequence[Claim] | None = None, **start: str) -> None:
        import ipywidgets

        self._claims = tuple(load_claims() if claims is None else claims)
        self.dials: dict[str, Any] = {
            "verdict": ipywidgets.Dropdown(options=(ALL, *VERDICTS), description="verdict"),
            "topic": ipywidgets.Dropdown(options=(ALL, *TOPICS), description="topic"),
            "search": ipywidgets.Text(description="search", placeholder="words in any column"),
        }
        for name, value in start.items():
            self._turn(name, value)
        self.answer = ipywidgets.HTML()
        for dial in self.dials.values():
            dial.observe(self._update, names="value")
        self.box = ipywidgets.VBox([ipywidgets.HBox(list(self.dials.values())), self.answer])
        self._update()

    def _turn(self, name: str, value: str) -> None:
        if name not in self.dials:
            raise ClaimError(f"there is no dial {name!r}", where=name, remedy=f"use {', '.join(self.dials)}")
        if name != "search":
            known(value, self.dials[name].options, name)
        self.dials[name].value = value

    def _update(self, change: Any = None) -> None:
        verdict, topic, search = (dial.value for dial in self.dials.values())
        self.shown = table(
            None if verdict == ALL else verdict,
            None if topic == ALL else topic,
            search,
            claims=self._claims,
        )
        self.answer.value = self.shown._repr_html_()
