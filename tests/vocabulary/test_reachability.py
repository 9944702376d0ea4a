from __future__ import annotations

import json
import time

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from chinese_llama_lab.vocabulary import byte_level, sp_model
from chinese_llama_lab.vocabulary.bpe import can_still_become_one, merge_steps
from chinese_llama_lab.vocabulary.errors import VocabularyError
from chinese_llama_lab.vocabulary.merge import merge
from chinese_llama_lab.vocabulary.reachability import changed_segmentation, reachability
from chinese_llama_lab.vocabulary.save import save_tokenizer

from .conftest import CHINESE, ENGLISH, STYLES, byte_bpe, gold


def test_known_answers_of_the_published_merge():
    model = merge(gold("llama_tokenizer.model"), gold("chinese_sp.model"), "published").model
    start = time.perf_counter()
    judged = reachability(model)
    assert time.perf_counter() - start < 30
    lost = judged.unreachable()
    assert sum(v.index < 32_000 for v in lost) == 194
    assert sum(v.index >= 32_000 for v in lost) == 345
    assert judged.of("▁people").becomes == ("▁p", "eo", "ple")
    assert judged.of("▁people").reason == "beaten by an earlier merge"
    assert judged.of("越来越").reason == judged.of("意大利").reason == "no merge path"
    assert reachability(gold("llama_tokenizer.model")).unreachable() == []


def test_hand_made_bpe():
    scores = {"ab": -1.0, "bc": -2.0, "abc": -3.0, "cd": -0.5, "xyz": 0.0}
    final, steps = merge_steps("abcd", scores)
    assert final == ["ab", "cd"] and [s.left + s.right for s in steps] == ["cd", "ab"]
    assert can_still_become_one("abc", scores) and not can_still_become_one("xyz", scores)


def build(base, pieces, **changes):
    model = sp_model.copy_model(base)
    for text, score, kind in pieces:
        p = model.pieces.add()
        p.piece, p.score, p.type = text, score, kind
    for name, value in changes.items():
        setattr(model.normalizer_spec, name, value)
    return model


def test_each_reason(small_base):
    model = build(
        small_base,
        [
            ("中国", -5e3, 1),
            ("国人", -4e3, 1),
            ("中国人", -6e3, 1),
            ("中国是", -7e3, 1),
            ("中国人是", -9e3, 1),
            ("是的人", -1e4, 1),
            ("学习", 0, 4),
            ("爱学习", -2e4, 1),
            ("爱", -3e4, 1),
            ("没用", -1e3, 5),
            ("没", -3e4, 1),
            ("用", -3e4, 1),
        ],
    )
    judged = reachability(model)
    assert judged.of("中国").reachable and judged.of("学习").reachable
    # 国人 outranks 中国, and 中+国人 is 中国人 itself.
    assert judged.of("中国人").reachable
    assert judged.of("中国是").reachable
    assert judged.of("是的人").reason == "no merge path"
    assert judged.of("爱学习").reason == "contains a user-defined piece"
    assert judged.of("没用").reason == "unused"
    assert judged.of("<s>").reason == "not from text"
    assert judged.of("<0xC0>").reason == "byte never needed"
    assert judged.of("<0xE4>").reachable
    assert "中国人是" in [v.piece for v in judged if v.reachable]
    with pytest.raises(VocabularyError, match="no piece"):
        judged.of("不在")


def test_beaten_by_names_the_merge(small_base):
    model = build(
        small_base, [("国人", -6e3, 1), ("是的", -7e3, 1), ("国人是的", -9e3, 1), ("人是", -1e3, 1)]
    )
    judged = reachability(model).of("国人是的")
    assert judged.reason == "beaten by an earlier merge" and judged.beaten_by == "人+是"
    assert judged.becomes == ("国", "人是", "的") and "人+是 merges first" in str(judged)


def test_normaliser(small_base):
    model = build(small_base, [("a▁▁b", -1e4, 1)], remove_extra_whitespaces=True)
    assert reachability(model).of("a▁▁b").reason == "not produced by the normaliser"


def test_unigram(small_extra):
    judged = reachability(small_extra)
    assert len(judged) == len(small_extra.pieces)
    model = build(small_extra, [("中国人民热爱", -500.0, 1), ("１月", -1.0, 1)])
    judged = reachability(model)
    assert judged.of("中国人民热爱").reason == "beaten by a better segmentation"
    assert judged.of("１月").reason == "not produced by the normaliser"


@pytest.mark.parametrize("style", STYLES)
def test_verdicts_hold_on_text(style, small_base, small_extra):
    # Whatever comes out of real text must have been judged reachable.
    tokenizer = byte_bpe(style)
    judged = reachability(tokenizer)
    assert [v.index for v in judged] == list(range(tokenizer.get_vocab_size()))
    for line in CHINESE + ENGLISH:
        assert all(judged[i].reachable for i in tokenizer.encode(line).ids)
    model = merge(small_base, small_extra, "published").model
    sp, judged = sp_model.processor(model), reachability(model)
    for line in CHINESE + ENGLISH + ["🙂é中x"]:
        assert all(judged[i].reachable for i in sp.encode(line))


def test_pre_tokenizer_splits_digits():
    tokenizer = byte_bpe("smollm2")
    state = json.loads(tokenizer.to_str())
    state["model"]["merges"].append(["1", "0"])
    state["model"]["vocab"]["10"] = tokenizer.get_vocab_size()
    judged = reachability(Tokenizer.from_str(json.dumps(state)))
    assert judged.of("10").reason == "split by the pre-tokenizer"
    assert judged.of("10").becomes == ("1", "0")
    assert judged.of("<|end|>").reason == "not from text"


def test_changed_segmentation():
    llama, chinese = gold("llama_tokenizer.model"), gold("chinese_sp.model")
    published = merge(llama, chinese, "published").model
    changes = changed_segmentation(llama, published, ["some people sing", "nothing"])
    assert [(c.line, c.text, c.before, c.after) for c in changes] == [
        (0, "▁people", ("▁people",), ("▁p", "eo", "ple"))
    ]
    assert (changes[0].start, changes[0].end) == (5, 12)
    repaired = merge(llama, chinese).model
    assert changed_segmentation(llama, repaired, ["some people sing 10 songs"]) == []
    change = changed_segmentation(llama, repaired, ["a 人工智能 b"])
    assert change and change[0].after != change[0].before
    base = byte_bpe("qwen")
    assert changed_segmentation(base, base, CHINESE) == []
    assert byte_level.is_byte_level(base)


def test_not_a_vocabulary(tmp_path, small_base):
    with pytest.raises(VocabularyError):
        reachability(tmp_path / "nothing.model")
    word = sp_model.copy_model(small_base)
    word.trainer_spec.model_type = 4
    with pytest.raises(VocabularyError, match="char model"):
        reachability(word)
    with pytest.raises(VocabularyError):
        reachability(42)


def test_the_saved_folder_is_judged_as_the_model_is(tmp_path, small_base, small_extra):
    result = merge(small_base, small_extra)
    folder = save_tokenizer(result, tmp_path / "t")
    direct, saved = reachability(result.model), reachability(folder / "tokenizer.json")
    assert reachability(AutoTokenizer.from_pretrained(folder)) == saved
    assert saved.unreachable() == direct.unreachable() == []
    assert [v.reachable for v in saved] == [v.reachable for v in direct]
