from __future__ import annotations

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from chinese_llama_lab.vocabulary import sp_model
from chinese_llama_lab.vocabulary.errors import VocabularyError
from chinese_llama_lab.vocabulary.merge import merge
from chinese_llama_lab.vocabulary.save import save_tokenizer, slow_tokenizer, tied_pieces, to_fast

from .conftest import CHINESE, ENGLISH, gold

ODD = [
    "",
    " ",
    "  ",
    "   three leading spaces",
    "\ttab",
    "trailing  ",
    "a  b   c",
    " " * 40 + "中" + " " * 17,
    "▁under",
    "🙂🙂",
    "哈哈哈哈哈",
    "=" * 33,
    "line\nbreak\r\n",
    "\x00",
    "ﬁ １２ ﾊﾝ",
    "中A国1人",
    "    def f():  # 中文注释",
    "𠀀𠮷",
]
TEXT = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=("Cs",)), max_size=6),
        st.sampled_from([" ", "  ", "中国", "人工智能", "▁", "people", "10", "。", "\n", "哈哈哈", "的"]),
    ),
    max_size=14,
).map("".join)
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    result = merge(gold("llama_tokenizer.model"), gold("chinese_sp.model"))
    return save_tokenizer(result, tmp_path_factory.mktemp("t") / "merged")


def three(folder):
    return (
        AutoTokenizer.from_pretrained(folder),
        slow_tokenizer(folder),
        sp_model.processor(sp_model.load_model(folder / "tokenizer.model")),
    )


def agree(fast, slow, sp, lines):
    expected = sp.encode(lines)
    assert fast(lines, add_special_tokens=False)["input_ids"] == expected
    assert [slow.encode(line, add_special_tokens=False) for line in lines] == expected
    for ids in expected:
        assert fast.decode(ids) == sp.decode(ids)


def test_fast_slow_and_sentencepiece_agree_and_again_after_saving(folder, tmp_path):
    fast, slow, sp = three(folder)
    agree(fast, slow, sp, CHINESE + ENGLISH + ODD)
    assert len(fast) == sp.get_piece_size() and fast.pad_token_id == sp.pad_id() == 32_000
    assert fast("中国")["input_ids"][0] == fast.bos_token_id == 1
    fast.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(ODD + CHINESE)["input_ids"] == fast(ODD + CHINESE)["input_ids"]
    assert again.pad_token_id == 32_000


@settings(max_examples=400, deadline=None)
@given(TEXT.filter(lambda text: not any(s in text for s in SPECIAL)))
def test_any_text(loaded, text):
    fast, _, sp = loaded
    assert fast.encode(text, add_special_tokens=False) == sp.encode(text)


@pytest.fixture(scope="module")
def loaded(folder):
    return three(folder)


def test_the_base_alone_agrees(tmp_path):
    agree(*three(save_tokenizer(gold("llama_tokenizer.model"), tmp_path / "llama")), CHINESE + ENGLISH + ODD)


def test_a_trained_model_agrees(tmp_path, small_base, small_extra):
    for number, model in enumerate((small_base, merge(small_base, small_extra).model)):
        agree(*three(save_tokenizer(model, tmp_path / str(number))), CHINESE + ENGLISH + ODD)


def test_user_defined_pieces(tmp_path, small_base, small_extra):
    base = sp_model.copy_model(small_base)
    for text in ("<sep>", "学习"):
        piece = base.pieces.add()
        piece.piece, piece.type = text, sp_model.USER_DEFINED
    lines = ["a<sep>b", " a <sep> 中国", "人工智能学习中国", "<sep>a", "学习学习 ", "中国", ""]
    for number, model in enumerate((base, merge(base, small_extra).model)):
        fast, _, sp = three(save_tokenizer(model, tmp_path / str(number)))
        assert fast(lines, add_special_tokens=False)["input_ids"] == sp.encode(lines)


def test_a_piece_without_its_characters_is_refused(small_base):
    model = sp_model.copy_model(small_base)
    piece = model.pieces.add()
    piece.piece, piece.score = "龘龘", -1e6
    with pytest.raises(VocabularyError, match="'龘', which has no piece"):
        to_fast(model)


def test_published_ties_are_reported():
    model = merge(gold("llama_tokenizer.model"), gold("chinese_sp.model"), "published").model
    ((score, count, _),) = tied_pieces(model)
    assert score == 0.0 and count > 11_000
    assert tied_pieces(gold("llama_tokenizer.model")) == []


def test_bad_input(tmp_path, small_base, small_extra):
    with pytest.raises(VocabularyError, match="unigram"):
        to_fast(small_extra)
    taken = tmp_path / "taken"
    taken.mkdir()
    save_tokenizer(small_base, taken)  # an empty folder is no harm
    with pytest.raises(VocabularyError, match="exists"):
        save_tokenizer(small_base, taken)
    assert (taken / "tokenizer.json").is_file()
    shutil.rmtree(taken)
    taken.write_text("a file", encoding="utf-8")
    with pytest.raises(VocabularyError, match="exists"):
        save_tokenizer(small_base, taken)


def test_special_tokens_are_added_by_fast_and_slow_alike(tmp_path, small_base, small_extra):
    folder = save_tokenizer(merge(small_base, small_extra), tmp_path / "with")
    fast, slow = AutoTokenizer.from_pretrained(folder), slow_tokenizer(folder)
    for text in [*CHINESE, *ENGLISH, ""]:
        assert fast.encode(text) == slow.encode(text) == [fast.bos_token_id, *fast.encode(text)[1:]]
    bare = save_tokenizer(merge(small_base, small_extra), tmp_path / "without", add_bos=False)
    assert AutoTokenizer.from_pretrained(bare).encode("中国") == slow_tokenizer(bare).encode("中国")


def test_the_slow_tokenizer_says_which_file_is_missing(tmp_path, small_base, small_extra):
    folder = save_tokenizer(merge(small_base, small_extra), tmp_path / "t")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    with pytest.raises(VocabularyError, match=r"tokenizer\.model"):
        slow_tokenizer(tmp_path / "again")
