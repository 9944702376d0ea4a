"""Reports against scores counted by hand."""

from __future__ import annotations

import csv
import json

import pytest

from chinese_llama_lab import paths
from chinese_llama_lab.ceval.compare import compare_runs
from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.intervals import average_by_question
from chinese_llama_lab.ceval.position import position_bias
from chinese_llama_lab.ceval.readers import read_questions
from chinese_llama_lab.ceval.report import HARD_NAME, REQUIRED, make_report
from chinese_llama_lab.ceval.runs import read_run
from chinese_llama_lab.ceval.score import score
from chinese_llama_lab.ceval.subjects import HARD

from .conftest import many

SETTINGS = {
    "model": "tiny",
    "model_sha256": "ab",
    "tokenizer_sha256": "cd",
    "question_set": "ceval-lab",
    "questions_sha256": "ef",
    "questions": 8,
    "prompt": "ceval-official",
    "shots": 5,
    "cot": False,
    "names": "chinese",
    "dtype": "float32",
    "method": "letters",
    "letters": {"form": "bare", "ids": [33, 34, 35, 36]},
    "versions": {"torch": "2"},
}


def rows_of(subject, gold, predicted, shots=5):
    return [
        {
            "subject": subject,
            "split": "val",
            "id": str(n),
            "answer": right,
            "predicted": None if letter == "-" else letter,
            "shots": shots,
            "tied": letter == "C",
        }
        for n, (right, letter) in enumerate(zip(gold, predicted, strict=True))
    ]


ROWS = [
    *rows_of("college_physics", "AB", "AA"),  # Hard, STEM: 1 of 2
    *rows_of("operating_system", "D", "D"),  # STEM: 1 of 1
    *rows_of("law", "ABCDD", "-BCAA", shots=3),  # Humanities: 2 of 5, one not extracted
]


@pytest.fixture()
def report():
    return make_report(ROWS, SETTINGS)


def test_scores_by_hand(report):
    whole = report.part("all")
    assert (whole.questions, whole.right, whole.unextracted) == (8, 4, 1)
    assert (whole.subjects, whole.of_subjects) == (3, 52)
    assert whole.average_by_question == average_by_question(4, 8)
    assert whole.average_by_subject.value == pytest.approx((1 / 2 + 1 + 2 / 5) / 3)
    assert whole.always == {"A": 2 / 8, "B": 2 / 8, "C": 1 / 8, "D": 3 / 8} and whole.best_letter == "D"
    stem = report.part("STEM")
    assert (stem.questions, stem.right, stem.subjects, stem.of_subjects) == (3, 2, 2, 20)
    assert stem.average_by_question.value == 2 / 3 and stem.average_by_subject.value == 3 / 4
    hard = report.part(HARD_NAME)
    assert (hard.questions, hard.right, hard.subjects, hard.of_subjects) == (2, 1, 1, 8)
    law = report.part("law")
    assert law.kind == "subject" and law.average_by_question.value == law.average_by_subject.value == 0.4


def test_only_parts_with_questions_and_in_order(report):
    assert [part.part for part in report.scores] == [
        *("all", HARD_NAME, "STEM", "Humanities", "operating_system", "college_physics", "law")
    ]
    with pytest.raises(CevalError, match="no score for 'Social Science'"):
        report.part("Social Science")


def test_histograms_and_dropped_shots(report):
    assert report.predicted == {"A": 4, "B": 1, "C": 1, "D": 1, "none": 1}
    assert report.gold == {"A": 2, "B": 2, "C": 1, "D": 3, "none": 0}
    assert report.fewer_shots == 5 and report.tied == 1


def test_not_extracted_is_wrong_never_guessed():
    found = make_report(rows_of("law", "ABCD", "----")).part("all")
    assert (found.right, found.unextracted, found.average_by_question.value) == (0, 4, 0.0)


def test_the_table_names_both_averages_and_the_lines_of_knowing_nothing(report):
    table = report.table("all", "category")
    assert [row["part"] for row in table.rows] == ["all", "STEM", "Humanities", "always D", "chance"]
    assert table.rows[0]["average by question, %"] == "50.0"
    assert table.rows[0]["average by subject, %"] == "63.3"
    assert table.rows[0]["subjects"] == "3 of 52" and table.rows[0]["best letter"] == "D 37.5"
    assert table.rows[0]["its interval"] == "21.5 to 78.5"
    assert [row["average by question, %"] for row in table.rows[-2:]] == ["37.5", "25.0"]
    assert "by question 50.0 % (21.5 to 78.5), by subject 63.3 %" in str(report)
    assert len(report.table().rows) == len(report.scores) + 2


