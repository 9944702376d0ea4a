"""`data/claims.csv`: one row a claim, read strictly.

Columns: `id`; `topic`; `claim`, in our words, with the value claimed; `claimed_by`; `primary`, what the
primary sources say, and `reference`, where; `measured`, what this repository found, and `pointer`, the cells
of `results/` that hold it; `verdict`; `why`, in a sentence; `command`, which would settle what is open here.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from chinese_llama_lab.claims.errors import ClaimError
from chinese_llama_lab.claims.pointers import parse
from chinese_llama_lab.paths import data_dir
from chinese_llama_lab.strict_table import strict_rows

OPEN = "cannot be checked here"
VERDICTS = ("confirmed", "refuted", "partly", OPEN)
TOPICS = (
    *("vocabulary", "tokens per character", "LoRA", "instructions", "NF4"),
    *("C-Eval of the adapted models", "tokens per second", "VRAM", "GPT-3.5", "native models"),
    *("Qwen's vocabulary", "architecture", "adaptation", "instability", "tokenizer merge"),
    *("newer transformers", "licences", "contamination", "translationese", "bias"),
)
NOT_MEASURED = "Not measured here"
COLUMNS = (
    *("id", "topic", "claim", "claimed_by", "primary", "reference"),
    *("measured", "pointer", "verdict", "why", "command"),
)
MAY_BE_EMPTY = ("pointer", "command")
PROGRAMS = (("chinese-llama-lab",), ("python", "benchmarks/gpu.py"))
_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True)
class Claim:
    """One row; the columns are explained in the module. `pointer` and `command` may be empty."""

    id: str
    topic: str
    claim: str
    claimed_by: str
    primary: str
    reference: str
    measured: str
    pointer: str
    verdict: str
    why: str
    command: str

    def cells(self) -> dict[str, str]:
        """Column → text, in the order of the file."""
        return {column: getattr(self, column) for column in COLUMNS}


def load_claims(path: Path | None = None) -> list[Claim]:
    """The ledger, in the order of the file. Pointers are read but not followed: see `resolve`.

    Args:
        path: another ledger (default: `data/claims.csv`).

    Raises:
        ClaimError: no such file, not UTF-8, other columns, a row with more or fewer cells; an empty cell
            where there has to be text; an id that is malformed or stands twice; an unknown topic or verdict;
            a pointer that is none, or is missing though something is said to be measured; a command that is
            none, or is missing though the claim cannot be checked here. Row 1 is the head.
    """
    path = path or data_dir() / "claims.csv"
    claims: list[Claim] = []
    first: dict[str, int] = {}
    for number, cells in strict_rows(path, COLUMNS, ClaimError, "ledger"):
        claim = Claim(**cells)
        try:
            _check(claim)
            if claim.id in first:
                raise ClaimError(
                    f"the id {claim.id!r} stands in row {first[claim.id]} already",
                    where="id",
                    remedy="give each claim an id of its own",
                )
        except ClaimError as error:
            place = f"{path}, row {number} ({claim.id or 'no id'}), column {error.where}"
            raise ClaimError(error.what, where=place, remedy=error.remedy) from error
        first[claim.id] = number
        claims.append(claim)
    return claims


def _check(claim: Claim) -> None:
    for column, text in claim.cells().items():
        if text != text.strip() or (not text and column not in MAY_BE_EMPTY):
            raise ClaimError(
                f"{text!r} is empty or has spaces around it" if text else "the cell is empty",
                where=column,
                remedy="write the text, without spaces around it",
            )
    if not _ID.fullmatch(claim.id):
        raise ClaimError(
            f"{claim.id!r} is no id", where="id", remedy="use small letters, digits and single hyphens"
        )
    known(claim.topic, TOPICS, "topic")
    known(claim.verdict, VERDICTS, "verdict")
    if claim.pointer:
        parse(claim.pointer)
    elif not claim.measured.startswith(NOT_MEASURED):
        raise ClaimError(
            "something is said to be measured, and nothing points to it",
            where="pointer",
            remedy=f"point to results/, or begin `measured` with {NOT_MEASURED!r}",
        )
    if claim.command:
        command_arguments(claim.command)
    elif claim.verdict == OPEN:
        raise ClaimError(
            f"the verdict is {OPEN!r}, and no command would settle it",
            where="command",
            remedy="give the command line that settles the claim where there is a GPU or the hub",
        )


def known(text: str, choices: Iterable[str], what: str) -> str:
    """`text`, if it is one of the choices.

    Raises: ClaimError: it is not; the nearest is offered.
    """
    listed = tuple(choices)
    if text not in listed:
        near = difflib.get_close_matches(text, listed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ClaimError(
            f"{text!r} is no {what}", where=what, remedy=f"use one of: {', '.join(listed)}{hint}"
        )
    return text


def command_arguments(command: str) -> tuple[str, list[str]]:
    """(program, its arguments): `chinese-llama-lab` or `benchmarks/gpu.py`, the two that settle claims.

    Raises: ClaimError: another program, none, or quotes that do not close.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    for program in PROGRAMS:
        if tuple(words[: len(program)]) == program and len(words) > len(program):
            return program[-1], words[len(program) :]
    starts = " or ".join(" ".join(program) for program in PROGRAMS)
    raise ClaimError(
        f"{command!r} is no command line of this repository",
        where="command",
        remedy=f"begin with {starts}, and give the arguments",
    )


def counts(claims: Iterable[Claim]) -> dict[str, int]:
    """Verdict → number of claims, every verdict, in the order of `VERDICTS`."""
    by = dict.fromkeys(VERDICTS, 0)
    for claim in claims:
        by[claim.verdict] += 1
    return by
