"""The four commands on a model of two layers."""

from __future__ import annotations

import argparse
import io
import json
import time

import pytest
import torch

from chinese_llama_lab.adapters import AdapterError
from chinese_llama_lab.training.commands import add_commands
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.generate import answer, stream_answer

from .conftest import CHAT, CHINESE, make_model, make_tokenizer
from .test_instructions import with_bos

SMALL = [
    f"--set={pair}"
    for pair in ("block=32", "batch=2", "micro_batch=2", "steps=2", "rank=2", "replay_share=0")
]


def call(*arguments):
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    options = parser.parse_args([str(argument) for argument in arguments])
    return options.handler(options)


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    make_model(264, tied=True).save_pretrained(folder)
    make_tokenizer(5).save_pretrained(folder)
    return folder


def test_pretrain_finetune_merge_generate(base, tmp_path, capsys):
    text = tmp_path / "zh.txt"
    text.write_text("\n".join(CHINESE * 5), encoding="utf-8")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "写", "output": "字"}) + "\n", encoding="utf-8")
    model = ["--model", base, *SMALL]
    assert call("pretrain", *model, "--text", text, "--held-out-zh", text, "--out", tmp_path / "pt") == 0
    said = capsys.readouterr().out
    assert "bits per character" in said and "parameters are trained" in said
    fp32 = ("--dtype=float32", "--out")
    assert call("merge-adapters", base, tmp_path / "pt", *fp32, tmp_path / "zh") == 0
    tuned = ["--model", tmp_path / "zh", *SMALL, "--set=block=128", "--instructions", rows]
    assert call("finetune", *tuned, "--out", tmp_path / "sft") == 0
    assert call("merge-adapters", base, tmp_path / "pt", tmp_path / "sft", *fp32, tmp_path / "m") == 0
    assert "264 rows, tied, float32" in capsys.readouterr().out
    with pytest.raises(AdapterError, match="another base"):  # the adapter in between was left out
        call("merge-adapters", base, tmp_path / "sft", *fp32, tmp_path / "wrong")
    call("generate", tmp_path / "m", "你好", "再见", "--max-new-tokens", 4)
    call("generate", base, "你", "--adapter", tmp_path / "pt", "--template=none", "--max-new-tokens=2")
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_turns_from_the_keyboard(base, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("你好\n\n再见\n"))
    assert call("generate", base, "--max-new-tokens", 2) == 0


def test_bad_input(base, tmp_path):
    with pytest.raises(TrainingError, match="no key 'rnak'"):
        call("pretrain", "--set=rnak=3", "--corpus=modern", "--out", tmp_path / "r")
    with pytest.raises(TrainingError, match="made for a GPU"):
        call(
            "pretrain",
            "--recipe=chinese-llama-7b:lora",
            "--text",
            base / "config.json",
            "--out",
            tmp_path / "r",
        )
    with pytest.raises(Exception, match="no text to learn from"):
        call("pretrain", "--out", tmp_path / "r")
    with pytest.raises(Exception, match="no instructions"):
        call("finetune", "--out", tmp_path / "r")


def test_drawing_leaves_the_random_numbers_of_others_alone():
    model, tokenizer = make_model(264), make_tokenizer(5)
    before = torch.get_rng_state()
    answer(model, tokenizer, "a", temperature=1.5, max_new_tokens=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_answer_that_nobody_reads_on_ends():
    model, calls = make_model(264), []
    model.register_forward_pre_hook(lambda *arguments: calls.append(time.sleep(0.02)))
    pieces = stream_answer(model.train(), make_tokenizer(5), "你", max_new_tokens=200)
    next(pieces)
    pieces.close()
    ended = len(calls)
    time.sleep(0.1)
    assert len(calls) == ended < 100 and model.training


def test_a_prompt_is_read_as_it_was_trained(monkeypatch):
    # A question's `</s>` is text, and a chat template's own BOS is not doubled.
    model, seen = make_model(264), []
    monkeypatch.setattr(
        model, "generate", lambda **o: (seen.append(o["input_ids"][0].tolist()), o["streamer"].end())
    )
    tokenizer = with_bos()
    for template in ("v1", "v2", "alpaca", "chat"):
        tokenizer.chat_template = "{{ bos_token }}" + CHAT
        answer(model, tokenizer, "删去</s>" if template != "chat" else "删去", template=template)
        assert [i for i in seen[-1] if i >= 256] == [256], template


def test_streamed_and_whole_are_the_same():
    model, tokenizer = make_model(264), make_tokenizer(5)
    model.train()
    whole = answer(model, tokenizer, "你好", max_new_tokens=12)
    assert whole == "".join(stream_answer(model, tokenizer, "你好", max_new_tokens=12)) and model.training
    drawn = [answer(model, tokenizer, "a", temperature=1.5, seed=s, max_new_tokens=12) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(TrainingError, match="the model reads 256"):
        answer(model, tokenizer, "长" * 300)
    with pytest.raises(TrainingError, match="max_new_tokens is 0"):
        answer(model, tokenizer, "a", max_new_tokens=0)
