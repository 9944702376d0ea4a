"""Counting the marks of translation: each rule on examples counted by hand, then the table."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinese_llama_lab.limits.errors import TranslationeseError
from chinese_llama_lab.limits.translationese import MARKS, find, measure, separating

RULES = {mark.name: mark.count for mark in MARKS}


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("passives", "他被选为代表，棉被和被子都湿了，被告受到处罚。", ["被", "受到"]),
        ("passives", "该理论为研究所的人接受。", []),
        ("pronouns", "他们说其他人都走了，她和它的吉他还在，他乡遇故知。", ["他们", "她", "它"]),
        ("articles", "一个人提出了一种办法，十一个月后第一项完成。", ["一个", "一种", "一个", "一项"]),
        ("的-chains", "美丽的城市的夜晚的灯光，我的目的的确明确，好的。", ["美丽的城市的夜晚的灯光"]),
        ("sentence length", "今天下雨。明天呢？\n好！ok", ["今天下雨", "明天呢", "好"]),
        ("foreign names", "约翰·史密斯见过克林顿和阿拉法特，又去马里。", ["约翰·史密斯", "阿拉法特"]),
        ("foreign names", "尼古拉·哥白尼和韦德里纳", ["尼古拉·哥", "韦德里纳"]),
    ],
)
def test_what_is_counted(name, text, found):
    assert find(name, text) == found


def test_rates_by_hand():
    # 8 Han characters, one passive; two clauses with Han, none with two 的; two sentences of 4.
    text = "他被选中。我们走了。"
    assert RULES["passives"](text) == (1000.0, 8.0)
    assert RULES["的-chains"](text) == (0.0, 2.0)
    assert RULES["的-chains"]("新的旧的书，好的书") == (100.0, 2.0)
    assert RULES["sentence length"](text) == (8.0, 2.0)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_counted(text):
    for mark in MARKS:
        numerator, denominator = mark.count(text)
        assert numerator >= 0 and denominator >= 0
        assert len(find(mark.name, text)) >= (numerator > 0)


def rows(**options):
    kinds = {
        "translated": ["这是一个被用来测试的句子。", "一种方法。"],
        "own": ["下雨了。", "走吧，别等了。"],
    }
    return measure(kinds, **options)


def test_one_row_a_kind_and_mark_with_the_rate_of_the_sums():
    table = rows()
    assert [(r["kind"], r["mark"]) for r in table] == [
        (kind, mark.name) for kind in ("translated", "own") for mark in MARKS
    ]
    articles = next(r for r in table if r["mark"] == "articles")
    assert articles["rate"] == pytest.approx(1000 * 2 / 16)
    assert articles["documents"] == 2 and articles["characters"] == 16
    assert all(r["low"] <= r["rate"] <= r["high"] for r in table if r["mark"] != "sentence length")
    assert rows() == table


def test_a_wide_sample_has_a_narrow_interval():
    few = measure({"k": ["一个人。", "走了。"] * 5})
    many = measure({"k": ["一个人。", "走了。"] * 500})
    widths = [next(r["high"] - r["low"] for r in t if r["mark"] == "articles") for t in (few, many)]
    assert widths[1] < widths[0] / 5


def test_separating_names_ratio_and_overlap():
    table = [
        {"kind": "t", "mark": "m", "rate": 6.0, "low": 5.0, "high": 7.0},
        {"kind": "a", "mark": "m", "rate": 2.0, "low": 1.0, "high": 3.0},
        {"kind": "b", "mark": "m", "rate": 5.0, "low": 4.0, "high": 6.0},
        {"kind": "c", "mark": "m", "rate": 0.0, "low": 0.0, "high": 0.0},
    ]
    got = {row["kind"]: (row["ratio"], row["apart"]) for row in separating(table, "t")}
    assert got == {"a": (3.0, True), "b": (1.2, False), "c": (float("inf"), True)}
    with pytest.raises(TranslationeseError, match="no kind"):
        separating(table, "z")


@pytest.mark.parametrize(
    ("kinds", "options", "said"),
    [
        ({"k": "一个人"}, {}, "one text"),
        ({"k": ["一个人", "no Chinese"]}, {}, "1 document"),
        ({"k": ["一个人", "两个人"]}, {"resamples": 0}, "resamples"),
        ({"k": ["一个人", "两个人"]}, {"confidence": 1.0}, "confidence"),
    ],
)
def test_what_cannot_be_compared_is_refused(kinds, options, said):
    with pytest.raises(TranslationeseError, match=said):
        measure(kinds, **options)


def test_an_unknown_mark_is_refused():
    with pytest.raises(TranslationeseError, match="foreign names"):
        find("rhythm", "一个人")
