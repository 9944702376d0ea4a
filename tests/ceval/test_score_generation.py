"""By generation, many at a time: what one at a time writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chinese_llama_lab.ceval import reference
from chinese_llama_lab.ceval.score import score

from .conftest import ASKED, SHOTS, make_model, many

QUESTIONS = [*many(5), replace(ASKED, id="long", text="很长的题目" * 30), replace(ASKED, id="s", text="2")]


@pytest.fixture(scope="module")
def wordy(tokenizer):
    """A model that ends some replies with EOS before their time."""
    model = make_model(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 3.0
    return model


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("options", [{}, {"batch": 2}, {"shared": False}, {"prompt": "chinese-llama-alpaca"}])
def test_the_same_words(wordy, tokenizer, shots, options):
    style = options.get("prompt", "ceval-official")
    plain = list(
        reference.score(
            wordy,
            tokenizer,
            QUESTIONS,
            dev=SHOTS,
            shots=shots,
            style=style,
            method="generation",
            max_new_tokens=12,
        )
    )
    run = score(
        wordy,
        tokenizer,
        QUESTIONS,
        dev=SHOTS,
        shots=shots,
        method="generation",
        max_new_tokens=12,
        progress=False,
        **options,
    )
    for expected, row in zip(plain, run.rows, strict=True):
        assert (row["text"], row["rule"], row["predicted"]) == (
            expected.reply,
            expected.rule,
            expected.letter,
        )
    lengths = {len(tokenizer(row["text"])["input_ids"]) for row in run.rows}
    assert len(lengths) > 1  # some ended early
    assert run.settings["letters"] == [] and run.settings["max_new_tokens"] == 12


HOSTILE = {
    "do_sample": True,
    "num_beams": 3,
    "temperature": 1.9,
    "top_k": 3,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 12,
    "suppress_tokens": list(range(100, 200)),
    "sequence_bias": [[[65], 50.0]],
    "guidance_scale": 3.0,
    "use_cache": False,
    "forced_eos_token_id": 66,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_greedy_whatever_the_model_asks_for(wordy, tokenizer, name, monkeypatch):
    def words():
        options = {"dev": SHOTS, "shots": 1, "method": "generation", "max_new_tokens": 12}
        plain = [one.reply for one in reference.score(wordy, tokenizer, QUESTIONS, **options)]
        rows = score(wordy, tokenizer, QUESTIONS, progress=False, **options).rows
        return plain, [row["text"] for row in rows]

    before = words()
    assert before[0] == before[1]
    monkeypatch.setattr(wordy.generation_config, name, HOSTILE[name])
    assert words() == before


def test_chain_of_thought_and_what_cannot_be_extracted(wordy, tokenizer, monkeypatch):
    replies = iter(["所以答案是B。", "不知道。", "答案是A和B"])
    monkeypatch.setattr(
        "chinese_llama_lab.ceval.reading.write_answers",
        lambda model, tokenizer, contexts, prefix, new: [next(replies) for _ in contexts],
    )
    run = score(
        wordy,
        tokenizer,
        [replace(ASKED, id=str(n)) for n in range(3)],
        dev=SHOTS,
        shots=1,
        cot=True,
        method="generation",
        progress=False,
    )
    assert [row["predicted"] for row in run.rows] == ["B", None, None]
    assert [row["rule"] for row in run.rows] == ["concluded", "nothing found", "nothing found"]
    assert run.accuracy == pytest.approx(1 / 3)