def test_json_and_csv_carry_every_setting(report, tmp_path):
    whole, table = report.write(tmp_path)
    loaded = json.loads(whole.read_text(encoding="utf-8"))
    assert loaded["settings"] == SETTINGS
    assert loaded["lab_version"] and loaded["chance"] == 0.25 and loaded["predicted"]["none"] == 1
    assert "Wilson" in loaded["intervals"]["average_by_question"]
    assert "(right + 1)/(n + 2)" in loaded["intervals"]["average_by_subject"]
    with table.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["part"] for line in lines] == [part.part for part in report.scores]
    for line, part, one in zip(lines, report.scores, loaded["scores"], strict=True):
        assert float(line["average_by_question.value"]) == part.average_by_question.value
        assert float(line["average_by_subject.high"]) == one["average_by_subject"]["high"]
        assert float(line["always.D"]) == part.always["D"]
        assert line["run.prompt"] == "ceval-official" and line["run.model_sha256"] == "ab"
        assert line["lab_version"] == loaded["lab_version"] and line["run.names"] == "chinese"
        assert line["run.versions.torch"] == "2" and json.loads(line["run.letters.ids"]) == [33, 34, 35, 36]


@pytest.mark.parametrize("name", REQUIRED)
def test_no_report_without_its_settings(name, tmp_path):
    for settings in ({**SETTINGS, name: None}, {k: v for k, v in SETTINGS.items() if k != name}):
        with pytest.raises(CevalError, match=f"does not say its {name}"):
            make_report(ROWS, settings).write(tmp_path)
    assert not list(tmp_path.iterdir())
    make_report(ROWS, {**SETTINGS, "shots": 0}).write(tmp_path)  # none is a number of shots


def test_half_a_run_is_refused():
    with pytest.raises(CevalError, match="7 rows and 8 questions"):
        make_report(ROWS[:-1], SETTINGS)


def test_hidden_answers_and_mixed_splits_are_refused():
    hidden = [{**row, "answer": None, "split": "test"} for row in ROWS]
    with pytest.raises(CevalError, match=r"8 questions have no published answer[\s\S]*submission"):
        make_report(hidden)
    with pytest.raises(CevalError, match="several splits: dev, val"):
        make_report([*ROWS, {**ROWS[0], "split": "dev"}])
    with pytest.raises(CevalError, match="ceval has no subject 'agronomy'"):
        make_report(rows_of("agronomy", "A", "A"))
    assert make_report(rows_of("agronomy", "A", "A"), benchmark="cmmlu").part("all").of_subjects == 67


def test_a_run_of_the_scorer(model, tokenizer, tmp_path):
    """What `score` writes is what reports, comparisons and position bias read."""
    asked = many(6)
    run = score(model, tokenizer, asked, shots=0, out=tmp_path / "run", progress=False)
    back = read_run(tmp_path / "run")
    report = make_report(back.rows, back.settings)
    assert report.part("all").average_by_question.value == run.accuracy
    whole, _ = report.write(tmp_path)
    assert json.loads(whole.read_text(encoding="utf-8"))["settings"]["prompt"] == "ceval-official"
    found = compare_runs(run.rows, back.rows, settings=(run.settings, back.settings))
    assert found.same_letter == 6 and found.settings == {}
    moved = position_bias(asked, lambda some: score(model, tokenizer, some, shots=0, progress=False).rows)
    assert moved.questions == 6 and moved.by_order[0] == run.accuracy


def test_confidence():
    narrow = make_report(ROWS, confidence=0.5).part("all").average_by_question
    wide = make_report(ROWS).part("all").average_by_question
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_the_written_set_whole():
    """Always B on the 312 questions that come with the course: a quarter, by both averages."""
    asked = read_questions(paths.data_dir() / "ceval_lab").select(split="val")
    rows = [
        {"subject": q.subject, "split": q.split, "id": q.id, "answer": q.answer, "predicted": "B"}
        for q in asked
    ]
    report = make_report(rows)
    whole = report.part("all")
    assert (
        whole.questions == 312 and whole.average_by_question.value == whole.average_by_subject.value == 0.25
    )
    assert report.predicted == {"A": 0, "B": 312, "C": 0, "D": 0, "none": 0}
    assert sum(part.questions for part in report.scores if part.kind == "category") == 312
    hard = {part.part for part in report.scores if part.kind == "subject"} & set(HARD)
    assert report.part(HARD_NAME).subjects == len(hard) and report.part(HARD_NAME).questions == 12 * len(hard)
