"""The set that this project wrote is clean, and bad sets are caught."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chinese_llama_lab import paths
from chinese_llama_lab.ceval.quality import check_questions, length_guesses, letter_counts
from chinese_llama_lab.ceval.readers import read_questions

from .conftest import ASKED, FIRST, SECOND, many


@pytest.fixture(scope="module")
def lab():
    return read_questions(paths.data_dir() / "ceval_lab")


def kinds(questions, **options):
    return [finding.kind for finding in check_questions(questions, **options)]


def test_the_written_set_is_whole_and_clean(lab):
    assert lab.kind == "ceval-lab" and lab.shortfalls == ()
    assert (lab.count("dev"), lab.count("val"), len(lab.subjects)) == (130, 312, 26)
    assert check_questions(lab.questions) == []


def test_the_written_set_in_numbers(lab):
    assert letter_counts(lab.select(split="val")) == dict.fromkeys("ABCD", 78)
    for subject in lab.subjects:
        assert letter_counts(lab.select(split="val", subject=subject)) == dict.fromkeys("ABCD", 3)
        assert min(letter_counts(lab.select(split="dev", subject=subject)).values()) >= 1
    longest, shortest = length_guesses(lab.select(split="val"))
    assert 0.20 <= longest <= 0.28 and 0.18 <= shortest <= 0.28  # the README states 25 % and 20 %


def test_the_written_set_has_the_form_of_c_eval(lab):
    assert any("\n" in question.text for question in lab.questions)
    assert any(option in ("None", "NA", "1", "False") for q in lab.questions for option in q.options)
    for question in lab.questions:
        for text in (question.text, *question.options, question.explanation):
            assert text == text.strip() and text.count("$") % 2 == 0, question.where
            assert not any(mark in text for mark in "\r\t\ufeff\ufffd"), question.where


def test_the_files_are_plain():
    for path in (paths.data_dir() / "ceval_lab").rglob("*.csv"):
        data = path.read_bytes()
        assert not data.startswith(b"\xef\xbb\xbf") and b"\r" not in data and data.endswith(b"\n"), path.name


def test_the_readme_says_what_it_is_not():
    text = (paths.data_dir() / "ceval_lab" / "README.md").read_text(encoding="utf-8")
    assert "no substitute for C-Eval" in text and "CC-BY-4.0" in text


def test_a_good_set_has_no_findings():
    assert check_questions(many(40)) == []


def test_duplicates():
    questions = many(12)
    copy = replace(questions[3], id="99", text=f" {questions[3].text}？", where="the copy")
    shuffled = replace(copy, options=("庚辛", "丙丁", "戊己", "甲乙"), answer="A")
    for other in (copy, shuffled):
        (finding,) = check_questions([*questions, other])
        assert (finding.kind, finding.where) == ("duplicate", "the copy") and "row 3" in finding.what
    same_text = replace(questions[3], id="99", options=("一", "二", "三", "四"))
    assert "duplicate" not in kinds([*questions, same_text])


def test_near_duplicates():
    questions = many(12)
    text = "某企业年初应收账款余额为二百万元，本年收回一百万元，年末余额为多少"
    one = replace(ASKED, id="50", text=text, where="one")
    two = replace(ASKED, id="51", text=text.replace("二百", "三百"), where="two", answer="C")
    (finding,) = check_questions([*questions, one, two])
    assert (finding.kind, finding.where) == ("similar", "two") and "like one" in finding.what
    assert kinds([*questions, one, two], similar=0.99) == []


def test_unbalanced_letters():
    questions = [
        replace(question, answer="D" if n % 2 else question.answer) for n, question in enumerate(many(80))
    ]
    found = check_questions(questions)
    assert {finding.kind for finding in found} == {"letters"}
    assert any("D is right 40 times in 80 (50%)" in finding.what for finding in found)


def test_length_cues():
    def stretched(question, right, wrong):
        options = tuple(
            option * (right if letter == question.answer else wrong)
            for letter, option in question.option.items()
        )
        return replace(question, options=options)

    longest = [stretched(question, 3, 1) for question in many(40)]
    shortest = [stretched(question, 1, 2) for question in many(40)]
    assert length_guesses(longest) == (1.0, 0.0) and length_guesses(shortest) == (0.0, 1.0)
    assert length_guesses(many(40)) == (0.25, 0.25) and length_guesses([]) == (0, 0)
    for questions, name in ((longest, "longest"), (shortest, "shortest")):
        (finding,) = check_questions(questions)
        assert finding.kind == "length" and f"always taking the {name} option" in finding.what


def test_missing_explanations_and_equal_options():
    bare = replace(FIRST, explanation=" ", where="bare")
    unnumbered = replace(SECOND, explanation="因为 2+2=4。", where="unnumbered")
    equal = replace(ASKED, options=("1", "2", " 1", "3"), where="equal")
    found = [(finding.kind, finding.where) for finding in check_questions([bare, unnumbered, equal])]
    assert found == [("options", "equal"), ("explanation", "bare"), ("explanation", "unnumbered")]


def test_no_questions():
    assert check_questions([]) == []
    assert letter_counts([]) == dict.fromkeys("ABCD", 0)
