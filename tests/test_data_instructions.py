"""The instruction rows written for the course: complete, distinct, and set as Chinese is set."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from chinese_llama_lab.paths import data_dir
from chinese_llama_lab.sources.corpora import instruction_rows
from chinese_llama_lab.training.instructions import read_instructions

PATH = data_dir() / "instructions.jsonl"
ROWS = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
ORIGINAL = {"qa", "open_qa", "reasoning", "literature", "entertainment"} | {
    "writing",
    "translation",
    "dialogue",
    "code",
    "ethics",
}


def test_enough_of_each_category():
    counts = Counter(row["category"] for row in ROWS)
    assert len(ROWS) >= 300 and set(counts) == ORIGINAL | {"everyday"}
    assert min(counts.values()) >= 25
    rows = read_instructions(PATH)
    assert [row.category for row in rows] == [row["category"] for row in ROWS]


def test_rows_are_distinct_and_whole():
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert len({(row["instruction"], row["input"]) for row in ROWS}) == len(ROWS)
    assert len({row["output"] for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert list(row) == ["id", "category", "instruction", "input", "output"], row["id"]
        assert row["id"].startswith(row["category"]), row["id"]
        for key in ("instruction", "output"):
            assert row[key].strip() == row[key] != "", row["id"]
        assert len(row["output"]) <= 400, row["id"]


def test_no_row_is_one_of_the_fetched():
    fetched = {row["instruction"].strip() for row in instruction_rows()}
    assert not fetched & {row["instruction"] for row in ROWS}


@pytest.mark.parametrize("key", ["instruction", "input", "output"])
def test_chinese_punctuation_is_full_width(key):
    between = re.compile(r"[\u4e00-\u9fff][,;!?][\u4e00-\u9fff]")
    for row in ROWS:
        if row["category"] not in ("code", "translation", "everyday"):
            assert not between.search(row[key]), row["id"]


def test_answers_in_chinese_but_where_another_language_is_asked_for():
    for row in ROWS:
        if row["category"] not in ("code", "translation", "everyday", "reasoning", "dialogue"):
            assert re.search(r"[\u4e00-\u9fff]", row["output"]), row["id"]
