from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.vocabulary import han, sp_model
from chinese_llama_lab.vocabulary.errors import VocabularyError
from chinese_llama_lab.vocabulary.frequent_joins import frequent_joins
from chinese_llama_lab.vocabulary.merge import FILL_FOR_EACH, merge
from chinese_llama_lab.vocabulary.reachability import reachability
from chinese_llama_lab.vocabulary.sp_train import train_sentencepiece

from .conftest import CHINESE, ENGLISH, gold

PAPER = "人工智能是计算机科学、心理学、哲学等学科融合的交叉学科。"


@pytest.fixture(scope="module")
def merged(small_base, small_extra):
    return merge(small_base, small_extra)


@pytest.fixture(scope="module")
def real():
    return merge(gold("llama_tokenizer.model"), gold("chinese_sp.model"))


# --------------------------------------------------------------------------------------------- as published


def test_published_is_bit_for_bit():
    llama, chinese = gold("llama_tokenizer.model"), gold("chinese_sp.model")
    plain = merge(llama, chinese, "published")
    assert len(plain) == 49_953
    assert plain.sha256 == "e2676d4ca29ca1750f6ff203328d73b189321dc5776ceede037cbd36541d70c0"
    padded = merge(llama, chinese, "published", pad="[PAD]")
    assert len(padded) == 49_954 and padded.pad_id == 49_953
    assert padded.sha256 == "2d967e855b1213a439df6c8ce2791f869c84b4f3b6cfacf22b86440b8192a2f8"
    assert len(sp_model.processor(sp_model.load_model(llama)).encode(PAPER)) == 35
    assert len(sp_model.processor(plain.model).encode(PAPER)) == 16


# --------------------------------------------------------------------------------------------- repaired, real


def test_repaired_loses_no_piece_and_adds_none_in_vain(real):
    judged = reachability(real.model)
    assert judged.unreachable() == []
    assert real.pad_id == 32_000 and real.model.pieces[32_000].piece == "<pad>"
    assert sp_model.processor(real.model).pad_id() == 32_000
    base = sp_model.load_model(gold("llama_tokenizer.model"))
    assert [(p.piece, p.type) for p in real.model.pieces[:32_000]] == [(p.piece, p.type) for p in base.pieces]


def test_repaired_scores_are_distinct_and_below_the_base(real):
    normal = [p for p in real.model.pieces if p.type == sp_model.NORMAL]
    assert len({p.score for p in normal}) == len(normal)
    added = [p.score for p in real.model.pieces[32_001:]]
    assert max(added) < min(p.score for p in real.model.pieces[:32_000])
    assert added == sorted(added, reverse=True)


def test_repaired_adds_han_and_nothing_else(real):
    for p in real.model.pieces[32_001:]:
        assert han.is_han(p.piece.removeprefix("▁")), p.piece
    new = set(real.added) | set(real.completed) | set(real.filled)
    assert new == {p.piece for p in real.model.pieces[32_001:]}
    assert "越来" in real.completed and "越来越" in real.added and "意大利" in real.added
    extra = {p.piece for p in sp_model.load_model(gold("chinese_sp.model")).pieces}
    assert set(real.added) <= extra and not set(real.completed) & extra
    assert set(real.added) | set(real.dropped) == extra


def test_repaired_is_deterministic(real):
    assert merge(gold("llama_tokenizer.model"), gold("chinese_sp.model")).sha256 == real.sha256


def test_people_and_digits_keep_their_tokens(real):
    sp = sp_model.processor(real.model)
    base = sp_model.processor(sp_model.load_model(gold("llama_tokenizer.model")))
    for text in (
        "the people of 1998",
        "in 10 days",
        "def f(x):\n        return x**10",
        "  two  spaces",
        " " * 37 + "x",
    ):
        assert sp.encode(text) == base.encode(text)
    assert sp.encode("在1998年", out_type=str)[1:5] == ["1", "9", "9", "8"]


# --------------------------------------------------------------------------------------------- properties

NEAR = st.sampled_from(
    [*list("あーン䷀䶿㐀ꀀ豈々〇，。한é中国人民学习智能▁\x00\xa0"), "中国", "  ", "people", "10"]
)
TEXT = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=("Cs",)), max_size=6), NEAR), max_size=12
).map("".join)


