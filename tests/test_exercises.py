"""Checkers: three verdicts, reasons that fit the mistake, and no answer that breaks them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from chinese_llama_lab.errors import LabError
from chinese_llama_lab.exercises import (
    Case,
    Registry,
    Verdict,
    expect_choice,
    expect_close,
    expect_function,
    is_unanswered,
    right,
    wrong,
)
from chinese_llama_lab.exercises import (
    registry as course_registry,
)

toy = Registry()


@toy.exercise("1.1", hint="divide tokens by characters")
def _(answer: Any) -> Verdict:
    return expect_close(answer, 1.25, 0.005, why={2.5: "you counted every token twice"}, unit="tokens")


@toy.exercise("1.2", hint="use encode", praise="bytes it is")
def _(answer: Any) -> str | None:
    return None if answer == "bytes" else "look at the second column"


@toy.exercise("1.3", hint="len of the encoded text")
def _(answer: Any) -> Verdict:
    return expect_function(
        answer,
        [("", 0), ("ab", 2), Case(("汉字",), 6, why="a Han character takes three bytes in UTF-8")],
        mistakes={"you counted characters, not bytes": len},
        seconds=0.3,
    )


@toy.exercise("1.10", hint="none")
def _(answer: Any) -> Verdict:
    return right(f"{answer['deep']['down']}")


def test_right() -> None:
    verdict = toy.check("1.1", 1.2501)
    assert verdict.status == "right"
    assert repr(verdict) == "✔ right — 1.2501 tokens"
    assert repr(toy.check("1.2", "bytes")) == "✔ right — bytes it is"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (2.5, "counted every token twice"),
        (0.8, "reciprocal"),
        (125.0, "percentage"),
        (-1.25, "sign"),
        (1.3, "too large"),
        (1.1, "too small"),
        (float("nan"), "not a finite number"),
        (float("inf"), "not a finite number"),
        ("1.25", "text (str)"),
        (True, "of type bool"),
        ([1.25], "of type list"),
        (1.25 + 0j, "of type complex"),
        (np.array([1.25, 2]), "of type ndarray"),
        (lambda: 1.25, "a function"),
    ],
)
def test_a_wrong_number_gets_the_reason_that_fits(answer: Any, reason: str) -> None:
    verdict = toy.check("1.1", answer)
    assert verdict.status == "wrong"
    assert reason in verdict.why


def test_numpy_scalars_are_numbers() -> None:
    assert toy.check("1.1", np.float32(1.25)).status == "right"
    assert toy.check("1.1", np.array(1.25)).status == "right"


@pytest.mark.parametrize("answer", [..., None, NotImplemented, (1, ...), [...], {"news": ...}])
def test_a_stub_is_not_an_answer(answer: Any) -> None:
    verdict = toy.check("1.1", answer)
    assert verdict.status == "not answered"
    assert repr(verdict) == "… not answered yet — divide tokens by characters"


def _ellipsis(text: str) -> Any: ...


def _documented(text: str) -> Any:
    """To do."""


def _passes(text: str) -> Any:
    pass


def _returns_ellipsis(text: str) -> Any:
    return ...


def _raises(text: str) -> Any:
    raise NotImplementedError


def _raises_with_text(text: str) -> Any:
    raise NotImplementedError("to do")


@pytest.mark.parametrize(
    "stub", [_ellipsis, _documented, _passes, _returns_ellipsis, _raises, _raises_with_text]
)
def test_an_empty_function_is_not_an_answer(stub: Any) -> None:
    assert is_unanswered(stub)
    assert toy.check("1.3", stub).status == "not answered"


def _half_stub(text: str) -> int:
    if not text:
        return 0
    raise NotImplementedError


def test_a_function_that_is_a_stub_inside_is_not_answered_either() -> None:
    verdict = toy.check("1.3", _half_stub)
    assert verdict.status == "not answered"
    assert verdict.why == "len of the encoded text"


def test_short_functions_are_answers() -> None:
    assert not is_unanswered(lambda: 3)
    assert not is_unanswered(len)
    assert not is_unanswered(lambda text: text)


def test_a_right_function() -> None:
    verdict = toy.check("1.3", lambda text: len(text.encode()))
    assert verdict == right("it gives the expected value in all 3 cases")


def _loops(text: str) -> int:
    while len(text) != 1:
        pass
    return 1


def _loops_and_swallows(text: str) -> int:
    while True:
        try:  # noqa: SIM105
            time.sleep(0.001)
        except:  # noqa: E722
            pass


def _exits(text: str) -> int:
    raise SystemExit(3)


def _recurses(text: str) -> int:
    return _recurses(text)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (len, "counted characters, not bytes (len('汉字') gave 2 instead of 6)"),
        (lambda text: {"ab": 2}.get(text, 0), "three bytes in UTF-8"),
        (lambda text: text[0], "raised IndexError"),
        (lambda: 1, "raised TypeError"),
        (lambda text: print(end=""), "is a `return` missing?"),
        (lambda text: str(len(text.encode())), "gave '0' instead of 0"),
        (_loops, "still running after 0.3 s"),
        (_loops_and_swallows, "still running after 0.3 s"),
        (_exits, "raised SystemExit"),
        (_recurses, "raised RecursionError"),
        (6, "a function is wanted"),
        ("len", "a function is wanted"),
    ],
)
def test_a_wrong_function_is_shown_the_input_that_shows_it(answer: Any, reason: str) -> None:
    verdict = toy.check("1.3", answer)
    assert verdict.status == "wrong"
    assert reason in verdict.why


def test_a_function_must_not_change_its_argument() -> None:
    def spoils(items: list[int]) -> int:
        return items.pop()

    cases = [([1, 2], 2)]
    assert "changes the argument" in expect_function(spoils, cases).why
    assert cases == [([1, 2], 2)], "the cases themselves must stay as they were"


def test_values_are_compared_as_a_reader_means_them() -> None:
    assert expect_function(lambda: (1, 2.0), [([1, 2],)]).status == "right"
    assert expect_function(lambda: np.array([1, 2]), [([1, 2],)]).status == "right"
    assert expect_function(lambda: {"a": 0.1 + 0.2}, [({"a": 0.3},)]).status == "right"
    assert expect_function(lambda: True, [(1,)]).status == "wrong"
    assert expect_function(lambda: float("nan"), [(float("nan"),)]).status == "right"


def test_a_choice() -> None:
    why = {"shorter": "count the bytes again", "equal": "one Han character is three bytes"}
    assert expect_choice(" Longer ", "longer", why).status == "right"
    assert expect_choice("equal", "longer", why) == wrong("one Han character is three bytes")
    assert "'equal', 'longer', 'shorter'" in expect_choice("long", "longer", why).why
    assert "of type int" in expect_choice(3, "longer", why).why


def test_a_string_from_a_checker_means_wrong() -> None:
    assert toy.check("1.2", "characters") == wrong("look at the second column")


def test_an_answer_the_checker_did_not_foresee_is_no_trace() -> None:
    verdict = toy.check("1.10", 3)
    assert verdict.status == "wrong"
    assert "cannot work with this answer, 3 (int)" in verdict.why


def test_an_unknown_key_lists_the_keys_in_order_and_offers_the_nearest() -> None:
    with pytest.raises(LabError) as caught:
        toy.check("1.33", 1)
    assert "1.1, 1.2, 1.3, 1.10" in str(caught.value)
    assert "did you mean '1.3'?" in str(caught.value)


def test_a_number_for_a_key_is_explained() -> None:
    with pytest.raises(LabError, match="put it in quotes"):
        toy.check(1.1, 1)  # type: ignore[arg-type]


def test_a_key_cannot_be_taken_twice() -> None:
    with pytest.raises(LabError, match="declared twice"):
        toy.exercise("1.1", hint="again")(lambda answer: None)


def test_hint_shows_itself_without_quotes() -> None:
    assert repr(toy.hint("1.2")) == "use encode"


def test_html_carries_symbol_word_and_colour_and_escapes() -> None:
    html = wrong("1 < 2 & <b>")._repr_html_()
    assert "✘ wrong" in html and "#D55E00" in html
    assert "1 &lt; 2 &amp; &lt;b&gt;" in html
    assert "✔ right" in right()._repr_html_()


def test_every_exercise_of_the_course_has_a_hint_and_a_number_of_its_chapter() -> None:
    for key in course_registry.keys():  # noqa: SIM118
        chapter, _, number = key.partition(".")
        assert chapter.isdigit() and number.isdigit()
        assert course_registry.find(key).hint
        assert course_registry.check(key, ...).status == "not answered"
