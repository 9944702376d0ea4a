"""`ceval-report` and `ceval-probe` from the shell."""

from __future__ import annotations

import json
import shlex
from types import SimpleNamespace

import pytest

from chinese_llama_lab import cli
from chinese_llama_lab.ceval.answers import letter_histogram
from chinese_llama_lab.ceval.compare import compare_runs
from chinese_llama_lab.ceval.identity import quantization_of
from chinese_llama_lab.ceval.readers import read_questions
from chinese_llama_lab.ceval.report import make_report
from chinese_llama_lab.ceval.runs import read_run
from chinese_llama_lab.ceval.shown import show_report, show_settings
from chinese_llama_lab.ceval.subjects import load_subjects
from chinese_llama_lab.paths import data_dir
from chinese_llama_lab.quantization.kinds import FOUR_BIT, quantization_config

from .conftest import make_model


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory):
    """A model, and runs of it under two prompts."""
    place = tmp_path_factory.mktemp("runs")
    make_model(len(tokenizer), 8192).save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    for name, shots in (("two", 2), ("none", 0)):
        assert call("ceval", place, "--shots", shots, "--out", place / name) == 0
    return place


def call(command, place, *options):
    given = ["--model", place / "model", "--device", "cpu", "--subjects", "law", "logic"]
    return cli.main([command, *map(str, [*options, *given])])


def test_a_report(place, capsys):
    run = read_run(place / "two")
    expected = make_report(run.rows, run.settings)
    for name in ("report.json", "report.csv"):
        (place / "two" / name).unlink()
    assert cli.main(["ceval-report", str(place / "two")]) == 0
    said = capsys.readouterr().out
    whole = expected.part("all").average_by_question
    for part in ("law", "logic", "Humanities", "all", "always", "chance"):
        assert f"\n{part} " in said
    assert f"{100 * whole.value:.1f}" in said and f"{100 * whole.low:.1f} to {100 * whole.high:.1f}" in said
    chosen = letter_histogram(row["predicted"] for row in run.rows)
    assert f"letters chosen: A {chosen['A']}, B {chosen['B']}" in said
    for part in ("ceval-official, 2 shots", "subject names: chinese", "logits of bare A = 'A'", "float32"):
        assert part in said
    assert json.loads((place / "two" / "report.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(expected.to_dict())
    )
    assert (place / "two" / "report.csv").read_text(encoding="utf-8").count("run.prompt") == 1


@pytest.mark.parametrize("kind", [*FOUR_BIT, "int8"])
def test_the_kind_is_named(kind):
    model = SimpleNamespace(config=SimpleNamespace(quantization_config=quantization_config(kind)))
    settings = {"model": "m", "dtype": "float32", "quantization": quantization_of(model)}
    assert f"model      m ({kind}), " in show_settings(settings)
    assert "model      m (float32), " in show_settings({**settings, "quantization": None})


def test_what_is_worth_a_note(place, capsys):
    run = read_run(place / "two")
    rows = [dict(row) for row in run.rows]
    rows[0] |= {"shots": 1}
    rows[1] |= {"predicted": None}
    rows[2] |= {"tied": True}
    said = show_report(make_report(rows, run.settings))
    for number, what in ((1, "got fewer shots"), (1, "have two letters"), (1, "have no answer")):
        assert f"{number} of 24 questions {what}" in said
    right = [row | {"predicted": row["answer"]} for row in rows]
    assert "guessing" not in show_report(make_report(right, run.settings))
    guessed = [row | {"predicted": "A"} for row in rows]
    assert "guessing" in show_report(make_report(guessed, run.settings))


def test_a_comparison(place, capsys):
    assert cli.main(["ceval-report", str(place / "two"), str(place / "none")]) == 0
    said = capsys.readouterr().out
    first, second = read_run(place / "two"), read_run(place / "none")
    expected = compare_runs(first.rows, second.rows)
    assert str(expected) in said and "shots" in said and "demonstrations_sha256" in said
    assert cli.main(["ceval-report", *[str(place / "two")] * 3]) == 1
    assert "cannot be compared at once" in capsys.readouterr().err


def test_a_submission(place, tmp_path, capsys):
    exam = tmp_path / "an exam's files"  # a name for the shell to trip over
    for split in ("dev", "test"):
        (exam / split).mkdir(parents=True)
        for subject in ("law", "logic"):
            asked = read_questions(data_dir() / "ceval_lab").select(split="dev", subject=subject)
            head = "id,question,A,B,C,D" + (",answer,explanation" if split == "dev" else "")
            tail = ",A,x" if split == "dev" else ""
            lines = [head, *(f"{q.id},题目{q.id},1,2,3,4{tail}" for q in asked)]
            (exam / split / f"{subject}_{split}.csv").write_text("\n".join(lines), encoding="utf-8")
    questions = ("--questions", exam, "--split", "test", "--shots", 1)
    assert call("ceval", place, *questions, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().out
    hint = shlex.split(said.split("  or: ")[1].splitlines()[0])
    assert hint[hint.index("--questions") + 1] == str(exam) and "--unextracted" not in hint
    assert hint[hint.index("--subjects") + 1 :][:2] == ["law", "logic"] and "--partial" in hint
    assert cli.main(hint[1:]) == 0  # as it stands
    written = tmp_path / "run" / "submission.json"
    assert len(json.loads(written.read_text(encoding="utf-8"))) == 2
    written.unlink()
    capsys.readouterr()
    assert "no right answers are published" in said and "this is not C-Eval's test set" in said
    assert not (tmp_path / "run" / "submission.json").exists()
    report = ["ceval-report", str(tmp_path / "run"), "--questions", str(exam)]
    assert cli.main([*report, "--submission", str(tmp_path / "s.json")]) == 1
    assert "this is not C-Eval's test set" in capsys.readouterr().err
    assert cli.main([*report, "--submission", str(tmp_path / "s.json"), "--partial"]) == 0
    found = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    rows = read_run(tmp_path / "run").rows
    assert {(s, n): letter for s, part in found.items() for n, letter in part.items()} == {
        (row["subject"], row["id"]): row["predicted"] for row in rows
    }
    assert cli.main(["ceval-report", str(tmp_path / "run")]) == 1
    assert "no published answer" in capsys.readouterr().err


def test_the_hint_names_what_stands_for_answers_not_extracted(tmp_path):
    from chinese_llama_lab.ceval.commands import _way_to_submission

    whole = [
        SimpleNamespace(subject=key, split="test")
        for key, subject in load_subjects().items()
        for _ in range(subject.counts["test"])
    ]
    given = SimpleNamespace(select=lambda split: whole)
    options = SimpleNamespace(out=tmp_path / "run", questions="~/ceval-exam.zip", subjects=None)
    hint = _way_to_submission(options, given, 3)
    parsed = cli.build_parser().parse_args(shlex.split(hint)[1:])
    assert parsed.unextracted == "" and not parsed.partial and parsed.subjects is None
    assert parsed.questions == options.questions and parsed.submission == tmp_path / "run" / "submission.json"


def test_position(place, tmp_path, capsys):
    options = ("position", "--shots", "1", "--out", tmp_path)
    assert call("ceval-probe", place, *options) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "position.json").read_text(encoding="utf-8"))
    assert f"{found['questions']} questions, each in 4 orders" in said and len(found["by_order"]) == 4
    rows = [read_run(tmp_path / f"order-{n}").rows for n in range(4)]
    right = [sum(row["predicted"] == row["answer"] for row in some) for some in rows]
    assert found["by_order"] == pytest.approx([n / found["questions"] for n in right])
    assert sum(found["letters"].values()) == sum(map(len, rows))
    assert all(len(left["question"]) == 3 for left in found["left_out"])
    assert call("ceval-probe", place, *options) == 0  # what is there is not asked again
    assert json.loads((tmp_path / "position.json").read_text(encoding="utf-8")) == found


