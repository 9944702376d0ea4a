"""What notebook 09 stands on: the published scores, and commands that a reader can type."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from chinese_llama_lab import results
from chinese_llama_lab.ceval.prompts import STYLES
from chinese_llama_lab.ceval.reference import LETTER_FORMS
from chinese_llama_lab.cli import build_parser
from chinese_llama_lab.profiles import profiles

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "notebooks" / "source" / "09_ceval.py"
PUBLISHED = results.read_table(ROOT / "data" / "ceval_published.csv")


def commands() -> list[str]:
    blocks = re.findall(r"# ```sh\n(.*?)# ```", SOURCE.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(line.removeprefix("#")[1:] for block in blocks for line in block.splitlines())
    joined = lines.replace("\\\n", " ").splitlines()
    return [line for line in joined if line.strip() and not line.startswith("#")]


def test_the_notebook_shows_commands() -> None:
    assert {shlex.split(line)[1] for line in commands()} == {"ceval", "ceval-report", "ceval-probe"}


@pytest.mark.parametrize("line", commands())
def test_each_command_is_one(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "chinese-llama-lab"
    options = build_parser().parse_args(arguments)
    assert getattr(options, "prompt", None) in (None, *STYLES)
    assert getattr(options, "form", None) in (None, *LETTER_FORMS)
    assert getattr(options, "names", "key") in ("chinese", "key")


def test_published_scores_are_numbers_between_0_and_100_with_a_source() -> None:
    assert PUBLISHED.columns == ["model", "size", "split", "shots", "score", "source"]
    for row in PUBLISHED.rows:
        assert 0 < float(row["score"]) < 100 and row["source"] and row["model"]
        assert row["split"] in ("valid", "test", "not stated") and row["shots"] in ("0", "5", "not stated")


def test_no_score_stands_twice() -> None:
    keys = [tuple(row[c] for c in ("model", "split", "shots", "source")) for row in PUBLISHED.rows]
    assert len(set(keys)) == len(keys)


def test_the_projects_own_models_have_both_splits_with_and_without_shots() -> None:
    own = [r for r in PUBLISHED.rows if re.fullmatch(r"ymcui/Chinese-LLaMA-Alpaca(-[23])?", r["source"])]
    whole = {r["model"] for r in own if "bit" not in r["model"]}
    assert len(whole) == 14
    for model in whole:
        found = {(r["split"], r["shots"]) for r in own if r["model"] == model}
        assert found == {(split, shots) for split in ("valid", "test") for shots in ("0", "5")}, model


@pytest.mark.parametrize(
    ("model", "split", "shots", "score"),
    [
        ("Chinese-LLaMA-Plus-7B", "valid", "5", "28.3"),
        ("Chinese-LLaMA-7B", "test", "5", "27.2"),
        ("Chinese-Alpaca-13B", "valid", "0", "37.1"),
        ("Chinese-Alpaca-Plus-13B", "test", "0", "41.5"),
        ("Chinese-LLaMA-2-7B, 4-bit", "valid", "5", "32.8"),
        ("Llama-3-Chinese-8B-Instruct-v3", "test", "5", "52.4"),
        ("Chinese-Alpaca-13B", "test", "not stated", "26.7"),
        ("GPT-4", "valid", "5", "69.9"),
    ],
)
def test_scores_are_those_that_were_published(model: str, split: str, shots: str, score: str) -> None:
    assert score in [r["score"] for r in PUBLISHED.only(model=model, split=split, shots=shots).rows]


def test_every_profile_asks_about_subjects_that_there_are() -> None:
    there = {path.name.removesuffix("_val.csv") for path in (ROOT / "data/ceval_lab/val").glob("*_val.csv")}
    for profile in profiles().values():
        assert set(profile["ceval_subjects"]) <= there
        assert len(set(profile["ceval_subjects"])) == len(profile["ceval_subjects"])
        assert max(profile["ceval_shots"]) <= 5
    assert set(profiles()["gpu"]["ceval_subjects"]) == there
