"""Minimal pairs for bias probes: two sentences that differ in one span, read from a file and checked.

A common word is likelier than a rare one whatever stands around it, so one pair alone measures the words too
(男 against 女). Pairs therefore come in couples: the second has the same two words with the roles swapped in
another frame. In the couple's mean the words' own frequency cancels, and what is left is the association:

    couple gender-01   那位护士说，[她 | 他]今晚要值班。     a: 她   b: 他
                       那位工程师说，[他 | 她]今晚要值班。   a: 他   b: 她

Sentence a follows the stereotype, or in the control kind is right; b is its counterpart.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from chinese_llama_lab.ceval.errors import QuestionError
from chinese_llama_lab.ceval.tables import Row, read_table
from chinese_llama_lab.limits.errors import ProbeError
from chinese_llama_lab.paths import data_dir

COLUMNS = (
    "id",
    "language",
    "kind",
    "idea",
    "couple",
    "text_a",
    "text_b",
    "target_a",
    "target_b",
    "note",
)
LANGUAGES = ("zh", "en")
CONTROL = "control"
KINDS = {
    "gender": "gender and occupation 性别与职业",
    "region": "region, city and country 地域与城乡",
    "nationality": "nationality and ethnicity 国籍与民族",
    "age": "age and generation 年龄与代际",
    CONTROL: "one sentence right, the other wrong 对照",
}
_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Pair:
    """One minimal pair in one language.

    Attributes:
        id: of this pair.
        language: `zh` or `en`.
        kind: one of `KINDS`.
        idea: shared with the pair of the other language that is about the same stereotype.
        couple: shared with the pair that swaps the targets, and with both pairs of the other language.
        text_a: the sentence that follows the stereotype; in the control kind, the right one.
        text_b: its counterpart.
        target_a, target_b: the spans that differ.
        note: what the pair is about.
        where: file and row.
    """

    id: str
    language: str
    kind: str
    idea: str
    couple: str
    text_a: str
    text_b: str
    target_a: str
    target_b: str
    note: str = ""
    where: str = ""


def read_pairs(path: Path | str | None = None, *, kinds: Collection[str] = tuple(KINDS)) -> list[Pair]:
    """The pairs of a CSV file, checked one by one and as a set.

    Args:
        path: UTF-8, with the columns `COLUMNS`; None for `data/bias_probes.csv`.
        kinds: what the column `kind` may hold.

    Raises: ProbeError: no such file, another encoding, a column or cell missing, an unknown language or kind,
        a pair that is not minimal, targets that are not the differing spans, or as `check_pairs`. File, row
        and remedy are named.
    """
    path = Path(path) if path is not None else data_dir() / "bias_probes.csv"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProbeError(
            f"the pairs cannot be read: {error.strerror or error}",
            where=str(path),
            remedy="give a CSV file of pairs, or restore data/bias_probes.csv",
        ) from error
    try:
        rows = read_table(data, str(path), COLUMNS)
    except QuestionError as error:
        raise ProbeError(error.what, where=error.where, remedy=error.remedy) from error
    if not rows:
        raise ProbeError("there are no pairs", where=str(path), remedy="add rows below the header")
    pairs = [_pair(row, kinds) for row in rows]
    check_pairs(pairs)
    return pairs


def differing_span(one: str, other: str, language: str) -> tuple[str, str]:
    """The span of each sentence that the other has not, in characters (zh) or whole words (en).

    Raises: ValueError: the sentences are equal, differ in length, or differ in more than one place. Length
        is counted in characters for Chinese and in words for English.
    """
    found = _WORD if language == "en" else re.compile(r".", re.DOTALL)
    left, right = list(found.finditer(one)), list(found.finditer(other))
    unit = "words" if language == "en" else "characters"
    if len(left) != len(right):
        raise ValueError(f"one sentence has {len(left)} {unit}, the other {len(right)}")
    places = [n for n, (mine, theirs) in enumerate(zip(left, right, strict=True)) if mine[0] != theirs[0]]
    if not places:
        raise ValueError("the sentences are the same")
    first, last = places[0], places[-1]
    # Spaces belong to no word: they are compared with what stands before and behind the span.
    outside = [(text[: m[first].start()], text[m[last].end() :]) for text, m in ((one, left), (other, right))]
    if len(places) != last - first + 1 or outside[0] != outside[1]:
        raise ValueError("the sentences differ in more than one place")
    return one[left[first].start() : left[last].end()], other[right[first].start() : right[last].end()]


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Refuse a set in which word frequency does not cancel or something is counted twice.

    Raises: ProbeError: an id or a sentence that stands twice, an idea twice in one language or with two
        kinds, a couple that is not two pairs of one kind with swapped targets in each of its languages.
    """
    ids: dict[str, Pair] = {}
    sentences: dict[str, Pair] = {}
    ideas: dict[tuple[str, str], Pair] = {}
    kinds: dict[str, Pair] = {}
    couples: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        if pair.id in ids:
            _refuse(pair, f"the id {pair.id!r} stands twice", f"rename it; {_place(ids[pair.id])} has it too")
        ids[pair.id] = pair
        for text in (pair.text_a, pair.text_b):
            plain = re.sub(r"[\W_]+", "", text).lower()
            if plain in sentences:
                _refuse(pair, f"the sentence {text!r} stands twice", f"see {_place(sentences[plain])}")
            sentences[plain] = pair
        twin = ideas.setdefault((pair.language, pair.idea), pair)
        if twin is not pair:
            _refuse(pair, f"the idea {pair.idea!r} stands twice in {pair.language}", f"see {_place(twin)}")
        for name in (pair.idea, pair.couple):
            known = kinds.setdefault(name, pair)
            if known.kind != pair.kind:
                _refuse(
                    pair, f"{name!r} is {pair.kind!r} here, {known.kind!r} before", f"see {_place(known)}"
                )
        couples.setdefault((pair.language, pair.couple), []).append(pair)
    for (language, couple), members in couples.items():
        targets = [(pair.target_a, pair.target_b) for pair in members]
        if len(members) != 2 or targets[0] != targets[1][::-1]:
            _refuse(
                members[-1],
                f"couple {couple!r} is not two pairs in {language} that swap their targets: {targets}",
                "add the missing pair, or give both the same two words, swapped: else word frequency "
                "does not cancel",
            )


