"""Has a model seen these questions? Two probes, and what they cannot tell.

**Order.** The four options could stand in any order. To a model that never read the question, the published
order is one of them; one that read it finds it cheaper to predict. With four cyclic orders the published one
is the cheapest by luck in a quarter of the questions, and the number of hits is binomial. *Assumed*: that
writers of questions have no habits of order which a model can learn elsewhere. Some they have, so questions
with their options in order of size, or of length, are left out and counted; a habit that is left shows as a
small excess with every model. So compare with a model that cannot have seen the questions.

**Completion.** Given the question and the first half of its options, does the model write the second half,
character for character? A hit of many characters is hard to explain otherwise, unless the text follows from
what is before it. So `surprise` says what the half costs a model that serves as a reference.

Neither can clear a model: a leak in other words, in another layout or read long ago leaves no trace here. And
neither says that a score is wrong; that takes the same score on questions that nobody could have seen.

Sources: options in other orders: Ni et al., arXiv 2409.01790; exact tests by reordering: Oren et al., arXiv
2310.17623; completion: Carlini et al., arXiv 2202.07646.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.ceval.continuation import (
    bits_of,
    border_of,
    check_layout,
    evaluating,
    fits,
    halves,
    lay_options,
    lay_question,
    write_on,
)
from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.intervals import binomial_tail
from chinese_llama_lab.ceval.letters import encode
from chinese_llama_lab.ceval.position import ORDERS, LeftOut, Order, permute, why_not
from chinese_llama_lab.ceval.questions import LETTERS, Question

MIN_CHARACTERS = 8
_NUMBER = re.compile(r"[-+−]?\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class OrderProbe:
    """Whether the published order of the options is cheaper than others.

    Attributes:
        questions: how many were probed.
        left_out: those that could not be, and why.
        hits: questions whose published order costs less than every other one.
        expected: hits of a model to which all orders are alike.
        p: probability of so many hits or more for such a model; exact, one-sided.
        published, others: mean cost of the options in bits per character, in the published order, and over
            the other orders.
        by_question: for each probed question, bits in the published order less the mean of the others.
    """

    questions: int
    left_out: tuple[LeftOut, ...]
    hits: int
    expected: float
    p: float
    published: float
    others: float
    by_question: tuple[float, ...]

    @property
    def gap(self) -> float:
        """Bits per character that the published order is cheaper."""
        return self.others - self.published


@dataclass(frozen=True)
class Completion:
    """One question's second half.

    Attributes:
        question: which.
        expected, written: the second half, and what the model wrote in its place.
        matched: characters from the start that agree.
        surprise: bits per character of the half, to the model itself or to the reference.
    """

    question: Question
    expected: str
    written: str
    matched: int
    surprise: float

    @property
    def exact(self) -> bool:
        """Whether the whole half was written."""
        return self.matched == len(self.expected)


@dataclass(frozen=True)
class CompletionProbe:
    """Whether the second half of questions is known by heart.

    Attributes:
        completions: one a question that was probed.
        left_out: those that could not be, and why.
    """

    completions: tuple[Completion, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def exact(self) -> int:
        """How many halves were written character for character."""
        return sum(completion.exact for completion in self.completions)

    @property
    def matched(self) -> float:
        """Mean share of the half that agrees from its start, 0 to 1."""
        return math.fsum(c.matched / len(c.expected) for c in self.completions) / len(self.completions)


def probe_order(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    *,
    orders: str = "cyclic",
    layout: str = "lines",
) -> OrderProbe:
    """Cost of the options, given the question, in the published order and in others.

    Args:
        model: a transformers causal language model; put into eval mode and back.
        tokenizer: its tokenizer.
        questions: any; right answers are not used.
        orders: `cyclic` (3 others) or `all` (23 others: six times the work, and a hit says more).
        layout: how the text may have been seen: `lines` (`A. …` below the question) or `csv` (a row).

    Raises: CevalError: unknown orders or layout, no question that can be probed, costs that are not finite.
    """
    if orders not in ORDERS:
        raise CevalError(f"orders is {orders!r}", where="orders", remedy=f"use {' or '.join(ORDERS)}")
    check_layout(layout)
    chosen = ORDERS[orders]
    left_out, hits, characters = [], 0, 0
    first: list[float] = []
    rest: list[float] = []
    with evaluating(model):
        for question in questions:
            reason = why_not(question) or _habit(question)
            costs = [] if reason else _costs(model, tokenizer, question, chosen, layout)
            if not costs:
                left_out.append(LeftOut(question, reason or "it does not fit into the model's context"))
                continue
            published, *others = costs
            hits += published < min(others)
            first.append(published)
            rest.append(math.fsum(others) / len(others))
            characters += len(lay_options(question, layout))
    if not first:
        why = f": {left_out[0].reason}" if left_out else ""
        raise CevalError(f"no question can be probed{why}", where="questions", remedy="give others")
    return OrderProbe(
        questions=len(first),
        left_out=tuple(left_out),
        hits=hits,
        expected=len(first) / len(chosen),
        p=binomial_tail(hits, len(first), len(chosen)),
        published=math.fsum(first) / characters,
        others=math.fsum(rest) / characters,
        by_question=tuple(one - mean for one, mean in zip(first, rest, strict=True)),
    )


def probe_completion(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    *,
    layout: str = "lines",
    min_characters: int = MIN_CHARACTERS,
    reference: tuple[Any, Any] | None = None,
) -> CompletionProbe:
    """Let a model write the second half of each question's options, greedily.

    Args:
        model, tokenizer, questions, layout: as in `probe_order`.
        min_characters: a shorter half is left out: it can be hit by luck.
        reference: another model and its tokenizer, which cannot have seen the questions; `surprise` is then
            its cost. A half that is cheap to the reference too can be written without having been seen.

    Raises: CevalError: unknown layout, no question that can be probed, costs that are not finite.
    """
    check_layout(layout)
    judge, its_tokenizer = reference or (model, tokenizer)
    found, left_out = [], []
    with evaluating(model), evaluating(judge):
        for question in questions:
            given, half = halves(question, layout)
            size = len(question.options[2]) + len(question.options[3])
            if size < min_characters:
                left_out.append(LeftOut(question, f"its last two options have {size} characters"))
                continue
            room = len(encode(tokenizer, given + half)) - len(encode(tokenizer, given)) + 4
            if not fits(model, tokenizer, given, room) or not fits(judge, its_tokenizer, given + half, 0):
                left_out.append(LeftOut(question, "it does not fit into the model's context"))
                continue
            written = write_on(model, tokenizer, given, half, room)
            matched = next(
                (n for n, (a, b) in enumerate(zip(written, half, strict=False)) if a != b),
                min(len(written), len(half)),
            )
            border = border_of(its_tokenizer, given, half)
            surprise = bits_of(judge, its_tokenizer, given + half, border) / len(half)
            found.append(Completion(question, half, written[: len(half)], matched, surprise))
    if not found:
        why = f": {left_out[0].reason}" if left_out else ""
        raise CevalError(f"no question can be probed{why}", where="questions", remedy="give others")
    return CompletionProbe(tuple(found), tuple(left_out))


def _habit(question: Question) -> str | None:
    """An order that a writer may choose without anybody having to remember it."""
    numbers = [_NUMBER.findall(option) for option in question.options]
    if all(len(found) == 1 for found in numbers):
        values = [
            float(found[0].replace("−", "-").replace(",", "")) for found in numbers if found[0].count(".") < 2
        ]
        if len(values) == len(LETTERS) and values in (sorted(values), sorted(values, reverse=True)):
            return "its options are in order of size"
    lengths = [len(option) for option in question.options]
    if len(set(lengths)) == len(lengths) and lengths in (sorted(lengths), sorted(lengths, reverse=True)):
        return "its options are in order of length"
    return None


def _costs(
    model: Any, tokenizer: Any, question: Question, orders: Sequence[Order], layout: str
) -> list[float]:
    """Bits of the options in each order, the published one first; empty where one does not fit."""
    published = tuple(range(len(LETTERS)))
    listed = [published, *(order for order in orders if order != published)]
    given = lay_question(question, layout)
    texts = [lay_options(permute(question, order), layout) for order in listed]
    if not all(fits(model, tokenizer, given + text, 0) for text in texts):
        return []
    # Where a tokenizer joins the border differently, all orders are charged from the same token on.
    start = min(border_of(tokenizer, given, text) for text in texts)
    return [bits_of(model, tokenizer, given + text, start) for text in texts]
