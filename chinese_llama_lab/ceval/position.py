"""Does a model choose a content or a letter? The same questions with their options moved around.

An option that moves takes its letter's meaning along: the right letter moves too, and a text that names
an option by its letter (`故选A`, `A项错误`) is rewritten. Where it cannot be told whether a letter in an
option or explanation names an option (`A 记录`), or an option speaks of the others' places (`以上都对`), the
question is left out and counted. A letter in the question itself names what the question says it does
(`A、B两地`), unless it is called an option there.

Sources: cyclic shifts as a test of consistency: Liu et al., MMBench, arXiv 2307.06281; spread of the recalls:
Zheng et al., arXiv 2309.03882.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chinese_llama_lab.ceval.answers import letter_histogram, match_answers
from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.questions import LETTERS, Question

Order = tuple[int, ...]
Rows = Iterable[Mapping[str, Any]]
CYCLIC: tuple[Order, ...] = tuple(tuple((n + shift) % 4 for n in range(4)) for shift in range(4))
ALL: tuple[Order, ...] = tuple(itertools.permutations(range(4)))
ORDERS = {"cyclic": CYCLIC, "all": ALL}

_ONE = r"(?<![A-Za-z0-9\\_^{])[A-D](?![A-Za-z0-9_^}+])"
_LIST = rf"{_ONE}(?:\s?(?:[、，,/和与或及]|and|or)\s?{_ONE})*"
# A letter, or a list of letters, that can only mean an option.
_NAMED = re.compile(
    rf"选项\s?{_LIST}|{_LIST}\s?(?:这?[一两二三四]?个?选项|[两二三四]?项(?![目式链圈羽数]))"
    rf"|(?:答案|[故应可只]选|选择|排除)(?:应?[是为]|[:：])?\s?{_LIST}|选\s?{_LIST}(?=[。．；;，,\s]|$)"
    rf"|{_LIST}\s?(?:均|都|皆)?(?:是|为)?(?:不?正确|不?对(?![应于称照])|错(?!觉)|有误|不符合|符合题意)"
    rf"|\b[Oo]ptions?\s{_LIST}"
)
_OPTION_IN_TEXT = re.compile(rf"选项\s?{_LIST}|{_LIST}\s?选项")
_MATHS = re.compile(r"\$\$.*?\$\$|\$.*?\$", re.S)
_UNIT = re.compile(r"[0-9]\s?[A-D](?![A-Za-z0-9])")
_PLACE = re.compile(
    r"^(?:以上|上述)|(?:以上|上述)(?:都|均|皆|全|各|选项|说法|答案|几|[两二三四])"
    r"|前面?[两二三][项者个]|后面?[两二三][项者个]|^(?:都|均|皆|全)不?(?:对|是|正确|错)"
    r"|\b(?:all|none|both|any) of the above\b",
    re.I,
)


@dataclass(frozen=True)
class LeftOut:
    """A question that cannot be asked with its options moved, and why."""

    question: Question
    reason: str


@dataclass(frozen=True)
class PositionBias:
    """What moving the options changed.

    For `follows_*` each question is taken under each two of its orders, where the option chosen in the one
    has another letter in the other: the second choice is that same content, that same letter, or neither. A
    model that draws lots follows the content in 1/4 of the pairs, the letter in 1/4, and neither in 1/2.

    Attributes:
        questions: how many were asked, each in every order.
        left_out: those that cannot be.
        orders: the orders; `(1, 2, 3, 0)` puts the old B first.
        accuracy: share of all answers that were right, 0 to 1. In cyclic or all orders each letter is right
            equally often, so always giving one letter scores 0.25.
        by_order: the same in each order.
        always_right: share of the questions that were right in every order.
        same_content, same_letter: share of the questions with one content, or one letter, in every order.
        follows_content, follows_letter, follows_neither: shares of `pairs`, which add up to 1.
        pairs: how many ordered pairs of answers were looked at; both must have been extracted. With none the
            three shares are 0.
        recalls: letter → share right where this letter was the right one.
        letters: how often each letter was chosen; `none` for what was not extracted.
    """

    questions: int
    left_out: tuple[LeftOut, ...]
    orders: tuple[Order, ...]
    accuracy: float
    by_order: tuple[float, ...]
    always_right: float
    same_content: float
    same_letter: float
    follows_content: float
    follows_letter: float
    follows_neither: float
    pairs: int
    recalls: Mapping[str, float]
    letters: Mapping[str, int]

    @property
    def recall_spread(self) -> float:
        """Standard deviation of the four recalls (over four, not three): 0 where no letter is favoured."""
        mean = math.fsum(self.recalls.values()) / len(self.recalls)
        return math.sqrt(math.fsum((r - mean) ** 2 for r in self.recalls.values()) / len(self.recalls))


def position_bias(
    questions: Sequence[Question],
    answer: Callable[[list[Question]], Rows],
    *,
    orders: str | Sequence[Order] = "cyclic",
) -> PositionBias:
    """Ask the same questions with their options in several orders.

    Args:
        questions: with published answers. Only these are moved; demonstrations stay as they are.
        answer: takes questions, returns the rows of their answers (such as the rows of `score`). It is called
            once for each order; ids stay, so each call is a run of its own.
        orders: `cyclic` (4), `all` (24), or orders of your own.

    Raises: CevalError: unknown or impossible orders, no question that can be moved, one without an answer, or
        rows that do not match the questions.
    """
    chosen = _checked(orders)
    left_out, kept = [], []
    for question in questions:
        reason = why_not(question)
        if reason is None and question.answer is not None:
            kept.append(question)
        elif question.answer is None:
            left_out.append(LeftOut(question, "its right answer is not published"))
        else:
            left_out.append(LeftOut(question, str(reason)))
    if not kept:
        why = f": {left_out[0].reason}" if left_out else ""
        raise CevalError(f"no question can be moved{why}", where="questions", remedy="give others")
    letters: list[list[str | None]] = []
    for order in chosen:
        asked = [permute(question, order) for question in kept]
        letters.append(match_answers(asked, answer(asked)))
    return _measure(kept, tuple(left_out), chosen, list(zip(*letters, strict=True)))


def permute(question: Question, order: Order) -> Question:
    """The question with its options in another order, the right letter and all named letters moved along.

    Args:
        question: any.
        order: place → the old place of the option that comes there; `(1, 2, 3, 0)` puts the old B first.

    Raises: CevalError: no order of four, or a question that cannot be moved (see `why_not`).
    """
    _checked([order, *CYCLIC[:2]])
    reason = why_not(question)
    if reason is not None:
        raise CevalError(
            f"the options cannot be moved: {reason}",
            where=question.where or f"{question.subject}, id {question.id}",
            remedy="leave this question out",
        )
    new = {LETTERS[old]: LETTERS[place] for place, old in enumerate(order)}

    def rename(match: re.Match[str]) -> str:
        return re.sub(_ONE, lambda letter: new[letter[0]], match[0])

    a, b, c, d = (_NAMED.sub(rename, question.options[old]) for old in order)
    return replace(
        question,
        text=_OPTION_IN_TEXT.sub(rename, question.text),
        options=(a, b, c, d),
        answer=None if question.answer is None else new[question.answer],
        explanation=_NAMED.sub(rename, question.explanation),
    )


def why_not(question: Question) -> str | None:
    """Why a question's options cannot be moved, or None where they can."""
    for letter, option in question.option.items():
        if _PLACE.search(option.strip()):
            return f"option {letter} speaks of the others' places: {option!r}"
        if (left := _unclear(option)) is not None:
            return f"option {letter} may name another by its letter: {left!r}"
    if question.explanation and (left := _unclear(question.explanation)) is not None:
        return f"the explanation may name an option: {left!r}"
    return None


