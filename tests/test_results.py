"""Results on disk: whole, with their provenance, and read back as they were written."""

from __future__ import annotations

import json
import os

import pytest

from chinese_llama_lab import results
from chinese_llama_lab.errors import ResultError
from chinese_llama_lab.results import Table, load, save

ROWS = [{"tokenizer": "LLaMA", "value": 1.5}, {"tokenizer": '词, "quoted"\nnew line', "value": 2}]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setattr(results, "committed_results_dir", lambda: tmp_path / "committed")
    return tmp_path / "results"


def test_what_was_saved_is_loaded(folder):
    saved = save("01_test", ROWS, seed=3, model="smollm2", note="三")
    loaded = load("01_test")
    assert saved == loaded
    assert loaded.rows == ({"tokenizer": "LLaMA", "value": "1.5"}, {**ROWS[1], "value": "2"})
    assert loaded.columns == ["tokenizer", "value"]
    assert sorted(os.listdir(folder)) == ["01_test.csv", "01_test.json"]


def test_the_provenance_says_where_a_number_comes_from(folder):
    save("01_test", ROWS, seed=3, model="smollm2", note="三")
    origin = json.loads((folder / "01_test.json").read_text(encoding="utf-8"))
    assert origin["seed"] == 3 and origin["model"] == "smollm2" and origin["note"] == "三"
    assert set(origin) >= {"profile", "date", "python", "versions", "hardware"}
    assert origin["versions"]["numpy"] and origin["hardware"]["cores"] >= 1
    assert origin["hardware"]["memory_gib"] > 0


def test_the_file_is_utf8_with_unix_line_ends(folder):
    save("01_test", ROWS)
    data = (folder / "01_test.csv").read_bytes()
    assert data.startswith(b"tokenizer,value\nLLaMA,1.5\n") and b"\r" not in data
    assert "词".encode() in data


def test_own_results_come_before_the_committed_ones(folder, tmp_path):
    committed = tmp_path / "committed"
    committed.mkdir()
    (committed / "01_test.csv").write_text("a\ncommitted\n", encoding="utf-8")
    assert load("01_test").rows == ({"a": "committed"},)
    save("01_test", [{"a": "own"}])
    assert load("01_test").rows == ({"a": "own"},)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no rows"),
        ([{"a": 1}, {"b": 1}], "row 1"),
        ([{"a": 1, "b": 2}, {"b": 1, "a": 2}], "row 1"),
        ([{"a": 1.0}, {"a": float("nan")}], "NaN"),
    ],
)
def test_bad_rows_are_refused_and_the_old_result_stays(folder, rows, said):
    save("01_test", ROWS)
    with pytest.raises(ResultError, match=said):
        save("01_test", rows)
    assert load("01_test").rows[0]["tokenizer"] == "LLaMA"
    assert sorted(os.listdir(folder)) == ["01_test.csv", "01_test.json"]


def test_a_missing_result_says_which_there_are(folder):
    save("01_here", ROWS)
    with pytest.raises(ResultError, match="no result called '01_gone'") as caught:
        load("01_gone")
    assert "01_here" in caught.value.remedy and str(folder) in caught.value.where


@pytest.mark.parametrize(
    "damage", [("csv", b"a\n\xff\xfe\n"), ("json", b"{"), ("json", b"\xff"), ("csv", b"a,b\n1\n")]
)
def test_a_damaged_result_is_named(folder, damage):
    save("01_test", ROWS)
    (folder / f"01_test.{damage[0]}").write_bytes(damage[1])
    with pytest.raises(ResultError) as caught:
        load("01_test")
    assert f"01_test.{damage[0]}" in caught.value.where and caught.value.remedy


def test_a_full_disk_leaves_the_old_result(folder, monkeypatch):
    save("01_test", ROWS)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.csv.DictWriter, "writerows", full)
    with pytest.raises(OSError):
        save("01_test", [{"tokenizer": "new", "value": 1}])
    monkeypatch.undo()
    assert sorted(os.listdir(folder)) == ["01_test.csv", "01_test.json"]
    assert b"LLaMA" in (folder / "01_test.csv").read_bytes()


def test_a_table_is_shown_as_text_and_as_html():
    table = Table("t", ({"name": "<a>", "n": "1"}, {"name": "bb", "n": "22"}))
    assert repr(table) == "name  n\n<a>   1\nbb    22"
    assert table._repr_html_() == (
        "<table><thead><tr><th>name</th><th>n</th></tr></thead>"
        "<tbody><tr><td>&lt;a&gt;</td><td>1</td></tr><tr><td>bb</td><td>22</td></tr></tbody></table>"
    )
    assert repr(Table("none", ())) == ""


def test_columns_and_rows_can_be_chosen():
    table = Table("t", ({"name": "a", "n": "1", "m": "x"}, {"name": "b", "n": "2", "m": "x"}))
    assert table.only("n", name="b").rows == ({"n": "2"},)
    assert table.only(m="x").rows == table.rows
    assert table.only("n", name="none").rows == ()