def test_prompts(place, tmp_path, capsys):
    options = ("--prompt", "ceval-official,lm-eval", "--shots", "0,1", "--out", tmp_path)
    assert call("ceval-probe", place, "prompts", *options) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "prompts.json").read_text(encoding="utf-8"))
    ways = [("ceval-official", 0), ("ceval-official", 1), ("lm-eval", 0), ("lm-eval", 1)]
    assert [(one["prompt"], one["shots"]) for one in found["scores"]] == ways
    assert "best less worst" in said and "for all pairs" in said
    for (prompt, shots), one in zip(ways, found["scores"], strict=True):
        assert read_run(tmp_path / f"{prompt}-{shots}").accuracy == pytest.approx(one["by_question"]["value"])
    assert call("ceval-probe", place, "position", "--shots", "0,1", "--out", tmp_path / "p") == 1
    assert "shots is '0,1'" in capsys.readouterr().err


def test_contamination(place, tmp_path, capsys, monkeypatch):
    options = ("--reference", place / "model", "--out", tmp_path)
    assert call("ceval-probe", place, "contamination", *options) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "contamination.json").read_text(encoding="utf-8"))
    order, complete = found["order"], found["completion"]
    assert f"cheapest in {order['hits']} of {order['questions']} questions" in said
    assert order["questions"] + len(order["left_out"]) == 24
    assert len(complete["completions"]) + len(complete["left_out"]) == 24
    assert "neither clears a model" in said
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call("ceval-probe", place, "contamination", *options) == 1
    assert "one process" in capsys.readouterr().err
