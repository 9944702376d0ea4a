"""Plain scoring equals logits computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chinese_llama_lab.ceval.errors import CevalError, LetterError, PromptError, SubjectError
from chinese_llama_lab.ceval.prompts import STYLES, build_prompt
from chinese_llama_lab.ceval.reference import score

from .conftest import ASKED, SECOND, SHOTS, make_model, make_tokenizer

QUESTIONS = [ASKED, replace(ASKED, id="8", text="另一题：", options=("甲", "乙", "丙", "丁"), answer=None)]


def by_hand(model, tokenizer, text, letters):
    """Logits behind the text, for letters that are one token each."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        last = model(ids).logits[0][-1]
    return [last[tokenizer.convert_tokens_to_ids(letter)].item() for letter in letters]


@pytest.mark.parametrize("shots", [0, 2])
def test_letters_equal_logits_by_hand(model, tokenizer, shots):
    found = list(score(model, tokenizer, QUESTIONS, dev=SHOTS, shots=shots))
    assert len(found) == 2
    for question, scored in zip(QUESTIONS, found, strict=True):
        text = build_prompt("ceval-official", question, SHOTS[:shots]).text
        expected = by_hand(model, tokenizer, text, "ABCD")
        assert scored.logits == pytest.approx(expected, abs=1e-5)
        assert scored.letter == "ABCD"[expected.index(max(expected))] and not scored.tied
        assert (scored.shots, scored.dropped) == (shots, 0)
        assert scored.letter_ids[0].tokens == ("A", "B", "C", "D")
    assert found[0].correct is (found[0].letter == "B") and found[1].correct is None
    assert found[0].logits != found[1].logits


def test_spaced_and_both(model, tokenizer):
    text = build_prompt("ceval-official", ASKED).text
    bare = by_hand(model, tokenizer, text, "ABCD")
    spaced = by_hand(model, tokenizer, text, ["ĠA", "ĠB", "ĠC", "ĠD"])
    (one,) = score(model, tokenizer, [ASKED], form="spaced")
    (two,) = score(model, tokenizer, [ASKED], form="both")
    assert one.logits == pytest.approx(spaced, abs=1e-5)
    assert two.logits == pytest.approx([a + b for a, b in zip(bare, spaced, strict=True)], abs=1e-5)
    assert [ids.form for ids in two.letter_ids] == ["bare", "spaced"]


def test_the_style_gives_the_form(model, tokenizer):
    (scored,) = score(model, tokenizer, [ASKED], style="lm-eval")
    assert scored.letter_ids[0].tokens == ("ĠA", "ĠB", "ĠC", "ĠD")


@pytest.mark.parametrize(
    ("style", "forms"),
    [("ceval-official", ["spaced"]), ("chinese-llama-alpaca", ["bare", "spaced"]), ("lm-eval", ["spaced"])],
)
def test_the_published_form(model, tokenizer, style, forms):
    (scored,) = score(model, tokenizer, [ASKED], style=style, form="published")
    (named,) = score(model, tokenizer, [ASKED], style=style, form="both" if len(forms) > 1 else forms[0])
    assert [ids.form for ids in scored.letter_ids] == forms and scored == named


@pytest.mark.parametrize("style", STYLES)
def test_every_style_can_be_scored_and_twice_the_same(model, tokenizer, style):
    first = list(score(model, tokenizer, QUESTIONS, style=style, dev=SHOTS, shots=1))
    again = list(score(model, tokenizer, QUESTIONS, style=style, dev=SHOTS, shots=1))
    assert first == again and all(scored.letter in "ABCD" for scored in first)


def test_the_letter_changes_nothing_but_the_verdict(model, tokenizer):
    (one,) = score(model, tokenizer, [ASKED])
    (other,) = score(model, tokenizer, [replace(ASKED, answer=one.letter)])
    assert other.correct is True and other.logits == one.logits


def test_a_tie_is_said(tokenizer):
    flat = make_model(len(tokenizer))
    torch.nn.init.zeros_(flat.lm_head.weight)
    (scored,) = score(flat, tokenizer, [ASKED])
    assert scored.tied and scored.letter == "A"


def tokens(tokenizer, shots):
    return len(tokenizer(build_prompt("ceval-official", ASKED, shots).text)["input_ids"])


def test_shots_are_dropped_to_the_models_context(tokenizer):
    small = make_model(len(tokenizer), positions=tokens(tokenizer, SHOTS) - 1)
    (scored,) = score(small, tokenizer, [ASKED], dev=SHOTS, shots=2)
    assert (scored.shots, scored.dropped) == (1, 1)


def test_what_was_scored_before_an_error_stays(tokenizer):
    small = make_model(len(tokenizer), positions=tokens(tokenizer, []))
    found = []
    with pytest.raises(PromptError, match=r"without any shots, and \d+ fit[\s\S]*leave this question out"):
        for scored in score(small, tokenizer, [ASKED, replace(ASKED, text="长" * 400)]):
            found.append(scored)
    assert len(found) == 1 and found[0].question == ASKED


def test_logits_that_are_not_finite(tokenizer):
    broken = make_model(len(tokenizer))
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(CevalError, match=r"not finite[\s\S]*operating_system_val.csv, row 8"):
        list(score(broken, tokenizer, [ASKED]))


def test_generation_is_greedy_and_is_read(model, tokenizer):
    (scored,) = score(model, tokenizer, [ASKED], method="generation", max_new_tokens=8)
    ids = tokenizer(build_prompt("ceval-official", ASKED).text)["input_ids"]
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    written = ids[len(tokenizer(build_prompt("ceval-official", ASKED).text)["input_ids"]) :]
    assert scored.reply == tokenizer.decode(written, skip_special_tokens=True)
    assert scored.rule and scored.logits == ()
    assert scored.letter is None or scored.letter in "ABCD"


class Parrot:
    """A model that always writes the same: what the scorer makes of it does not depend on luck."""

    def __init__(self, model, ids):
        self.config, self.device, self.ids = model.config, model.device, ids

    def eval(self):
        return self

    def generate(self, input_ids, **_):
        return torch.cat([input_ids, torch.tensor([self.ids])], dim=1)


@pytest.mark.parametrize(
    ("reply", "letter", "correct"), [("所以答案是B。", "B", True), ("不知道。", None, False)]
)
def test_what_cannot_be_extracted_counts_as_such(model, tokenizer, reply, letter, correct):
    parrot = Parrot(model, tokenizer(reply)["input_ids"])
    (scored,) = score(parrot, tokenizer, [ASKED], dev=SHOTS, shots=1, method="generation", cot=True)
    assert (scored.letter, scored.correct, scored.reply) == (letter, correct, reply)
    assert scored.rule == ("concluded" if letter else "nothing found")


def test_bad_input(model, tokenizer):
    for options, message in (
        ({"method": "guess"}, "method is 'guess'"),
        ({"form": "wide"}, "form is 'wide'"),
        ({"cot": True}, "has to be written before"),
        ({"style": "mmlu"}, "no prompt style"),
    ):
        with pytest.raises(CevalError, match=message):
            score(model, tokenizer, [ASKED], **options)  # before the first question is read
    with pytest.raises(SubjectError, match="has 0 dev questions, and 5 shots"):
        list(score(model, tokenizer, [ASKED], shots=5))
    with pytest.raises(LetterError, match="takes 2 tokens"):
        list(score(model, make_tokenizer(), [ASKED], form="spaced"))
    assert SECOND.answer == "C"