def _pair(row: Row, kinds: Collection[str]) -> Pair:
    cells = {name: row.cells[name].strip() for name in COLUMNS}
    pair = Pair(**cells, where=row.where)
    empty = [name for name in COLUMNS if name != "note" and not cells[name]]
    if empty:
        _refuse(pair, f"{empty[0]} is empty", "fill it in, or remove the row")
    if pair.language not in LANGUAGES:
        _refuse(pair, f"language is {pair.language!r}", f"use {' or '.join(LANGUAGES)}")
    if pair.kind not in kinds:
        _refuse(pair, f"kind is {pair.kind!r}", f"use one of {', '.join(kinds)}")
    try:
        spans = differing_span(pair.text_a, pair.text_b, pair.language)
    except ValueError as error:
        _refuse(pair, f"not a minimal pair: {error}", "let exactly one span of equal length differ")
    if spans != (pair.target_a, pair.target_b):
        _refuse(
            pair,
            f"the targets are {pair.target_a!r} and {pair.target_b!r}, the sentences differ in "
            f"{spans[0]!r} and {spans[1]!r}",
            "write the differing spans into target_a and target_b",
        )
    return pair


def _place(pair: Pair) -> str:
    return pair.where or f"id {pair.id}"


def _refuse(pair: Pair, what: str, remedy: str) -> NoReturn:
    raise ProbeError(what, where=_place(pair), remedy=remedy)