def _unclear(text: str) -> str | None:
    """A lone letter that is neither plainly an option nor plainly none (in a formula, a unit)."""
    # A blank of the same length keeps neighbours apart: a letter must not come to stand alone by cutting.
    rest = text
    for pattern in (_MATHS, _NAMED, _UNIT):
        rest = pattern.sub(lambda match: "\0" * len(match[0]), rest)
    if match := re.search(_ONE, rest):
        return text[max(0, match.start() - 6) : match.end() + 6]
    return None


def _checked(orders: str | Sequence[Order]) -> tuple[Order, ...]:
    if isinstance(orders, str):
        if orders not in ORDERS:
            raise CevalError(f"orders is {orders!r}", where="orders", remedy=f"use {' or '.join(ORDERS)}")
        return ORDERS[orders]
    found = tuple(tuple(order) for order in orders)
    for order in found:
        if sorted(order) != [0, 1, 2, 3]:
            raise CevalError(
                f"{order} is no order of four options", where="orders", remedy="use each of 0 to 3 once"
            )
    if len(set(found)) < 2:
        raise CevalError("one order cannot be compared", where="orders", remedy="give two different ones")
    return found


def _measure(
    questions: Sequence[Question],
    left_out: tuple[LeftOut, ...],
    orders: tuple[Order, ...],
    letters: Sequence[tuple[str | None, ...]],
) -> PositionBias:
    """`letters`: one tuple a question, one letter an order."""
    golds, rights, contents = [], [], []
    for question, chosen in zip(questions, letters, strict=True):
        gold = LETTERS.index(str(question.answer))
        golds.append([LETTERS[order.index(gold)] for order in orders])
        contents.append(
            [o[LETTERS.index(c)] if c is not None else None for o, c in zip(orders, chosen, strict=True)]
        )
        rights.append([content == gold for content in contents[-1]])
    follows = {"content": 0, "letter": 0, "neither": 0}
    for chosen, content in zip(letters, contents, strict=True):
        for one, other in itertools.permutations(range(len(orders)), 2):
            if chosen[one] is None or chosen[other] is None:
                continue
            if orders[other].index(int(content[one] or 0)) == LETTERS.index(str(chosen[one])):
                continue  # the option did not move: content and letter cannot be told apart
            same = "content" if content[one] == content[other] else "letter"
            follows[same if same == "content" or chosen[one] == chosen[other] else "neither"] += 1
    pairs, count = sum(follows.values()), len(questions)
    recalls = {}
    for letter in LETTERS:
        cells = [
            r
            for g, right in zip(golds, rights, strict=True)
            for x, r in zip(g, right, strict=True)
            if x == letter
        ]
        recalls[letter] = sum(cells) / len(cells) if cells else 0.0
    return PositionBias(
        questions=count,
        left_out=left_out,
        orders=orders,
        accuracy=sum(map(sum, rights)) / (count * len(orders)),
        by_order=tuple(sum(column) / count for column in zip(*rights, strict=True)),
        always_right=sum(map(all, rights)) / count,
        same_content=sum(None not in c and len(set(c)) == 1 for c in contents) / count,
        same_letter=sum(None not in c and len(set(c)) == 1 for c in letters) / count,
        follows_content=follows["content"] / max(1, pairs),
        follows_letter=follows["letter"] / max(1, pairs),
        follows_neither=follows["neither"] / max(1, pairs),
        pairs=pairs,
        recalls=recalls,
        letters=letter_histogram(letter for chosen in letters for letter in chosen),
    )
