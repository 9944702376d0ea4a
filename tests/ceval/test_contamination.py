"""A model that learnt questions by heart is recognised, on these questions alone; others are not."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from chinese_llama_lab.ceval.contamination import probe_completion, probe_order
from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.intervals import binomial_tail
from chinese_llama_lab.ceval.questions import Question

from .conftest import make_model, make_tokenizer


def written(count, seed):
    """Questions of random characters: nothing but having seen them helps."""
    chance = random.Random(seed)
    signs = [chr(0x4E00 + n) for n in range(40)]

    def words(length):
        return "".join(chance.choice(signs) for _ in range(length))

    return [
        Question(
            "law", "val", str(n), words(8), (words(5), words(4), words(5), words(4)), "A", where=f"row {n}"
        )
        for n in range(count)
    ]


SEEN, UNSEEN = written(12, 1), written(12, 2)


def as_text(question):
    return question.text + "".join(f"\n{letter}. {option}" for letter, option in question.option.items())


def learn(model, tokenizer, texts, steps=220):
    """Until the texts are known by heart."""
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def signs():
    """One token a character, so that a tiny model can learn quickly."""
    merges = []
    alphabet = {chr(0x4E00 + n).encode() for n in range(40)}
    inner = make_tokenizer().backend_tokenizer
    for sign in sorted(alphabet):
        one, two, three = inner.encode(sign.decode(), add_special_tokens=False).tokens
        merges += [m for m in (f"{one} {two}", f"{one}{two} {three}") if m not in merges]
    return make_tokenizer(tuple(merges))


@pytest.fixture(scope="module")
def learnt(signs):
    model = make_model(len(signs))
    for (
        weight
    ) in model.parameters():  # the conftest's weights are large, for clear logits; training wants small ones
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.05)
    return learn(model, signs, [as_text(question) for question in SEEN])


def test_memorised_questions_are_recognised_by_order(learnt, signs):
    found = probe_order(learnt, signs, SEEN)
    assert found.questions == 12 and found.left_out == ()
    assert found.hits == 12 and found.expected == 3 and found.p == pytest.approx(4.0**-12)
    assert found.gap > 0.5 and all(bits < 0 for bits in found.by_question)
    every = probe_order(learnt, signs, SEEN[:3], orders="all")
    assert every.hits == 3 and every.expected == 3 / 24 and every.p == pytest.approx(24.0**-3)


def test_the_same_model_has_not_seen_others(learnt, signs):
    found = probe_order(learnt, signs, UNSEEN)
    assert found.p > 0.01 and found.hits <= 7
    assert found.p == binomial_tail(found.hits, 12, 4)


def test_a_model_that_learnt_nothing(signs):
    assert probe_order(make_model(len(signs)), signs, SEEN).p > 0.01


def test_memorised_questions_are_completed(learnt, signs):
    found = probe_completion(learnt, signs, SEEN)
    assert len(found.completions) == 12 and found.exact >= 11 and found.matched > 0.9
    first = found.completions[0]
    assert (
        first.expected == f"{SEEN[0].options[2]}\nD. {SEEN[0].options[3]}" and first.written == first.expected
    )
    others = probe_completion(learnt, signs, UNSEEN)
    assert others.exact == 0 and others.matched < 0.2
    # To the model the half is cheap; to one that cannot have seen it, it is not.
    fresh = make_model(len(signs))
    judged = probe_completion(learnt, signs, SEEN[:2], reference=(fresh, signs))
    assert first.surprise < 1 < judged.completions[0].surprise


def test_another_layout_hides_what_was_seen(learnt, signs):
    """What the probe cannot find: the same questions, read in another form."""
    assert probe_completion(learnt, signs, SEEN, layout="csv").exact == 0


def test_bits_by_hand(signs):
    """The cost of the options is the sum of −log2 p over their tokens, from the first behind the question."""
    model, question = make_model(len(signs)), SEEN[0]
    ids = signs(as_text(question))["input_ids"]
    start = len(signs(question.text)["input_ids"])
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    costs = -torch.log_softmax(logits, -1)[range(start - 1, len(ids) - 1), ids[start:]] / math.log(2)
    found = probe_order(model, signs, [question])
    assert found.published == pytest.approx(float(costs.sum()) / (len(as_text(question)) - 8), rel=1e-5)


def test_another_kind_of_model(signs):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 256, "resid_pdrop": 0, "embd_pdrop": 0}
    config = GPT2Config(vocab_size=len(signs), attn_pdrop=0, initializer_range=0.05, **sizes)
    model = learn(GPT2LMHeadModel(config), signs, [as_text(question) for question in SEEN], 120)
    assert probe_order(model, signs, SEEN).hits >= 11 and probe_order(model, signs, UNSEEN).p > 0.01
    assert probe_completion(model, signs, SEEN).exact >= 11


def test_mode_and_answers_do_not_matter(learnt, signs):
    learnt.train()
    hidden = [replace(question, answer=None) for question in SEEN[:3]]
    assert probe_order(learnt, signs, hidden) == probe_order(learnt, signs, SEEN[:3])
    assert learnt.training
    learnt.eval()


def test_habits_of_writers_are_left_out(learnt, signs):
    changed = [
        replace(SEEN[0], options=("1", "2", "3", "10")),
        replace(SEEN[1], options=("−1 m", "−2 m", "−3 m", "−4 m")),
        replace(SEEN[2], options=("一", "一二", "一二三", "一二三四")),
        replace(SEEN[3], options=("一二", "二三", "三四", "以上都对")),
        replace(SEEN[4], options=("1", "10", "2", "3")),
    ]
    found = probe_order(learnt, signs, changed)
    assert found.questions == 1
    reasons = [out.reason for out in found.left_out]
    assert reasons[:3] == ["its options are in order of size"] * 2 + ["its options are in order of length"]
    assert "以上都对" in reasons[3]


def test_two_equal_options_never_count_as_a_hit(learnt, signs):
    same = replace(SEEN[0], options=(SEEN[0].options[0],) * 4)
    assert probe_order(learnt, signs, [same]).hits == 0


def test_short_halves_and_long_questions_are_counted(learnt, signs):
    short = replace(SEEN[0], options=("一二三四五六", "二", "三", "四"))
    long = replace(SEEN[1], text="一" * 3000)
    found = probe_completion(learnt, signs, [*SEEN[:1], short, long])
    assert len(found.completions) == 1
    assert [out.reason for out in found.left_out] == [
        "its last two options have 2 characters",
        "it does not fit into the model's context",
    ]
    with pytest.raises(CevalError, match="no question can be probed: it does not fit"):
        probe_order(learnt, signs, [long])


def test_a_tokenizer_that_joins_across_the_border():
    """`。\\n` is one token: the question alone ends otherwise than the question with its options."""
    tokenizer = make_tokenizer(("Ġ A", ". Ċ"))
    model = make_model(len(tokenizer))
    question = replace(SEEN[0], text="Which one is it.")
    text = as_text(question)
    ids, start = tokenizer(text)["input_ids"], len(tokenizer(question.text)["input_ids"]) - 1
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    costs = -torch.log_softmax(logits, -1)[range(start - 1, len(ids) - 1), ids[start:]] / math.log(2)
    found = probe_order(model, tokenizer, [question])
    assert found.published * (len(text) - len(question.text)) == pytest.approx(float(costs.sum()), rel=1e-5)
    assert len(probe_completion(model, tokenizer, [question]).completions) == 1


def test_logits_that_are_not_finite(signs):
    broken = make_model(len(signs))
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(CevalError, match="not finite"):
        probe_order(broken, signs, SEEN[:1])


@pytest.mark.parametrize("wrong", [{"orders": "random"}, {"layout": "prose"}])
def test_wrong_choices(learnt, signs, wrong):
    with pytest.raises(CevalError, match="what to do: use"):
        probe_order(learnt, signs, SEEN, **wrong)
    with pytest.raises(CevalError, match="layout is 'prose'"):
        probe_completion(learnt, signs, SEEN, layout="prose")


def test_nothing_to_probe(learnt, signs):
    for probe in (probe_order, probe_completion):
        with pytest.raises(CevalError, match="no question can be probed"):
            probe(learnt, signs, [])
