"""Every prompt style against a golden file, byte for byte; the golden files were written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chinese_llama_lab.ceval.errors import PromptError, SubjectError
from chinese_llama_lab.ceval.fitting import dropped_note, fit_prompt
from chinese_llama_lab.ceval.letters import encode
from chinese_llama_lab.ceval.prompts import STYLES, build_prompt, choose_shots, find_style

from .conftest import ASKED, FIRST, SECOND, SHOTS, make_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "ceval"
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}<|begin_of_text|>{% endif %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("form", ["zero", "shots", "cot"])
def test_exact_to_the_byte(style, form, tokenizer):
    if form == "cot" and not find_style(style).cot:
        with pytest.raises(PromptError, match="has no chain of thought"):
            build_prompt(style, ASKED, SHOTS, cot=True)
        return
    shots = [] if form == "zero" else SHOTS
    prompt = build_prompt(style, ASKED, shots, cot=form == "cot", tokenizer=tokenizer)
    assert prompt.text.encode() == (GOLDEN / f"{style}_{form}.txt").read_bytes()
    assert (prompt.shots, prompt.dropped) == (len(shots), 0)


def test_no_golden_file_is_left_over():
    names = {f"{style}_{form}.txt" for style in STYLES for form in ("zero", "shots", "cot")}
    names -= {"lm-eval_cot.txt"}
    names |= {"ceval-official_key.txt", "lm-eval_cmmlu.txt"}
    assert {path.name for path in GOLDEN.iterdir()} == names


def test_the_key_in_the_header_as_the_published_code_wrote_it():
    prompt = build_prompt("ceval-official", ASKED, SHOTS, names="key")
    assert prompt.text.encode() == (GOLDEN / "ceval-official_key.txt").read_bytes()


def test_cmmlu_has_its_own_header_in_lm_eval():
    question = replace(ASKED, subject="agronomy", benchmark="cmmlu")
    assert build_prompt("lm-eval", question).text.encode() == (GOLDEN / "lm-eval_cmmlu.txt").read_bytes()


def test_lm_eval_strips_the_question_and_nothing_else():
    question = replace(ASKED, text=" \n问题 ", options=(" 甲", "乙 ", "丙", "丁"))
    assert build_prompt("lm-eval", question).tail == "问题\nA.  甲\nB. 乙 \nC. 丙\nD. 丁\n答案："
    assert build_prompt("ceval-official", question).tail.startswith(" \n问题 \nA.  甲\n")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shots", [[], SHOTS])
def test_the_prefix_is_shared_by_the_questions_of_a_subject(style, shots, tokenizer):
    first = build_prompt(style, ASKED, shots, tokenizer=tokenizer)
    other = replace(ASKED, text="另一个问题？", options=("甲", "乙", "丙", "丁"))
    second = build_prompt(style, other, shots, tokenizer=tokenizer)
    assert first.prefix == second.prefix and first.tail != second.tail
    assert first.tail.startswith(ASKED.text) and second.tail.startswith("另一个问题？")
    if shots:
        assert FIRST.text in first.prefix and SECOND.text in first.prefix


def test_the_turns_of_llama_3_chinese_instruct():
    """The strings of Chinese-LLaMA-Alpaca-3's script, out of a chat template of that form."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = LLAMA3
    system = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "You are a helpful assistant. 你是一个乐于助人的助手。<|eot_id|>"
    )
    user, reply = (
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    )
    header = "以下是中国关于操作系统考试的单项选择题，请选出其中的正确答案。\n\n"
    shot = "2+2=\nA. 3\nB. 5\nC. 4\nD. 22\n答案："
    asked = ASKED.text + "\nA. 1\nB. None\nC. NA\nD. 报错\n答案："
    one = build_prompt("chinese-llama-alpaca-chat", ASKED, [SECOND], tokenizer=tokenizer)
    assert one.text == (
        f"{system}{user}{header}<|eot_id|>{reply}好的，我会结合操作系统相关知识回答<|eot_id|>"
        f"{user}{shot}<|eot_id|>{reply}C<|eot_id|>{user}{asked}<|eot_id|>{reply}"
    )
    zero = build_prompt("chinese-llama-alpaca-chat", ASKED, tokenizer=tokenizer)
    assert zero.text == f"{system}{user}{header}{asked}<|eot_id|>{reply}"


def test_a_template_that_writes_bos_gets_no_second_one():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "<s>" + tokenizer.chat_template
    prompt = build_prompt("chinese-llama-alpaca-chat", ASKED, tokenizer=tokenizer)
    assert prompt.writes_bos
    ids = encode(tokenizer, prompt.text, writes_bos=True)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert not build_prompt("ceval-official", ASKED, tokenizer=tokenizer).writes_bos


def test_bad_input(tokenizer):
    with pytest.raises(PromptError, match=r"no prompt style 'mmlu'[\s\S]*ceval-official.*lm-eval"):
        build_prompt("mmlu", ASKED)
    with pytest.raises(PromptError, match=r"names is 'english'[\s\S]*chinese, key"):
        build_prompt("ceval-official", ASKED, names="english")
    with pytest.raises(PromptError, match="no chat template"):
        build_prompt("chinese-llama-alpaca-chat", ASKED)
    with pytest.raises(PromptError, match=r"a shot has no explanation[\s\S]*take the shots from dev"):
        build_prompt("ceval-official", ASKED, [replace(FIRST, explanation="")], cot=True)
    with pytest.raises(PromptError, match="a shot has no answer"):
        build_prompt("ceval-official", ASKED, [replace(FIRST, answer=None)])
    with pytest.raises(SubjectError, match=r"operating_systems[\s\S]*did you mean operating_system"):
        build_prompt("ceval-official", replace(ASKED, subject="operating_systems"))


def test_shots_are_the_first_of_the_subject_in_order():
    other = replace(FIRST, subject="law", id="9")
    cmmlu = replace(FIRST, benchmark="cmmlu", id="8")
    assert choose_shots([other, cmmlu, FIRST, ASKED, SECOND], ASKED, 1) == [FIRST]
    assert choose_shots([other, FIRST, SECOND], ASKED, 2) == SHOTS
    assert choose_shots([], ASKED, 0) == []
    with pytest.raises(SubjectError, match=r"has 2 dev questions, and 5 shots[\s\S]*row 8[\s\S]*ask for 2"):
        choose_shots(SHOTS, ASKED, 5)
    with pytest.raises(SubjectError, match="shown with its answer before it is asked"):
        choose_shots(SHOTS, SECOND, 2)
    with pytest.raises(PromptError, match="shots is -1"):
        choose_shots(SHOTS, ASKED, -1)


def test_shots_leave_from_the_left_and_it_is_said(tokenizer):
    def length(shots):
        return len(encode(tokenizer, build_prompt("ceval-official", ASKED, shots).text))

    def fit(limit):
        return fit_prompt(tokenizer, "ceval-official", ASKED, SHOTS, max_tokens=limit)

    assert (fit(None).shots, fit(length(SHOTS)).shots) == (2, 2)
    shorter = fit(length(SHOTS) - 1)
    assert (shorter.shots, shorter.dropped) == (1, 1)
    assert SECOND.text in shorter.prefix and FIRST.text not in shorter.prefix
    assert dropped_note(shorter, 2) == "1 of 2 shots were dropped from the left: the context is too short"
    assert dropped_note(fit(None), 2) == ""
    assert (fit(length([])).shots, fit(length([])).dropped) == (0, 2)
    with pytest.raises(PromptError, match=r"without any shots[\s\S]*row 8[\s\S]*the other scores stay"):
        fit(length([]) - 1)
