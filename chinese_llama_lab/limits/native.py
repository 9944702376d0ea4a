"""Published facts of native models and of the adapted family: two small tables, read strictly.

`data/native_models.csv` has one row a model: who made it and when, vocabulary, attention, MLP, positions,
context, licence and what it allows, the source. `data/native_scores.csv` has one row a C-Eval score: a model
may have several, because several groups measured it. A cell is empty where nothing was found; nothing is
filled in. The column `checked` says how a row is known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from chinese_llama_lab.limits.architecture import attention_kind
from chinese_llama_lab.limits.errors import NativeError
from chinese_llama_lab.paths import data_dir
from chinese_llama_lab.strict_table import strict_rows

KINDS = ("native", "western", "adapted")
CHECKED = ("source read", "from RECIPE.md", "from memory, not checked")
ALLOWED = ("yes", "no", "conditions", "")
MODEL_COLUMNS = (
    *("model", "kind", "organisation", "release", "parameters", "vocabulary", "attention", "kv_heads"),
    *("mlp", "position", "context", "licence", "research", "commercial", "conditions", "source"),
    *("checked", "note"),
)
SCORE_COLUMNS = ("model", "kind", "split", "shots", "score", "reported_by", "source", "checked")


@dataclass(frozen=True)
class NativeModel:
    """A row of the first table; None and "" where it is empty. Parameters as published, such as `7B`."""

    model: str
    kind: str
    organisation: str
    release: str
    parameters: str
    vocabulary: int | None
    attention: str
    kv_heads: int | None
    mlp: str
    position: str
    context: int | None
    licence: str
    research: str
    commercial: str
    conditions: str
    source: str
    checked: str
    note: str


@dataclass(frozen=True)
class PublishedScore:
    """A C-Eval score in percent; split `valid`, `test` or "", shots None, where the source does not say."""

    model: str
    kind: str
    split: str
    shots: int | None
    score: float
    reported_by: str
    source: str
    checked: str


def load_models(path: Path | None = None) -> list[NativeModel]:
    """The models, in the order of the file.

    Raises: NativeError: no such file, not UTF-8, other columns, a model that stands twice; a word that is
        none of the allowed ones; a number that is none; attention that contradicts the heads; a row without
        source, or one that is checked without saying where. File and row are named.
    """
    path = path or data_dir() / "native_models.csv"
    models: list[NativeModel] = []
    for place, cells in _rows(path, MODEL_COLUMNS):
        if any(cells["model"] == known.model for known in models):
            _refuse(place, f"{cells['model']!r} stands twice", "keep one row a model")
        _one_of(place, "kind", cells["kind"], KINDS)
        _one_of(place, "attention", cells["attention"], ("MHA", "GQA", "MQA", ""))
        for column in ("research", "commercial"):
            _one_of(place, column, cells[column], ALLOWED)
        if cells["release"] and not re.fullmatch(r"20\d\d(-(0[1-9]|1[0-2]))?", cells["release"]):
            _refuse(place, f"release is {cells['release']!r}", "write 2023 or 2023-08, or leave it empty")
        if "conditions" in (cells["research"], cells["commercial"]) and not cells["conditions"]:
            _refuse(place, "there are conditions, and none is named", "name them in the column `conditions`")
        kv_heads = _number(place, "kv_heads", cells["kv_heads"])
        if cells["attention"] and kv_heads is not None:
            # No model of this size has more than 64 heads; with MHA there are as many of keys and values.
            found = attention_kind(kv_heads if cells["attention"] == "MHA" else 64, kv_heads)
            if found != cells["attention"]:
                _refuse(place, f"{cells['attention']} with {kv_heads} kv_heads", "correct one of the two")
        numbers: dict[str, Any] = {
            "kv_heads": kv_heads,
            "vocabulary": _number(place, "vocabulary", cells["vocabulary"]),
            "context": _number(place, "context", cells["context"]),
        }
        models.append(NativeModel(**{**cells, **numbers}))
    return models


def load_scores(path: Path | None = None) -> list[PublishedScore]:
    """The published C-Eval scores, in the order of the file.

    Raises: NativeError: as `load_models`; a score outside 0 to 100, or one that stands twice with the same
        split, shots and reporter.
    """
    path = path or data_dir() / "native_scores.csv"
    found: dict[tuple[str, ...], PublishedScore] = {}
    for place, cells in _rows(path, SCORE_COLUMNS):
        _one_of(place, "kind", cells["kind"], KINDS)
        _one_of(place, "split", cells["split"], ("valid", "test", ""))
        try:
            score = float(cells["score"])
        except ValueError:
            _refuse(place, f"score is {cells['score']!r}", "write a number in percent")
        if not 0 <= score <= 100:
            _refuse(place, f"score is {score}", "write percent, from 0 to 100")
        key = tuple(cells[column] for column in ("model", "split", "shots", "reported_by"))
        if key in found:
            _refuse(place, f"the score of {', '.join(key)} stands twice", "keep one")
        numbers: dict[str, Any] = {"shots": _number(place, "shots", cells["shots"], least=0), "score": score}
        found[key] = PublishedScore(**{**cells, **numbers})
    return list(found.values())


def scores(
    shots: int | None = None, *, kinds: Sequence[str] = KINDS, path: Path | None = None
) -> list[PublishedScore]:
    """Scores of some kinds of models with so many shots (None: all), the best of each model first.

    Scores of one model stay together, in falling order; models follow by their best score.
    """
    chosen = [s for s in load_scores(path) if s.kind in kinds and shots in (None, s.shots)]
    best = {s.model: max(o.score for o in chosen if o.model == s.model) for s in chosen}
    return sorted(chosen, key=lambda s: (-best[s.model], s.model, -s.score))


def licence_table(models: Sequence[NativeModel] | None = None) -> list[dict[str, str]]:
    """Rows `model`, `licence`, `research`, `commercial`, `conditions`, `source`, for a table."""
    columns = ("model", "licence", "research", "commercial", "conditions", "source")
    return [
        {column: getattr(model, column) or "not found" for column in columns}
        for model in (load_models() if models is None else models)
    ]


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    found = []
    for number, row in strict_rows(path, columns, NativeError, "table"):
        place = f"{path}, row {number}"
        for column in ("model", "source", "checked"):
            if not row[column].strip():
                _refuse(place, f"{column} is empty", "fill it in: a fact without a source is none")
        _one_of(place, "checked", row["checked"], CHECKED)
        found.append((place, row))
    return found


def _number(place: str, column: str, text: str, least: int = 1) -> int | None:
    if text == "":
        return None
    if not re.fullmatch(r"\d+", text) or int(text) < least:
        _refuse(place, f"{column} is {text!r}", f"write a whole number of at least {least}, or nothing")
    return int(text)


def _one_of(place: str, column: str, text: str, allowed: Sequence[str]) -> None:
    if text not in allowed:
        words = ", ".join(word or "nothing" for word in allowed)
        _refuse(place, f"{column} is {text!r}", f"use one of: {words}")


def _refuse(place: str, what: str, remedy: str) -> NoReturn:
    raise NativeError(what, where=place, remedy=remedy)
