"""Faults that a set of written questions can have: what a model could score by without knowing anything.

A set whose right answer is often the longest option measures the writer's habits. So is one whose letters
are unbalanced: on C-Eval's validation set "always D" is right for 26.3 % of the questions.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chinese_llama_lab.ceval.questions import LETTERS, Question

SIMILAR = 0.75
LONGEST = 0.32
SIGMAS = 3.0


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        kind: `duplicate`, `similar`, `options`, `letters`, `length` or `explanation`.
        what: the fault, in a sentence.
        where: file and row, or the part of the set that was counted.
    """

    kind: str
    what: str
    where: str


def check_questions(
    questions: Sequence[Question],
    *,
    similar: float = SIMILAR,
    longest: float = LONGEST,
    sigmas: float = SIGMAS,
) -> list[Finding]:
    """All faults of a set, those of single questions first.

    Args:
        questions: the set.
        similar: two questions are alike from this share of common character pairs on (Jaccard).
        longest: always taking the longest option, or the shortest, may be right in at most this share of the
            questions. Sets of under 200 questions get two standard errors of room.
        sigmas: a letter may be away from a quarter by so many standard errors.
    """
    return [
        *_repeated(questions, similar),
        *_options(questions),
        *_explanations(questions),
        *_letters(questions, sigmas),
        *_lengths(questions, longest),
    ]


def letter_counts(questions: Iterable[Question]) -> dict[str, int]:
    """How often each letter is right."""
    counts = Counter(question.answer for question in questions if question.answer)
    return {letter: counts[letter] for letter in LETTERS}


def length_guesses(questions: Sequence[Question]) -> tuple[float, float]:
    """What one would score by always taking the longest option, and by always taking the shortest.

    Lengths in characters; a tie counts as a draw among those that share it, so knowing nothing gives 0.25.
    (0, 0) without any answers.
    """
    answered = [question for question in questions if question.answer]
    scores = []
    for pick in (max, min):
        right = 0.0
        for question in answered:
            lengths = [len(option) for option in question.options]
            if len(question.option[str(question.answer)]) == pick(lengths):
                right += 1 / lengths.count(pick(lengths))
        scores.append(right / max(1, len(answered)))
    return scores[0], scores[1]


def _plain(text: str) -> str:
    """A text without spaces, punctuation and width: what two copies still share."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text)).lower()


def _repeated(questions: Sequence[Question], similar: float) -> list[Finding]:
    findings = []
    seen: dict[tuple[str, ...], Question] = {}
    kept: list[tuple[Question, frozenset[str]]] = []
    for question in questions:
        key = (_plain(question.text), *sorted(_plain(option) or option for option in question.options))
        if key in seen:
            what = f"the same question as {_place(seen[key])}"
            findings.append(Finding("duplicate", what, _place(question)))
            continue
        seen[key] = question
        whole = "".join(key)
        kept.append((question, frozenset(map("".join, itertools.pairwise(whole)))))
    # Only pairs that share a rare character pair can be alike: far fewer than all pairs.
    owners: dict[str, list[int]] = defaultdict(list)
    for number, (_, pairs) in enumerate(kept):
        for pair in pairs:
            owners[pair].append(number)
    for number, (question, pairs) in enumerate(kept):
        rare = sorted(pairs, key=lambda pair: (len(owners[pair]), pair))
        # If the overlap is at least `similar`, one of these first pairs is in both.
        needed = len(pairs) - math.ceil(similar * len(pairs)) + 1
        others = {other for pair in rare[:needed] for other in owners[pair] if other < number}
        for other in sorted(others):
            theirs = kept[other][1]
            share = len(pairs & theirs) / max(1, len(pairs | theirs))
            if share >= similar:
                what = f"{share:.0%} like {_place(kept[other][0])}"
                findings.append(Finding("similar", what, _place(question)))
    return findings


def _options(questions: Sequence[Question]) -> list[Finding]:
    findings = []
    for question in questions:
        if len({option.strip() for option in question.options}) < len(LETTERS):
            findings.append(Finding("options", "two options are the same", _place(question)))
    return findings


def _explanations(questions: Sequence[Question]) -> list[Finding]:
    findings = []
    for question in questions:
        if question.split == "dev" and not question.explanation.strip():
            findings.append(Finding("explanation", "a dev question has no explanation", _place(question)))
        elif question.split == "dev" and not question.explanation.startswith("1."):
            what = "the explanation does not begin with `1.`, as chain-of-thought prompts do"
            findings.append(Finding("explanation", what, _place(question)))
    return findings


def _letters(questions: Sequence[Question], sigmas: float) -> list[Finding]:
    findings = []
    for split, part in _by_split(questions).items():
        counts = letter_counts(part)
        total = sum(counts.values())
        room = sigmas * math.sqrt(total * 0.25 * 0.75)
        for letter, count in counts.items():
            if abs(count - total / 4) > room:
                what = f"{letter} is right {count} times in {total} ({count / total:.0%})"
                findings.append(Finding("letters", what, split))
    return findings


def _lengths(questions: Sequence[Question], bound: float) -> list[Finding]:
    findings = []
    for split, part in _by_split(questions).items():
        total = sum(question.answer is not None for question in part)
        allowed = max(bound, 0.25 + 2 * math.sqrt(0.25 * 0.75 / total)) if total else 1.0
        for name, share in zip(("longest", "shortest"), length_guesses(part), strict=True):
            if share > allowed:
                what = f"always taking the {name} option is right in {share:.0%} of {total} questions"
                findings.append(Finding("length", what, split))
    return findings


def _by_split(questions: Iterable[Question]) -> dict[str, list[Question]]:
    parts: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        parts[question.split].append(question)
    return parts


def _place(question: Question) -> str:
    return question.where or f"{question.subject}, {question.split}, id {question.id}"
