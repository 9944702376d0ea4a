"""The paired comparison against cases counted by hand."""

from __future__ import annotations

import pytest

from chinese_llama_lab.ceval.compare import compare_runs
from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.intervals import sign_test


def run(letters, gold="AAAAAAAA", subject="law", split="val"):
    """Rows with one letter a question; `-` was not extracted."""
    return [
        {
            "subject": subject,
            "split": split,
            "id": n,
            "answer": right,
            "predicted": None if one == "-" else one,
        }
        for n, (one, right) in enumerate(zip(letters, gold, strict=True))
    ]


def test_counts_by_hand():
    found = compare_runs(run("AAAAAB-C"), run("AABBC--C"))
    # both right: 0, 1; only the first: 2, 3, 4; only the second: none; neither: 5, 6, 7
    assert (found.both, found.only_first, found.only_second, found.neither) == (2, 3, 0, 3)
    assert found.questions == 8 and found.accuracies == (5 / 8, 2 / 8)
    assert found.difference.value == 3 / 8
    assert found.p == 0.25  # two of the eight ways that three coins can fall
    assert found.same_letter == 3  # 0, 1, 7; what neither run extracted is no agreement
    assert "62.5 % against 25.0 % of 8 questions" in str(found) and "p = 0.25" in str(found)


def test_order_of_rows_and_of_runs():
    first, second = run("AAAAABBC"), run("ABBBCBBA")
    there, back = compare_runs(first, second), compare_runs(second, first[::-1])
    assert (there.only_first, there.only_second) == (back.only_second, back.only_first) == (4, 1)
    assert there.p == back.p == sign_test(4, 1) == pytest.approx(12 / 32)
    assert there.difference.value == pytest.approx(-back.difference.value)


def test_a_run_and_itself():
    found = compare_runs(run("ABCD----"), run("ABCD----"))
    assert found.p == found.p_subjects == 1.0 and found.difference.value == 0
    assert found.difference.low < 0 < found.difference.high


def test_subjects_count_the_same():
    first, second = [], []
    for subject, mine, theirs in (("law", "AAAA", "BBBB"), ("logic", "ABBB", "AABB"), ("marxism", "A", "A")):
        first += run(mine, "A" * len(mine), subject)
        second += run(theirs, "A" * len(theirs), subject)
    found = compare_runs(first, second)
    assert (found.subjects_first, found.subjects_second, found.subjects_tied) == (1, 1, 1)
    assert found.p_subjects == 1.0 and (found.only_first, found.only_second) == (4, 1)


def test_different_questions_are_refused_and_named():
    with pytest.raises(CevalError) as caught:
        compare_runs(run("AAA", "AAA"), run("AA", "AA") + run("A", "A", "logic"))
    message = str(caught.value)
    assert "1 only in the first run (law, val, id 2)" in message
    assert "1 only in the second run (logic, val, id 0)" in message
    with pytest.raises(CevalError, match="and 15 more"):
        compare_runs(run("A" * 21, "A" * 21), run("A", "A"))
    with pytest.raises(CevalError, match="different questions"):
        compare_runs(run("A", "A"), run("A", "A", split="dev"))


def test_other_right_answers_are_refused():
    with pytest.raises(CevalError, match=r"2 questions have another right answer[\s\S]*law, val, id 1; law"):
        compare_runs(run("AAA", "AAA"), run("AAA", "ABC"))


def test_the_same_ids_of_another_set_are_refused():
    rows = run("AAA", "AAA")
    same = ({"questions_sha256": "1", "prompt": "x", "date": "a"}, {"questions_sha256": "1", "prompt": "y"})
    assert compare_runs(rows, rows, settings=same).settings == {"prompt": ("x", "y")}
    shown = ({"demonstrations_sha256": "3"}, {"demonstrations_sha256": "4"})
    assert compare_runs(rows, rows, settings=shown).settings == {"demonstrations_sha256": ("3", "4")}
    with pytest.raises(CevalError, match="questions_sha256 is 1 and 2"):
        compare_runs(rows, rows, settings=({"questions_sha256": "1"}, {"questions_sha256": "2"}))


def test_hidden_answers_are_refused():
    with pytest.raises(CevalError, match="no published answer"):
        compare_runs(run("AA", [None, None]), run("AA", [None, None]))


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([], "no rows"),
        (run("A", "A") * 2, "answered twice"),
        (run("E", "A"), "predicted is 'E'"),
        (run("A", "a"), "answer is 'a'"),
        ([{"subject": "law", "split": "val", "id": 1, "answer": "A"}], "no 'predicted'"),
    ],
)
def test_damaged_rows(rows, what):
    with pytest.raises(CevalError, match=what):
        compare_runs(rows, run("A", "A"))
