"""Exercises with a checker that says right or wrong, and why.

In a notebook an exercise is a markdown cell with the task and one code cell with a stub:

    tokens_per_character = ...
    check("1.1", tokens_per_character)

A checker is declared in `chinese_llama_lab/exercise_sets/chapter_01.py`:

    @exercise("1.1", hint="count the tokens, count the characters, divide")
    def _(answer):
        return expect_close(answer, 1.25, 0.005, why={0.8: "that is characters per token: turn it over"})

It returns a `Verdict`; a string, which means "wrong, because …"; or None, which means "right". The
helpers (`expect_close`, `expect_choice`, `expect_function`) are in `expectations.py`.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from types import FunctionType
from typing import Any

from chinese_llama_lab.errors import LabError
from chinese_llama_lab.expectations import (
    Case,
    expect_choice,
    expect_close,
    expect_function,
    shorten,
)
from chinese_llama_lab.verdict import Verdict, not_answered, right, wrong

__all__ = [
    "Case",
    "Exercise",
    "ExerciseError",
    "Registry",
    "Verdict",
    "check",
    "exercise",
    "expect_choice",
    "expect_close",
    "expect_function",
    "hint",
    "not_answered",
    "registry",
    "right",
    "wrong",
]

Checker = Callable[[Any], "Verdict | str | None"]


class ExerciseError(LabError):
    """An exercise is unknown or was declared twice."""


@dataclass(frozen=True)
class Exercise:
    """A key such as "1.1", a hint, the function that judges an answer, and what to say to a right one."""

    key: str
    hint: str
    checker: Checker
    praise: str = ""

    def judge(self, answer: Any) -> Verdict:
        """The verdict on `answer`; never raises because of what was answered."""
        if is_unanswered(answer):
            return not_answered(self.hint)
        try:
            outcome = self.checker(answer)
        except Exception as error:  # an answer of an unforeseen kind must not end in a trace
            return wrong(
                f"the checker cannot work with this answer, {shorten(answer)} "
                f"({type(answer).__name__}): {type(error).__name__}: {error}"
            )
        if outcome is None:
            return right(self.praise)
        if isinstance(outcome, str):
            return wrong(outcome)
        if outcome.status == "not answered" and not outcome.why:
            return not_answered(self.hint)
        return outcome


class HintText(str):
    """A string that shows itself without quotes as the last value of a cell."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclass
class Registry:
    """Exercises by key. `load` brings in the module of a chapter the first time it is asked for."""

    load: Callable[[str | None], None] = lambda chapter: None
    _exercises: dict[str, Exercise] = field(default_factory=dict)

    def exercise(self, key: str, *, hint: str, praise: str = "") -> Callable[[Checker], Checker]:
        """Declare the checker of exercise `key`.

        Raises:
            ExerciseError: if another checker already has the key.
        """

        def register(checker: Checker) -> Checker:
            old = self._exercises.get(key)
            if old is not None and _place(old.checker) != _place(checker):
                raise ExerciseError(
                    f"exercise {key!r} is declared twice",
                    where=f"{_place(old.checker)} and {_place(checker)}",
                    remedy="give one of them another number",
                )
            self._exercises[key] = Exercise(key, hint, checker, praise)
            return checker

        return register

    def keys(self, chapter: str | None = None) -> list[str]:
        """The keys there are, of one chapter ("1") or of all, in order."""
        self.load(chapter)
        chosen = [key for key in self._exercises if chapter is None or key.split(".")[0] == chapter]
        return sorted(chosen, key=_natural)

    def find(self, key: str) -> Exercise:
        """The exercise with this key.

        Raises:
            ExerciseError: if there is none; the message lists those there are.
        """
        if not isinstance(key, str):
            raise ExerciseError(
                f"an exercise is named by a string such as '1.1', not by {key!r}",
                where="check()",
                remedy=f"put it in quotes: check({str(key)!r}, …)",
            )
        if key not in self._exercises:
            self.load(key.split(".")[0])
        if key not in self._exercises:
            known = self.keys()
            near = get_close_matches(key, known, n=1)
            raise ExerciseError(
                f"there is no exercise {key!r}; there are {', '.join(known) or 'none'}",
                where="check()",
                remedy=f"did you mean {near[0]!r}?" if near else "use one of these keys",
            )
        return self._exercises[key]

    def check(self, key: str, answer: Any) -> Verdict:
        """Judge `answer` to exercise `key`."""
        return self.find(key).judge(answer)

    def hint(self, key: str) -> str:
        """A push in the right direction."""
        return HintText(self.find(key).hint)


def _place(checker: Checker) -> str:
    code = getattr(checker, "__code__", None)
    return f"{checker.__module__}, line {code.co_firstlineno}" if code else repr(checker)


def _natural(key: str) -> tuple[tuple[int, str], ...]:
    # "1.10" comes after "1.9".
    return tuple((int(part), "") if part.isdigit() else (10**9, part) for part in key.split("."))


def is_unanswered(answer: Any) -> bool:
    """True for `...`, None, NotImplemented, a container with `...` left in it, and an empty function."""
    if answer is None or answer is Ellipsis or answer is NotImplemented:
        return True
    if isinstance(answer, FunctionType):
        return _is_stub(answer)
    if isinstance(answer, dict):
        return any(value is Ellipsis for value in answer.values())
    if isinstance(answer, (list, tuple)):
        return any(value is Ellipsis for value in answer)
    return False


def _is_stub(function: FunctionType) -> bool:
    """Whether the body is only a docstring, `pass`, `...`, `return ...` or `raise NotImplementedError`."""
    quiet = {"RESUME", "NOP", "POP_TOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"}
    last: Any = None
    raises = False
    names: list[Any] = []
    for step in dis.get_instructions(function):
        if step.opname in ("LOAD_CONST", "RETURN_CONST"):
            last = step.argval
        elif step.opname == "LOAD_GLOBAL":
            names.append(step.argval)
        elif step.opname == "RAISE_VARARGS":
            raises = True
        elif step.opname not in quiet | {"PRECALL", "CALL", "CALL_FUNCTION", "PUSH_NULL", "CACHE"}:
            return False
    if raises or names:
        return raises and names == ["NotImplementedError"]
    return last is None or last is Ellipsis


def _load_chapter(chapter: str | None) -> None:
    from chinese_llama_lab import exercise_sets

    modules: Iterable[str] = exercise_sets.modules()
    if chapter is not None:
        wanted = f"chapter_{int(chapter):02d}" if chapter.isdigit() else ""
        modules = [name for name in modules if name == wanted]
    for name in modules:
        import_module(f"{exercise_sets.__name__}.{name}")


registry = Registry(load=_load_chapter)
exercise = registry.exercise
check = registry.check
hint = registry.hint
