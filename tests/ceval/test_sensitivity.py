"""One model under several prompts, with answers set by hand and with the plain scorer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chinese_llama_lab.ceval.errors import CevalError, LetterError, PromptError
from chinese_llama_lab.ceval.prompts import STYLES
from chinese_llama_lab.ceval.reference import score as plain_score
from chinese_llama_lab.ceval.sensitivity import prompt_sensitivity

from .conftest import ASKED, SHOTS, make_model, make_tokenizer

GOLD = "ABCDABCD"


def rows_of(letters, gold=GOLD, shots=5):
    return [
        {
            "subject": "law" if n < 4 else "logic",
            "split": "val",
            "id": str(n),
            "answer": right,
            "predicted": None if letter == "-" else letter,
            "shots": shots,
        }
        for n, (letter, right) in enumerate(zip(letters, gold, strict=True))
    ]


RUNS = {
    ("one", 0): "ABCDAAAA",  # 5 of 8
    ("one", 5): "ABCDABCA",  # 7 of 8
    ("two", 0): "AAAAAAA-",  # 2 of 8
    ("two", 5): "ABCAAAAA",  # 4 of 8
}


def scored(prompt, shots):
    return rows_of(RUNS[prompt, shots], shots=min(shots, 3))


def test_by_hand():
    found = prompt_sensitivity(scored, prompts=("one", "two"), shots=(0, 5))
    assert [(s.prompt, s.shots) for s in found.scores] == [("one", 0), ("one", 5), ("two", 0), ("two", 5)]
    assert [s.by_question.value * 8 for s in found.scores] == [5, 7, 2, 4]
    assert found.scores[0].by_subject.value == (1 + 1 / 4) / 2
    assert [s.unextracted for s in found.scores] == [0, 0, 1, 0]
    assert [s.fewer_shots for s in found.scores] == [0, 8, 0, 8]
    assert (found.best.prompt, found.best.shots, found.worst.prompt, found.worst.shots) == (
        "one",
        5,
        "two",
        0,
    )
    assert found.spread == 5 / 8 and found.questions == 8
    assert found.always_right == 2 / 8  # questions 0 and 4
    assert found.never_right == 1 / 8  # question 7
    assert found.changed == 6 / 8  # all but 0 and 4
    # 5 against 0 among the questions on which they differ: p = 2/32, and six pairs could have been picked.
    assert found.extremes.only_first == 5 and found.extremes.p == 1 / 16 and found.p == 6 / 16


def test_a_single_prompt():
    found = prompt_sensitivity(scored, prompts=("one",), shots=(5,))
    assert found.extremes is None and found.p == 1.0 and found.spread == 0 and found.changed == 0


def test_prompts_that_are_impossible_are_kept_with_their_reason():
    def score(prompt, shots):
        if prompt == "two":
            raise PromptError("no chat template") if shots else LetterError("two tokens")
        return scored(prompt, shots)

    found = prompt_sensitivity(score, prompts=("one", "two"), shots=(0, 5))
    assert len(found.scores) == 2 and found.p == found.extremes.p
    assert found.impossible == (("two", 0, "two tokens"), ("two", 5, "no chat template"))
    with pytest.raises(CevalError, match=r"in none of 2 ways[\s\S]*two, 0 shots: two tokens"):
        prompt_sensitivity(score, prompts=("two",), shots=(0, 5))


def test_other_errors_go_through():
    def broken(prompt, shots):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        prompt_sensitivity(broken, prompts=("one",), shots=(0,))


def test_other_questions_are_refused():
    def score(prompt, shots):
        return scored(prompt, shots)[: 8 - shots]

    with pytest.raises(CevalError, match="5 only in the first run"):
        prompt_sensitivity(score, prompts=("one",), shots=(0, 5))


@pytest.mark.parametrize(
    ("prompts", "shots"), [((), (0,)), (("one",), ()), (("one", "one"), (0,)), (("one",), (0, 0))]
)
def test_nothing_or_the_same_twice(prompts, shots):
    with pytest.raises(CevalError, match="prompt"):
        prompt_sensitivity(scored, prompts=prompts, shots=shots)


def test_a_model_under_every_prompt():
    tokenizer = make_tokenizer(("Ġ A", "Ġ B", "Ġ C", "Ġ D"))
    tokenizer.chat_template = None
    model = make_model(len(tokenizer))
    asked = [replace(ASKED, id=str(n), text=f"{n}加一等于几？") for n in range(4)]

    def score(prompt, shots):
        for one in plain_score(model, tokenizer, asked, style=prompt, dev=SHOTS, shots=shots):
            q = one.question
            yield {
                "subject": q.subject,
                "split": q.split,
                "id": q.id,
                "answer": q.answer,
                "predicted": one.letter,
                "shots": one.shots,
            }

    found = prompt_sensitivity(score, shots=(0, 1))
    assert len(found.scores) == 2 * (len(STYLES) - 1) and found.questions == 4
    assert {prompt for prompt, _, _ in found.impossible} == {"chinese-llama-alpaca-chat"}
    assert "no chat template" in found.impossible[0][2]
