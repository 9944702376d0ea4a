"""Moving options: what a model that reads, one that likes a letter, and one that draws lots look like."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from chinese_llama_lab import paths
from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.position import ALL, CYCLIC, permute, position_bias, why_not
from chinese_llama_lab.ceval.questions import LETTERS, Question
from chinese_llama_lab.ceval.readers import read_questions

from .conftest import ASKED, many

EXPLAINED = replace(
    ASKED,
    options=("北京", "上海", "广州", "深圳"),
    answer="B",
    explanation="1. A项错误，选项C和D不正确。\n2. 故选B。",
)


def rows_of(asked, letters):
    return [
        {"subject": q.subject, "split": q.split, "id": q.id, "answer": q.answer, "predicted": letter}
        for q, letter in zip(asked, letters, strict=True)
    ]


def test_orders():
    assert CYCLIC == ((0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2))
    assert len(ALL) == len(set(ALL)) == 24


@pytest.mark.parametrize("order", ALL)
def test_content_and_right_letter_move_together(order):
    moved = permute(EXPLAINED, order)
    assert sorted(moved.options) == sorted(EXPLAINED.options)
    assert moved.option[str(moved.answer)] == "上海"
    assert [EXPLAINED.options[old] for old in order] == list(moved.options)
    inverse = tuple(order.index(place) for place in range(4))
    assert permute(moved, inverse) == EXPLAINED
    # What the explanation says of a content it still says: 北京 is wrong, 广州 and 深圳 are not right.
    letter = {option: letter for letter, option in moved.option.items()}
    a, b, c, d = (letter[option] for option in EXPLAINED.options)
    assert moved.explanation == f"1. {a}项错误，选项{c}和{d}不正确。\n2. 故选{b}。"


def test_by_hand():
    moved = permute(EXPLAINED, (1, 2, 3, 0))
    assert moved.options == ("上海", "广州", "深圳", "北京") and moved.answer == "A"
    assert moved.explanation == "1. D项错误，选项B和C不正确。\n2. 故选A。"
    assert (moved.id, moved.subject, moved.text) == (EXPLAINED.id, EXPLAINED.subject, EXPLAINED.text)
    assert permute(replace(EXPLAINED, answer=None), (1, 2, 3, 0)).answer is None


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("答案是A", "答案是D"),
        ("答案：B。", "答案：A。"),
        ("选项 A、B 都对", "选项 D、A 都对"),
        ("A、C两项均不正确", "D、B两项均不正确"),
        ("B选项说法有误", "A选项说法有误"),
        ("D正确", "C正确"),
        ("因此选C。", "因此选B。"),
        ("排除A和D", "排除D和C"),
        ("Option A is right", "Option D is right"),
        # These name no option and stay.
        ("电流为 3 A。", "电流为 3 A。"),
        ("$P(A)+P(B)$ 与 $C_5^2$", "$P(A)+P(B)$ 与 $C_5^2$"),
        ("DNA、ABC、B1、C++ 和 A_bb", "DNA、ABC、B1、C++ 和 A_bb"),
    ],
)
def test_letters_in_explanations(text, moved):
    question = replace(EXPLAINED, explanation=text)
    assert why_not(question) is None
    assert permute(question, (1, 2, 3, 0)).explanation == moved


@pytest.mark.parametrize(
    "text", ["A 记录把域名映射为地址。", "P(A) 为 0.5", "设 A、B 两地", "B超检查", "A对应甲"]
)
def test_unclear_letters_leave_a_question_out(text):
    reason = why_not(replace(EXPLAINED, explanation=text))
    assert reason is not None and "may name an option" in reason
    with pytest.raises(CevalError, match="leave this question out"):
        permute(replace(EXPLAINED, explanation=text), CYCLIC[1])


@pytest.mark.parametrize(
    "option",
    [
        "以上都对",
        "以上都不是",
        "上述说法均正确",
        "前三项都是",
        "都不对",
        "All of the above",
        "A和B",
        "AB型或B型",
    ],
)
def test_options_about_options_are_left_out(option):
    assert why_not(replace(ASKED, options=("一", "二", "三", option))) is not None


@pytest.mark.parametrize(
    "option", ["三分之二以上的多数", "可能所有人都不满意", "3 A", "$A\\cup B$", "都江堰", "全国"]
)
def test_options_that_only_look_like_it_stay(option):
    assert why_not(replace(ASKED, options=("一", "二", "三", option))) is None


def test_letters_in_the_question_itself():
    question = replace(ASKED, text="A、B两地相距10 km，与选项C相符的是")
    assert permute(question, (1, 2, 3, 0)).text == "A、B两地相距10 km，与选项B相符的是"


def test_a_model_that_reads():
    asked = many(6)
    found = position_bias(asked, lambda moved: rows_of(moved, [q.answer for q in moved]))
    assert found.accuracy == found.always_right == found.same_content == found.follows_content == 1.0
    assert found.same_letter == found.follows_letter == found.recall_spread == 0
    assert found.pairs == 6 * 12 and found.by_order == (1, 1, 1, 1)
    assert found.letters == {"A": 6, "B": 6, "C": 6, "D": 6, "none": 0}


@pytest.mark.parametrize("orders", ["cyclic", "all"])
def test_a_model_that_likes_a_letter(orders):
    asked = many(6)
    found = position_bias(asked, lambda moved: rows_of(moved, ["C"] * len(moved)), orders=orders)
    assert found.accuracy == 0.25 and found.always_right == found.same_content == 0
    assert found.same_letter == found.follows_letter == 1.0
    assert found.recalls == {"A": 0, "B": 0, "C": 1, "D": 0}
    assert found.recall_spread == pytest.approx((3 / 16) ** 0.5)


def test_pairs_that_tell_nothing_are_left_out():
    """In all orders an option often stays where it was: a reader must not seem to like a letter."""
    found = position_bias(many(2), lambda moved: rows_of(moved, [q.answer for q in moved]), orders="all")
    assert found.follows_content == 1.0 and found.pairs == 2 * 24 * 18


def test_a_model_that_draws_lots():
    chance = random.Random(3)
    found = position_bias(
        many(300), lambda moved: rows_of(moved, [chance.choice(LETTERS) for _ in moved]), orders="cyclic"
    )
    assert found.follows_content == pytest.approx(1 / 4, abs=0.05)
    assert found.follows_letter == pytest.approx(1 / 4, abs=0.05)
    assert found.follows_neither == pytest.approx(1 / 2, abs=0.05)


def test_half_and_half_by_hand():
    """One question, right answer B: B, A, A, C under the four shifts."""
    asked = [EXPLAINED]
    letters = iter("BAAC")
    found = position_bias(asked, lambda moved: rows_of(moved, [next(letters)]))
    # contents chosen: 上海 (1), 上海 (1), 广州 (2), 上海 ((3 + 2) % 4 = 1)
    assert found.accuracy == 3 / 4 and found.by_order == (1, 1, 0, 1) and found.always_right == 0
    # of six pairs, three share the content, one the letter (A, A)
    assert (found.follows_content, found.follows_letter) == (3 / 6, 1 / 6) and found.pairs == 12


def test_rows_come_in_any_order_and_unextracted_count_as_wrong():
    asked = many(4)
    found = position_bias(asked, lambda moved: rows_of(moved, [None, *(q.answer for q in moved[1:])])[::-1])
    assert found.accuracy == 3 / 4 and found.letters["none"] == 4 and found.pairs == 3 * 12
    assert found.same_content == 3 / 4 and found.same_letter == 0


def test_what_is_left_out_is_counted():
    odd = replace(ASKED, id="odd", options=("一", "二", "三", "以上都对"))
    hidden = replace(ASKED, id="hidden", answer=None)
    found = position_bias([*many(2), odd, hidden], lambda moved: rows_of(moved, "AB"))
    assert found.questions == 2 and [out.question.id for out in found.left_out] == ["odd", "hidden"]
    assert "以上都对" in found.left_out[0].reason and "not published" in found.left_out[1].reason
    with pytest.raises(CevalError, match="no question can be moved: option D"):
        position_bias([odd], lambda moved: [])


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(CevalError, match="1 questions were not answered"):
        position_bias(many(2), lambda moved: rows_of(moved[:1], "A"))
    with pytest.raises(CevalError, match="1 answers belong to no question"):
        position_bias(many(2), lambda moved: rows_of([*moved, replace(ASKED, id="x")], "ABC"))


@pytest.mark.parametrize("orders", ["random", [(0, 1, 2, 3)], [(0, 1, 2, 2), (0, 1, 2, 3)], []])
def test_impossible_orders(orders):
    with pytest.raises(CevalError, match="orders"):
        position_bias(many(2), lambda moved: [], orders=orders)


def test_the_written_set():
    """No `val` question is lost; in `dev` only explanations with an unclear letter are."""
    questions = read_questions(paths.data_dir() / "ceval_lab").questions
    reasons = {(q.split, q.subject, q.id): reason for q in questions if (reason := why_not(q))}
    assert {key for key in reasons if key[0] == "val"} == set()
    assert len(reasons) <= 6 and all("explanation" in reason for reason in reasons.values())
    for question, order in itertools.product(questions, CYCLIC):
        if why_not(question) is None:
            moved: Question = permute(question, order)
            assert moved.option[str(moved.answer)] == question.option[str(question.answer)]