def spans(sp, text):
    """Byte ranges of the tokens of a text, in the normalised text, with the ids."""
    out, at = [], 0
    for piece, index in zip(sp.encode(text, out_type=str), sp.encode(text), strict=True):
        width = 1 if sp.is_byte(index) else len(piece.encode())
        out.append((at, at + width, index))
        at += width
    return out


def check_properties(base, longer, text):
    assert longer.decode(longer.encode(text)) == base.decode(base.encode(text))
    plain = han.RUN.sub("", text)
    assert longer.encode(plain) == base.encode(plain)
    # Cuts only disappear, and only around new tokens, which hold Han alone: everything else keeps its tokens.
    old, new = spans(base, text), spans(longer, text)
    assert {s for s, _, _ in new} <= {s for s, _, _ in old}
    kept = [t for t in new if t[2] < base.get_piece_size()]
    assert set(kept) <= set(old)


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_any_text_small(small_processors, text):
    check_properties(*small_processors, text)


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_any_text_real(real_processors, text):
    check_properties(*real_processors, text)


@pytest.fixture(scope="module")
def small_processors(small_base, merged):
    return sp_model.processor(small_base), sp_model.processor(merged.model)


@pytest.fixture(scope="module")
def real_processors(real):
    return sp_model.processor(sp_model.load_model(gold("llama_tokenizer.model"))), sp_model.processor(
        real.model
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(alphabet="中国人民学习", min_size=2, max_size=6), min_size=1, max_size=12, unique=True)
)
def test_whatever_words_the_extra_has_all_come_out(small_base, words):
    # An extra model made of arbitrary words: overlapping, without common parts, with missing characters.
    extra = sp_model.copy_model(small_base)
    extra.trainer_spec.model_type = 1
    del extra.pieces[3:]
    extra.trainer_spec.byte_fallback = False
    for rank, word in enumerate(words):
        piece = extra.pieces.add()
        piece.piece, piece.score = word, -float(rank + 1)
    result = merge(small_base, extra, complete=1000)
    judged = reachability(result.model)
    assert judged.unreachable() == []
    assert set(words) <= {p.piece for p in result.model.pieces}
    fewer = merge(small_base, extra, complete=False, pad=None) if any(len(w) == 2 for w in words) else None
    if fewer is not None:
        assert reachability(fewer.model).unreachable() == [] and fewer.pad_id is None


# --------------------------------------------------------------------------------------------- choi


def test_bpe_extra_works_too(small_base):
    extra = train_sentencepiece(CHINESE, 200, "bpe", character_coverage=1.0).model
    result = merge(small_base, extra)
    assert reachability(result.model).unreachable() == []
    assert result.added


def test_room_is_filled_from_texts(small_base, small_extra):
    # Without completing steps, all the room that the pieces with digits and English left can be filled.
    plain = merge(small_base, small_extra, complete=False, fill=0)
    filled = merge(small_base, small_extra, complete=False, texts=CHINESE)
    assert filled.filled and reachability(filled.model).unreachable() == []
    left_out = sum(reason == "not Han alone" for reason in filled.dropped.values())
    assert len(filled.filled) <= FILL_FOR_EACH * left_out
    one, other = (sum(map(len, sp_model.processor(r.model).encode(CHINESE))) for r in (plain, filled))
    assert other < one
    assert merge(small_base, small_extra, complete=False, texts=CHINESE[::-1]).sha256 == filled.sha256


def test_pad_choices(small_base, small_extra):
    assert merge(small_base, small_extra, pad="[PAD]").model.pieces[len(small_base.pieces)].piece == "[PAD]"
    assert merge(small_base, small_extra, pad=None).pad_id is None
    with pytest.raises(VocabularyError, match="taken"):
        merge(small_base, small_extra, pad="<s>")
    with pytest.raises(VocabularyError, match="taken"):
        merge(small_base, small_extra, "published", pad="<s>")
    own = train_sentencepiece(ENGLISH, 400, "bpe", byte_fallback=True, require_han=False).model
    own.pieces[1].piece = "<pad>"
    assert merge(own, small_extra).pad_id == 1


