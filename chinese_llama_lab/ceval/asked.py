"""Every question with the ids that the model will read for it, worked out before anything is scored."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.ceval.errors import CevalError, LetterError
from chinese_llama_lab.ceval.fitting import fit_prompt
from chinese_llama_lab.ceval.letters import LetterIds, encode, letter_ids
from chinese_llama_lab.ceval.prompts import Prompt, choose_shots
from chinese_llama_lab.ceval.questions import Question, QuestionSet, refuse_repeated_ids

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Asked:
    """One question, ready.

    Attributes:
        place: among all that are asked, from 0.
        number: among those of its subject and split, from 0.
        letters: which ids stand for the letters, one entry a form; empty by generation.
        contexts: what the model reads: one list of ids, or two where the forms part earlier in the text.
    """

    place: int
    number: int
    question: Question
    prompt: Prompt
    letters: tuple[LetterIds, ...]
    contexts: tuple[tuple[int, ...], ...]

    @property
    def key(self) -> Key:
        """What tells questions apart: subject, split and id."""
        return self.question.subject, self.question.split, self.question.id

    @property
    def longest(self) -> int:
        """Tokens of the longer context."""
        return max(map(len, self.contexts))

    @property
    def prompt_sha256(self) -> str:
        """Of the prompt's text, to recognise what was asked."""
        return hashlib.sha256(self.prompt.text.encode()).hexdigest()


def separate(
    questions: QuestionSet | Iterable[Question], dev: Iterable[Question] | None
) -> tuple[list[Question], list[Question]]:
    """(what is asked, where shots are taken from); dev questions are not asked unless `dev` is given.

    Raises: CevalError: nothing is left to ask. QuestionError: one question twice.
    """
    given = list(questions.questions if isinstance(questions, QuestionSet) else questions)
    asked = given if dev is not None else [question for question in given if question.split != "dev"]
    shown = list(dev) if dev is not None else [question for question in given if question.split == "dev"]
    if not asked:
        raise CevalError(
            f"of {len(given)} questions none is to be asked: dev questions are demonstrations",
            where="questions",
            remedy="give questions of val or test",
        )
    refuse_repeated_ids(asked)
    return asked, shown


def prepare(
    tokenizer: Any,
    questions: Sequence[Question],
    dev: Sequence[Question],
    *,
    style: str,
    shots: int,
    forms: Sequence[str],
    cot: bool,
    names: str,
    limit: int | None,
) -> list[Asked]:
    """Prompts, fitted into the context, and ids. Without `forms` no letters: by generation.

    Raises: PromptError, SubjectError, LetterError: see `fit_prompt`, `choose_shots`, `letter_ids`. What
        cannot be asked is said now, not after hours.
    """
    found: list[Asked] = []
    counts: Counter[tuple[str, str]] = Counter()
    for place, question in enumerate(questions):
        shown = choose_shots(dev, question, shots)
        prompt = fit_prompt(tokenizer, style, question, shown, max_tokens=limit, cot=cot, names=names)
        letters = tuple(_letters(tokenizer, prompt, form, question) for form in forms)
        contexts = tuple(dict.fromkeys(ids.context for ids in letters))
        if not forms:
            contexts = (tuple(encode(tokenizer, prompt.text, writes_bos=prompt.writes_bos)),)
        key = (question.subject, question.split)
        found.append(Asked(place, counts[key], question, prompt, letters, contexts))
        counts[key] += 1
    return found


def _letters(tokenizer: Any, prompt: Prompt, form: str, question: Question) -> LetterIds:
    """`letter_ids`, whose error names the question as well."""
    try:
        return letter_ids(tokenizer, prompt, form)
    except LetterError as error:
        place = question.where or f"{question.subject}, id {question.id}"
        raise LetterError(error.what, where=f"{place}; {error.where}", remedy=error.remedy) from None
