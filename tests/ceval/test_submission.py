"""`submission.json`: C-Eval's own form, nothing missing, nothing guessed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.questions import Question
from chinese_llama_lab.ceval.subjects import load_subjects
from chinese_llama_lab.ceval.submission import make_submission


def asked(subject, count):
    return [
        Question(subject, "test", str(n), f"第{n}题", ("一", "二", "三", "四"), None) for n in range(count)
    ]


def rows_of(questions, letters):
    return [
        {"subject": q.subject, "split": q.split, "id": q.id, "answer": None, "predicted": letter}
        for q, letter in zip(questions, letters, strict=True)
    ]


def whole():
    return [q for key, subject in load_subjects().items() for q in asked(key, subject.counts["test"])]


def test_the_form(tmp_path):
    questions = [*asked("law", 2), *asked("operating_system", 1)]
    made = make_submission(rows_of(questions, "ABD")[::-1], questions, official=False)
    target = tmp_path / "submission.json"
    made.write(target)
    loaded = json.loads(target.read_bytes().decode("utf-8"))
    assert loaded == {"operating_system": {"0": "D"}, "law": {"0": "A", "1": "B"}}
    assert list(loaded) == ["operating_system", "law"] and list(loaded["law"]) == ["0", "1"]  # C-Eval's order
    assert made.written is None and made.histogram == {"A": 1, "B": 1, "C": 0, "D": 1, "none": 0}
    assert str(made) == "3 answers in 2 subjects; all were extracted"


def test_the_whole_test_set():
    questions = whole()
    made = make_submission(rows_of(questions, "ABCD" * (12342 // 4) + "AB"), questions)
    assert len(made) == 12342 and list(made.answers) == list(load_subjects())
    assert {key: len(part) for key, part in made.answers.items()} == {
        key: subject.counts["test"] for key, subject in load_subjects().items()
    }


def test_less_than_the_test_set_is_refused():
    questions = whole()[:-1]
    last = list(load_subjects().values())[-1]
    with pytest.raises(
        CevalError, match=f"{last.key} has {last.counts['test'] - 1} of {last.counts['test']}"
    ):
        make_submission(rows_of(questions, "A" * 12341), questions)
    with pytest.raises(CevalError, match="and 48 more subjects"):
        make_submission(rows_of(asked("law", 221), "A" * 221), asked("law", 221))


def test_missing_questions_are_an_error():
    questions = asked("law", 4)
    with pytest.raises(CevalError, match=r"2 of 4 test questions have no answer[\s\S]*id 1; law, test, id 3"):
        make_submission(rows_of(questions[::2], "AB"), questions, official=False)


def test_rows_of_other_questions_are_an_error():
    questions = asked("law", 2)
    for other in (replace(questions[0], id="9"), replace(questions[0], split="val", answer="A")):
        with pytest.raises(CevalError, match="1 rows are no test question"):
            make_submission(rows_of([*questions, other], "ABC"), questions, official=False)
    with pytest.raises(CevalError, match="answered twice"):
        make_submission(rows_of([*questions, questions[0]], "ABC"), questions, official=False)


def test_what_was_not_extracted_is_decided_not_guessed():
    questions = asked("law", 3)
    rows = rows_of(questions, ["A", None, None])
    with pytest.raises(CevalError, match=r"2 answers could not be extracted[\s\S]*id 1; law, test, id 2"):
        make_submission(rows, questions, official=False)
    empty = make_submission(rows, questions, unextracted="", official=False)
    assert empty.answers["law"] == {"0": "A", "1": "", "2": ""} and "have an empty answer" in str(empty)
    chosen = make_submission(rows, questions, unextracted="C", official=False)
    assert chosen.answers["law"] == {"0": "A", "1": "C", "2": "C"} and len(chosen.unextracted) == 2
    assert chosen.histogram["none"] == 2 and chosen.histogram["C"] == 0 and "have the letter C" in str(chosen)
    with pytest.raises(CevalError, match="unextracted is 'E'"):
        make_submission(rows, questions, unextracted="E", official=False)


def test_val_questions_are_not_submitted():
    questions = [replace(question, split="val", answer="A") for question in asked("law", 2)]
    with pytest.raises(CevalError, match="no test questions"):
        make_submission(rows_of(questions, "AB"), questions)
