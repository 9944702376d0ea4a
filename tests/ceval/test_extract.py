"""Replies written by hand: what a reader would take as the answer, and what nobody could."""

from __future__ import annotations

import pytest

from chinese_llama_lab.ceval.extract import extract_answer

OPTIONS = ("气韵生动", "骨法用笔", "应物象形", "None")
FOUND = [
    # the whole reply
    ("B", "B", "whole reply"),
    (" b", "B", "whole reply"),
    ("B。", "B", "whole reply"),
    ("（C）", "C", "whole reply"),
    ("【D】", "D", "whole reply"),
    ("**A**", "A", "whole reply"),
    ("选B", "B", "whole reply"),
    ("选项C。", "C", "whole reply"),
    ("Ｄ", "D", "whole reply"),
    ("A选项", "A", "whole reply"),
    ("C项。", "C", "whole reply"),
    # a conclusion
    ("1. 线程共享地址空间。\n2. 进程独立。\n所以答案是B。", "B", "concluded"),
    ("因此，正确答案是 C。", "C", "concluded"),
    ("综上所述，本题应选A。", "A", "concluded"),
    ("故选D。", "D", "concluded"),
    ("因此选项B正确。", "B", "concluded"),
    ("初看答案是A，其实忽略了条件。所以答案是C。", "C", "concluded"),
    ("所以答案是A。等等，算错了。\n所以答案是D。", "D", "concluded"),
    ("A项不对，因此答案选B", "B", "concluded"),
    ("最终答案：$\\boxed{C}$", "C", "boxed"),
    ("\\boxed{\\text{B}}", "B", "boxed"),
    ("故选：C", "C", "concluded"),
    ("故选:B。", "B", "concluded"),
    ("综上，故选：D。", "D", "concluded"),
    ("因此选：A", "A", "concluded"),
    ("所以选：B", "B", "concluded"),
    ("2. 因此本题应选：C。", "C", "concluded"),
    ("【答案】B\n【解析】A项有误。\n故选：B。", "B", "concluded"),
    ("故选：A。算错了，故选：C。", "C", "concluded"),
    ("A项不对，故选：C. 应物象形", "C", "concluded"),
    ("计算得 2，所以B。", "B", "thus"),
    ("所以C项符合题意", "C", "thus"),
    ("A符合题意吗？不。因此B最符合题意。", "B", "thus"),
    # a statement
    ("答案：A", "A", "stated"),
    ("答案是 B", "B", "stated"),
    ("正确答案为C，因为它最大。", "C", "stated"),
    ("答案应该是选项D", "D", "stated"),
    ("答案: (B)", "B", "stated"),
    ("答案是“A”。", "A", "stated"),
    ("答案是Ｃ。", "C", "stated"),
    ("【答案】B", "B", "stated"),
    ("【答案】：C", "C", "stated"),
    ("【正确答案】\nD", "D", "stated"),
    ("正确的一项是D", "D", "right one"),
    ("说法正确的是 B。", "B", "right one"),
    ("The answer is C.", "C", "answer"),
    ("Answer: D", "D", "answer"),
    ("Correct option: A", "A", "answer"),
    ("So the correct choice is **B**.", "B", "answer"),
    ("我选择B，因为线程更轻。", "B", "chosen"),
    ("应选A", "A", "chosen"),
    ("应选：B", "B", "chosen"),
    ("应该选：C。", "C", "chosen"),
    ("本题选：A", "A", "chosen"),
    ("我选：B。", "B", "chosen"),
    ("我选择：D", "D", "chosen"),
    ("我认为是C", "C", "chosen"),
    ("我觉得应该是B选项，因为线程更轻。", "B", "chosen"),
    ("只有C是正确的", "C", "called right"),
    ("C项符合题意，A项不符合题意。", "C", "called right"),
    ("B is correct", "B", "called correct"),
    ("Therefore, **B** is correct.", "B", "called correct"),
    ("I think that option B is the right answer.", "B", "called correct"),
    ("A is incorrect and C is correct.", "C", "called correct"),
    ("B选项正确，A选项错误。", "B", "called right"),
    ("A. 错误\nB. 正确\nC. 错误，所以答案是B", "B", "concluded"),
    ("因此A选项错误，选C。", "C", "concluded"),
    ("答案是B，不是A。", "B", "stated"),
    # the first letter
    ("B. 骨法用笔", "B", "first letter"),
    ("C\n解析：进程之间互相独立。", "C", "first letter"),
    ("D，理由如下：其他都不成立。", "D", "first letter"),
    # in words
    ("骨法用笔", "B", "option in words"),
    ("答案是应物象形。", "C", "option in words"),
    ("None", "D", "option in words"),
    # what a base model writes after its answer is another question
    ("A\n\n下一题____。\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：C", "A", "whole reply"),
    (
        "2. 略。\n所以答案是B。\n\n第二题\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：1. 略。\n所以答案是D。",
        "B",
        "concluded",
    ),
    ("C</s> 答案是A", "C", "whole reply"),
]
NOT_FOUND = [
    ("", "empty"),
    ("  \n", "empty"),
    ("不知道。", "nothing found"),
    ("这道题考查绘画理论。", "nothing found"),
    ("答案不是A", "nothing found"),
    ("A不正确", "nothing found"),
    ("不选A", "nothing found"),
    ("不能选B。", "nothing found"),
    ("答案是A和B", "nothing found"),
    ("答案：A、C", "nothing found"),
    ("答案是AB", "nothing found"),
    ("A、C", "nothing found"),
    # a list to choose from
    ("请选择：\nA. 甲", "nothing found"),
    ("请选择：\nA. 气韵生动\nB. 骨法用笔", "nothing found"),
    ("最后，请选择：\nA. 甲", "nothing found"),
    ("下列选项：A. 甲", "nothing found"),
    ("下列选项：A. 甲 B. 乙", "nothing found"),
    ("应选：\nA. 甲\nB. 乙", "nothing found"),
    ("Choose the correct option: A. foo", "nothing found"),
    ("Correct option: A. foo\nB. bar", "nothing found"),
    # what is denied, doubted or not one letter, with a colon too
    ("故不选：A", "nothing found"),
    ("因此不应选：A", "nothing found"),
    ("因此别选：A", "nothing found"),
    ("所以没有选A", "nothing found"),
    ("不应选：A", "nothing found"),
    ("不应该选：A", "nothing found"),
    ("不应该选A", "nothing found"),
    ("我不会选A", "nothing found"),
    ("故选：A和B", "nothing found"),
    ("所以选：A、C", "nothing found"),
    ("故选：AB", "nothing found"),
    ("【答案】A、C", "nothing found"),
    ("我不认为是C", "nothing found"),
    ("我认为是C还是D", "nothing found"),
    ("我认为是C语言", "nothing found"),
    ("A选项、B选项", "nothing found"),
    ("因此A项不符合题意", "nothing found"),
    ("所以C项符合题意吗？", "nothing found"),
    ("A项和C项符合题意", "nothing found"),
    ("A is not correct", "nothing found"),
    ("A is incorrect", "nothing found"),
    ("Is A correct?", "nothing found"),
    ("A is correct?", "nothing found"),
    ("If B is correct, it ends.", "nothing found"),
    ("I don't think B is correct.", "nothing found"),
    ("A or B is correct", "nothing found"),
    ("A, B is correct", "nothing found"),
    ("Incorrect option: A", "nothing found"),
    ("B is correct, no, C is correct", "contradictory"),
    ("B is correct and C is correct", "contradictory"),
    ("A符合题意，B符合题意", "contradictory"),
    ("我选择：A。我认为是B。", "contradictory"),
    ("所以选项A错误。", "nothing found"),
    ("A对应的年份是1949年。", "nothing found"),
    ("选项B是错误的", "nothing found"),
    ("A，B。", "nothing found"),
    ("A、A、A、A", "nothing found"),
    ("DNA 复制发生在间期。", "nothing found"),
    ("答案是DNA。", "nothing found"),
    ("由 ABCD 四点共圆可得。", "nothing found"),
    ("答案是A。答案是B。", "contradictory"),
    ("A是正确的，B是正确的", "contradictory"),
    ("A. 气韵生动\nB. 骨法用笔\nC. 应物象形\nD. None", "nothing found"),
    ("E", "nothing found"),
    ("As we know, this is hard.", "nothing found"),
    ("不是气韵生动", "nothing found"),
]