def test_an_extra_that_adds_nothing(small_base):
    english = train_sentencepiece(ENGLISH, 120, "unigram", require_han=False).model
    with pytest.raises(VocabularyError, match="adds nothing"):
        merge(small_base, small_base)
    with pytest.raises(VocabularyError, match="adds nothing"):
        merge(small_base, small_base, "published")
    with pytest.raises(VocabularyError, match="adds nothing"):
        merge(small_base, english)


def test_user_defined_and_control_pieces(small_base, small_extra):
    extra = sp_model.copy_model(small_extra)
    for text, kind in (("<中国>", sp_model.CONTROL), ("人工", sp_model.USER_DEFINED)):
        present = [p for p in extra.pieces if p.piece == text]
        piece = present[0] if present else extra.pieces.add()
        piece.piece, piece.type = text, kind
    result = merge(small_base, extra)
    assert result.dropped["<中国>"] == "control piece"
    assert result.dropped["人工"] == "user-defined piece"
    assert reachability(result.model).unreachable() == []
    base = sp_model.copy_model(small_base)
    own = base.pieces.add()
    own.piece, own.type = "学习", sp_model.USER_DEFINED
    judged = reachability(merge(base, small_extra).model)
    assert judged.unreachable() == []
    assert judged.of("学习").reachable


def test_bad_models(small_base, small_extra, tmp_path):
    with pytest.raises(VocabularyError, match="base model"):
        merge(small_extra, small_extra)
    with pytest.raises(VocabularyError, match="policy"):
        merge(small_base, small_extra, "best")  # type: ignore[arg-type]
    published = merge(small_base, small_extra, "published").model
    other = train_sentencepiece(["天地玄黄宇宙洪荒" * 3], 40, "unigram").model
    with pytest.raises(VocabularyError, match="share the score 0"):
        merge(published, other)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n的\n", encoding="utf-8")
    with pytest.raises(VocabularyError, match="WordPiece"):
        merge(small_base, vocabulary)


def test_arguments_are_not_changed(small_base, small_extra):
    before = sp_model.sha256(small_base), sp_model.sha256(small_extra)
    merge(small_base, small_extra)
    assert before == (sp_model.sha256(small_base), sp_model.sha256(small_extra))


def test_fill_learns_further_pieces_from_the_text(small_base, small_extra):
    plain = merge(small_base, small_extra, fill=0)
    texts = ["天气天气天气很好很好"] * 5
    filled = merge(small_base, small_extra, texts=texts, fill=3)
    assert 0 < len(filled.filled) <= 3 and len(filled) == len(plain) + len(filled.filled)
    assert reachability(filled.model).unreachable() == []
    shorter, longer = sp_model.processor(filled.model), sp_model.processor(plain.model)
    assert len(shorter.encode(texts[0])) < len(longer.encode(texts[0]))
    assert merge(small_base, small_extra, texts=texts, fill=0).model == plain.model


def test_without_text_the_list_of_frequent_joins_fills(real):
    assert len(real.filled) == FILL_FOR_EACH * 814 - len(real.completed)
    assert set(real.filled) <= set(frequent_joins())
    without = merge(gold("llama_tokenizer.model"), gold("chinese_sp.model"), fill=0)
    assert without.filled == () and [p.piece for p in without.model.pieces] == [
        p.piece for p in real.model.pieces[: len(without)]
    ]


def test_the_list_of_frequent_joins_is_what_it_says():
    listed = frequent_joins()
    assert len(listed) == len(set(listed)) == 6000
    assert all(han.is_han(word) and 2 <= len(word) <= 12 for word in listed)


@pytest.mark.parametrize("name", ["peoples-daily", "reviews", "modern", "three-kingdoms", "alpaca-zh"])
def test_repaired_is_at_most_two_percent_longer_than_published(real, name):
    published = merge(gold("llama_tokenizer.model"), gold("chinese_sp.model"), "published")
    for corpus in (load_corpus(name), load_corpus(name).raw()):
        texts = corpus.split("held-out").texts()
        ours, theirs = (sum(map(len, sp_model.processor(m.model).encode(texts))) for m in (real, published))
        assert ours <= 1.02 * theirs
