"""Both READMEs say what `results/` says, and have the same chapters, commands and sections."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from chinese_llama_lab import results
from chinese_llama_lab.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
READMES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")}
RUNS = {row["chapter"]: row for row in results.read_table(ROOT / "results" / "course_runs.csv").rows}


@pytest.mark.parametrize("name", READMES)
def test_time_and_memory_of_every_chapter(name):
    lines = dict(re.findall(r"^\| (\d\d) \|(.*)\|$", READMES[name], re.MULTILINE))
    assert lines.keys() == {f"{int(chapter):02d}" for chapter in RUNS}
    for chapter, row in RUNS.items():
        seconds = round(float(row["seconds"]))
        said = [cell.strip() for cell in lines[f"{int(chapter):02d}"].split("|")[-2:]]
        assert said == [f"{seconds // 60}:{seconds % 60:02d}", f"{float(row['peak_mib']) / 1024:.1f}"]


@pytest.mark.parametrize("name", READMES)
def test_the_results_of_the_shipped_model(name):
    table = READMES[name].split("<!-- zh_model -->")[1].split("\n\n")[0].splitlines()[3:]
    rows = results.read_table(ROOT / "results" / "zh_model.csv").rows
    before = [row for row in rows if row["model"] == "smollm2"]
    after = [row for row in rows if row["model"] == "smollm2-zh"]
    assert len(table) == len(before) == len(after)
    for line, one, two in zip(table, before, after, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        expected = [
            f"{float(one[key]):.2f} → {float(two[key]):.2f}"
            for key in ("tokens_per_character", "bits_per_character")
        ]
        change = f"{100 * float(two['against_smollm2']):+.1f}%".replace("-", "−")
        assert [*cells[:-1], cells[-1].replace(" ", "")] == [*expected, change], one["text"]
        assert ("†" in line) == (str(one["kind_trained_on"]) == "False")


@pytest.mark.parametrize("name", READMES)
def test_the_parts_of_the_gain(name):
    table = READMES[name].split("<!-- zh_parts -->")[1].split("\n\n")[0].splitlines()[3:]
    rows = results.read_table(ROOT / "results" / "zh_parts.csv").rows
    assert len(table) == len(rows) > 6
    for line, row in zip(table, rows, strict=True):
        read, *others = [cell.strip().replace(",", "") for cell in line.strip("|").split("|")][1:]
        assert read == row["tokens_read"]
        keys = ("tokens_per_character", "zh_bits", "en_bits")
        assert others == [f"{float(row[key]):.2f}" for key in keys], row["run"]


def commands(text: str) -> list[list[str]]:
    """The words of every command, lines that go on joined."""
    lines = re.findall(r"^(?:# )?chinese-llama-lab (.*)$", re.sub(r"\\\n(?:# )?", "", text), re.MULTILINE)
    # What may be left out is tried, and an ellipsis stands for more of the same.
    return [shlex.split(re.sub(r"[\[\]…]", "", line), comments=True) for line in lines]


@pytest.mark.parametrize("name", [*READMES, "notebooks/source/11_scaling_up.py"])
def test_every_command_can_be_given_as_it_stands(name):
    found = commands((ROOT / name).read_text(encoding="utf-8"))
    assert len(found) > 7
    for words in found:
        build_parser().parse_args(words)


def test_both_have_the_same_commands():
    first, second = (sorted(words[0] for words in commands(text)) for text in READMES.values())
    assert first == second


def test_both_have_as_many_sections():
    counts = {name: len(re.findall(r"^## ", text, re.MULTILINE)) for name, text in READMES.items()}
    assert abs(counts["README.md"] - counts["README.zh.md"]) <= 1
