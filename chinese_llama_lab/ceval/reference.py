"""Scoring one question at a time, plainly: what a faster scorer is tested against.

By letter logits nothing is drawn at random: the prompt is read once, and the letter with the highest logit is
the answer. By generation the model writes on, greedily, and the letter is looked for in what it wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.extract import extract_answer
from chinese_llama_lab.ceval.fitting import fit_prompt
from chinese_llama_lab.ceval.generation import GREEDY
from chinese_llama_lab.ceval.letters import LetterIds, encode, letter_ids
from chinese_llama_lab.ceval.prompts import Prompt, choose_shots, find_style
from chinese_llama_lab.ceval.questions import LETTERS, Question

METHODS = ("logits", "generation")
LETTER_FORMS = ("bare", "spaced", "both", "published")


@dataclass(frozen=True)
class Scored:
    """One question with what the model answered.

    Attributes:
        question: what was asked.
        letter: the model's answer; None where nothing could be extracted from what it wrote.
        shots, dropped: demonstrations in the prompt, and those that did not fit.
        logits: the four letters' logits (added up in form `both`); empty by generation.
        tied: two letters share the highest logit; the first is taken.
        letter_ids: which ids stood for the letters, one entry a form; empty by generation.
        reply: what the model wrote; empty by letter logits.
        rule: the rule that found the letter in it, or why there is none.
    """

    question: Question
    letter: str | None
    shots: int
    dropped: int = 0
    logits: tuple[float, ...] = ()
    tied: bool = False
    letter_ids: tuple[LetterIds, ...] = ()
    reply: str = ""
    rule: str = ""

    @property
    def correct(self) -> bool | None:
        """Whether the answer is right; None where the right one is not published."""
        return None if self.question.answer is None else self.letter == self.question.answer


def score(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    *,
    style: str = "ceval-official",
    dev: Sequence[Question] = (),
    shots: int = 0,
    method: str = "logits",
    form: str | None = None,
    cot: bool = False,
    names: str = "chinese",
    max_tokens: int | None = None,
    max_new_tokens: int = 256,
) -> Iterator[Scored]:
    """Each question's score as soon as it is there: what came before an error stays.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        questions: what is asked.
        style, cot, names: see `prompts`.
        dev: where shots are taken from, the first ones of the question's subject.
        shots: how many demonstrations.
        method: `logits` (of the letters) or `generation`.
        form: `bare`, `spaced`, `both` (the two logits of a letter added, as Chinese-LLaMA-Alpaca did), or
            `published`: the one of these that the published code of the style looked at. None takes the form
            that the style's own shots have.
        max_tokens: longest prompt; None takes the model's context.
        max_new_tokens: by generation, at most so many tokens.

    Raises:
        CevalError: an unknown method or form, chain of thought by logits, logits that are not finite.
        PromptError, SubjectError, LetterError: see `fit_prompt`, `choose_shots`, `letter_ids`.
    """
    check_method(method, form, cot)
    wanted = find_style(style).resolve(form)
    return _scores(
        model, tokenizer, questions, style, dev, shots, method, wanted, cot, names, max_tokens, max_new_tokens
    )


def check_method(method: str, form: str | None, cot: bool) -> None:
    """Refuse a method that is none of `METHODS`, an unknown form, or a chain of thought not written.

    Raises: CevalError.
    """
    for value, allowed, name in ((method, METHODS, "method"), (form, (None, *LETTER_FORMS), "form")):
        if value not in allowed:
            shown = ", ".join(str(one) for one in allowed if one)
            raise CevalError(f"{name} is {value!r}", where=name, remedy=f"use one of {shown}")
    if cot and method != "generation":
        raise CevalError(
            "a chain of thought has to be written before its letter can be read",
            where="cot",
            remedy="use method='generation', or cot=False",
        )


def _scores(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    style: str,
    dev: Sequence[Question],
    shots: int,
    method: str,
    form: str,
    cot: bool,
    names: str,
    max_tokens: int | None,
    max_new_tokens: int,
) -> Iterator[Scored]:
    limit = max_tokens
    if limit is None:
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None and method == "generation":
            limit -= max_new_tokens
    for question in questions:
        shown = choose_shots(dev, question, shots)
        prompt = fit_prompt(tokenizer, style, question, shown, max_tokens=limit, cot=cot, names=names)
        if method == "logits":
            scored = score_letters(model, tokenizer, question, prompt, form)
        else:
            reply = write_answer(model, tokenizer, prompt, max_new_tokens)
            found = extract_answer(reply, question.options)
            scored = Scored(question, found.letter, prompt.shots, reply=reply, rule=found.rule)
        yield replace(scored, dropped=prompt.dropped)


def score_letters(model: Any, tokenizer: Any, question: Question, prompt: Prompt, form: str) -> Scored:
    """One question by the logits of its letters.

    Raises: LetterError: see `letter_ids`. CevalError: logits that are not finite.
    """
    forms = ("bare", "spaced") if form == "both" else (form,)
    used = tuple(letter_ids(tokenizer, prompt, one) for one in forms)
    totals = [0.0] * len(LETTERS)
    for ids in used:
        totals = [a + b for a, b in zip(totals, letter_logits(model, ids), strict=True)]
    best = max(totals)
    if not all(abs(value) < float("inf") for value in totals):
        raise CevalError(
            f"the model's logits are not finite: {totals}",
            where=question.where or f"{question.subject}, id {question.id}",
            remedy="load the model in float32 or bfloat16; check that its weights are whole",
        )
    letter = LETTERS[totals.index(best)]
    return Scored(question, letter, prompt.shots, 0, tuple(totals), totals.count(best) > 1, letter_ids=used)


def letter_logits(model: Any, ids: LetterIds) -> list[float]:
    """Logits of A, B, C and D behind the context, in float32."""
    import torch

    context = torch.tensor([ids.context], device=model.device)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=context).logits[0, -1].float()
    picked: list[float] = logits[list(ids.ids)].tolist()
    return picked


def write_answer(model: Any, tokenizer: Any, prompt: Prompt, max_new_tokens: int) -> str:
    """What the model writes behind a prompt, the likeliest token each time, up to EOS."""
    import torch

    ids = encode(tokenizer, prompt.text, writes_bos=prompt.writes_bos)
    context = torch.tensor([ids], device=model.device)
    model.eval()
    with torch.no_grad():
        output = model.generate(
            input_ids=context,
            attention_mask=torch.ones_like(context),
            max_new_tokens=max_new_tokens,
            **GREEDY,
        )
    reply: str = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
    return reply