@pytest.mark.parametrize(("reply", "letter", "rule"), FOUND)
def test_found(reply, letter, rule):
    found = extract_answer(reply, OPTIONS)
    assert (found.letter, found.rule) == (letter, rule)


@pytest.mark.parametrize(("reply", "why"), NOT_FOUND)
def test_not_found_is_not_guessed(reply, why):
    found = extract_answer(reply, OPTIONS)
    assert (found.letter, found.rule) == (None, why)


def test_there_are_enough_cases():
    assert len(FOUND) + len(NOT_FOUND) >= 60


def test_without_options():
    assert extract_answer("骨法用笔").letter is None
    assert extract_answer("答案是B").letter == "B"


def test_two_options_of_the_same_words():
    assert extract_answer("1", ("1", "1。", "2", "3")).rule == "contradictory"


def test_a_long_reply_takes_no_time():
    from time import perf_counter

    start = perf_counter()
    for text in (
        "所以" * 20_000,
        "答案" * 20_000,
        "A、" * 20_000,
        "(" * 40_000,
        "a\n\n" * 10_000,
        "因此 " * 20_000,
        "A" + " " * 40_000 + "x",
        "答案" + " " * 40_000,
        "\n" * 30_000 + "x",
        "故选：A. " * 10_000,
        "应选：" * 20_000,
        "我认为是" * 10_000,
        ", so that " * 10_000,
        "," + " " * 40_000 + "A is",
    ):
        extract_answer(text, OPTIONS)
    assert perf_counter() - start < 2
