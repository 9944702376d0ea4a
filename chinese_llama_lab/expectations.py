"""Helpers that judge an answer: a number, a choice, or a function tried on cases.

Each returns a `Verdict`. A wrong answer gets a reason that depends on the mistake where the author of
the exercise foresaw it, and otherwise the input, the expected value and what came instead.
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.timelimit import OutOfTime, call_with_limit
from chinese_llama_lab.verdict import Verdict, not_answered, right, wrong


@dataclass(frozen=True)
class Case:
    """One call: positional arguments, the value that must come back, and why it matters."""

    args: tuple[Any, ...]
    expected: Any
    why: str = ""


def shorten(value: Any, limit: int = 120) -> str:
    """`repr(value)` in at most `limit` characters; safe where repr itself raises."""
    try:
        text = repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 3 :]}"


def plain(value: Any) -> Any:
    """numpy and torch values as plain Python numbers and lists, so that `==` gives one bool."""
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes, memoryview)):
        return value.tolist()
    return value


def expect_close(
    answer: Any,
    target: float,
    tolerance: float,
    *,
    why: Mapping[float, str] | None = None,
    praise: str = "",
    unit: str = "",
) -> Verdict:
    """Right if `answer` is a number within `tolerance` (absolute) of `target`.

    Args:
        answer: a number; numpy and torch scalars count as numbers, True and False do not.
        target: the right value.
        tolerance: the largest distance accepted, in the unit of `target`.
        why: what to say when the answer is within `tolerance` of one of these wrong values.
        praise: what to say to a right answer.
        unit: shown behind the numbers, for example "tokens per character".
    """
    value = plain(answer)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return wrong(f"a number is wanted, and this is {_kind(answer)}: {shorten(answer)}")
    number = float(value)
    if not math.isfinite(number):
        return wrong(f"{number} is not a finite number")
    if abs(number - target) <= tolerance:
        return right(praise or f"{_number(number)}{_unit(unit)}")
    for mistake, reason in (why or {}).items():
        if abs(number - mistake) <= tolerance:
            return wrong(f"{_number(number)}{_unit(unit)}: {reason}")
    if target and abs(number - 100 * target) <= 100 * tolerance:
        return wrong(f"{_number(number)} is 100 times too large: a share is wanted, not a percentage")
    if target and abs(number * target - 1) <= tolerance:
        return wrong(f"{_number(number)} is the reciprocal of the right value: which is divided by which?")
    if target and abs(number + target) <= tolerance:
        return wrong(f"{_number(number)} has the wrong sign")
    return wrong(f"{_number(number)}{_unit(unit)} is too {'large' if number > target else 'small'}")


def expect_choice(answer: Any, correct: str, why: Mapping[str, str], *, praise: str = "") -> Verdict:
    """Right if `answer` is the word `correct`; capitals and outer spaces do not matter.

    Args:
        why: for every wrong choice, the reason it is wrong. Its keys and `correct` are the choices.
    """
    choices = sorted({correct, *why})
    if not isinstance(answer, str):
        return wrong(f"one of {', '.join(map(repr, choices))} is wanted, and this is {_kind(answer)}")
    given = answer.strip().casefold()
    if given == correct.casefold():
        return right(praise)
    for choice, reason in why.items():
        if given == choice.casefold():
            return wrong(reason)
    return wrong(f"{answer!r} is none of {', '.join(map(repr, choices))}")


def expect_function(
    answer: Any,
    cases: Iterable[Case | tuple[Any, ...]],
    *,
    mistakes: Mapping[str, Callable[..., Any]] | None = None,
    tolerance: float = 1e-9,
    seconds: float = 5.0,
    praise: str = "",
) -> Verdict:
    """Call the reader's function on every case; the first that goes wrong is shown.

    Args:
        answer: the function.
        cases: `Case`s, or tuples `(argument, …, expected)`.
        mistakes: foreseen wrong ways to do it, as a reason and a function that does it that way. The
            reason is given when the answer returns what that function returns, on every case.
        tolerance: how far numbers may lie from the expected ones, relative for numbers above one.
        seconds: how long one call may take.
        praise: what to say when every case comes out right.
    """
    if not callable(answer):
        return wrong(f"a function is wanted, and this is {_kind(answer)}: {shorten(answer)}")
    tried = [case if isinstance(case, Case) else Case(tuple(case[:-1]), case[-1]) for case in cases]
    for case in tried:
        verdict = _try(answer, case, tried, mistakes or {}, tolerance, seconds)
        if verdict is not None:
            return verdict
    return right(praise or f"it gives the expected value in all {len(tried)} cases")


def _same_way(
    answer: Callable[..., Any],
    mistake: Callable[..., Any],
    cases: Sequence[Case],
    tolerance: float,
    seconds: float,
) -> bool:
    """Whether both give the same on every case: on one case alone different mistakes agree."""
    try:
        return all(
            same(
                call_with_limit(answer, copy.deepcopy(case.args), seconds),
                mistake(*copy.deepcopy(case.args)),
                tolerance,
            )
            for case in cases
        )
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return False


def _try(
    answer: Callable[..., Any],
    case: Case,
    cases: Sequence[Case],
    mistakes: Mapping[str, Callable[..., Any]],
    tolerance: float,
    seconds: float,
) -> Verdict | None:
    """None if the call is right. The function gets copies: it must not spoil later cases."""
    given = copy.deepcopy(case.args)
    call = f"{getattr(answer, '__name__', 'the function')}({', '.join(shorten(arg) for arg in case.args)})"
    try:
        got = call_with_limit(answer, given, seconds)
    except OutOfTime:
        return wrong(f"{call} was still running after {seconds:g} s: is there a loop that cannot end?")
    except NotImplementedError:
        return not_answered()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        text = f": {error}" if str(error) else ""
        return wrong(f"{call} raised {type(error).__name__}{text}{_because(case)}")
    if got is Ellipsis or got is NotImplemented:
        return not_answered()
    if same(got, case.expected, tolerance):
        if not same(given, case.args, 0.0):
            return wrong(f"{call} gives the right value but changes the argument it was given")
        return None
    for reason, mistake in mistakes.items():
        try:
            wrong_value = mistake(*copy.deepcopy(case.args))
        except Exception:
            continue  # a mistaken way that cannot do this case explains nothing about it
        if same(got, wrong_value, tolerance) and _same_way(answer, mistake, cases, tolerance, seconds):
            return wrong(f"{reason} ({call} gave {shorten(got)} instead of {shorten(case.expected)})")
    if got is None:
        return wrong(f"{call} returned None: is a `return` missing?{_because(case)[1:]}")
    return wrong(f"{call} gave {shorten(got)} instead of {shorten(case.expected)}{_because(case)}")


def same(got: Any, expected: Any, tolerance: float) -> bool:
    """Equality that forgives rounding, and list against tuple, but not text against number."""
    got, expected = plain(got), plain(expected)
    if isinstance(expected, bool) or isinstance(got, bool):
        return isinstance(got, bool) and isinstance(expected, bool) and got == expected
    if isinstance(expected, numbers.Real) and isinstance(got, numbers.Real):
        a, b = float(got), float(expected)
        if math.isnan(a) or math.isnan(b):
            return math.isnan(a) and math.isnan(b)
        return a == b or abs(a - b) <= tolerance * max(1.0, abs(b))
    if isinstance(expected, (list, tuple)) and isinstance(got, (list, tuple)):
        return _same_sequence(got, expected, tolerance)
    if isinstance(expected, dict) and isinstance(got, dict):
        return got.keys() == expected.keys() and all(same(got[k], expected[k], tolerance) for k in expected)
    try:
        return bool(got == expected)
    except Exception:
        return False


def _same_sequence(got: Sequence[Any], expected: Sequence[Any], tolerance: float) -> bool:
    return len(got) == len(expected) and all(
        same(a, b, tolerance) for a, b in zip(got, expected, strict=True)
    )


def _because(case: Case) -> str:
    return f". {case.why}" if case.why else ""


def _kind(value: Any) -> str:
    name = type(value).__name__
    if isinstance(value, str):
        return "text (str)"
    return f"a function ({name})" if callable(value) else f"of type {name}"


def _number(value: float) -> str:
    return f"{value:.6g}"


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""
