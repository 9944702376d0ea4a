"""Every template against a golden file, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.templates import TEMPLATES, render_prompt

GOLDEN = Path(__file__).parents[1] / "golden" / "templates"
ASKED, GIVEN = "把下面的句子翻译成英文。", "今天{instruction}天气很好。"
HISTORY = [("你好", "你好！"), ("你是谁？", "我是助手。")]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("form", ["plain", "input", "history"])
def test_exact_to_the_byte(template, form, tokenizer):
    text = render_prompt(
        template,
        ASKED,
        GIVEN if form == "input" else "",
        tokenizer=tokenizer,
        history=HISTORY if form == "history" else (),
    )
    assert text.encode() == (GOLDEN / f"{template}_{form}.txt").read_bytes()


def test_the_published_strings():
    v1 = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n{}\n\n### Response: "
    )
    assert render_prompt("v1", "甲") == v1.format("甲")
    assert render_prompt("v1", "甲", "乙") == v1.format("甲\n乙")
    v2 = "[INST] <<SYS>>\nYou are a helpful assistant. 你是一个乐于助人的助手。\n<</SYS>>\n\n{} [/INST]"
    assert render_prompt("v2", "甲") == v2.format("甲")
    alpaca = render_prompt("alpaca", "甲", "乙")
    assert alpaca.startswith(
        "Below is an instruction that describes a task, paired with an input that provides"
    )
    assert alpaca.endswith("### Instruction:\n甲\n\n### Input:\n乙\n\n### Response:\n")


def test_braces_stay_text():
    for template in ("v1", "v2", "alpaca"):
        text = render_prompt(template, "f{input} {x}", "{instruction} {system}")
        assert "f{input} {x}" in text and "{instruction} {system}" in text


def test_a_system_prompt(tokenizer):
    assert "<<SYS>>\n只用中文。\n" in render_prompt("v2", "甲", system="只用中文。")
    assert render_prompt("chat", "甲", system="乙", tokenizer=tokenizer).startswith("<|im_start|>system\n乙")
    with pytest.raises(TrainingError, match="no system prompt"):
        render_prompt("v1", "甲", system="乙")


def test_bad_input(tokenizer):
    with pytest.raises(TrainingError, match=r"no template 'v3'.*\n.*v1, v2, alpaca, chat"):
        render_prompt("v3", "甲")
    with pytest.raises(TrainingError, match="no chat template"):
        render_prompt("chat", "甲")
    with pytest.raises(TrainingError, match="EOS between turns"):
        render_prompt("v2", "甲", history=HISTORY)
