from __future__ import annotations

import itertools
import random
import unicodedata
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chinese_llama_lab.vocabulary import byte_level, han
from chinese_llama_lab.vocabulary.bpe_continue import admissible, continue_bpe, han_token_runs, learn_merges
from chinese_llama_lab.vocabulary.errors import VocabularyError
from chinese_llama_lab.vocabulary.reachability import reachability

from .conftest import CHINESE, ENGLISH, STYLES, byte_bpe


def bytes_only() -> Tokenizer:
    """A base without merges: each byte is a token, ids in byte order."""
    vocabulary = dict(byte_level.byte_alphabet())
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def reference(runs, spelling, next_id, wanted, least):
    """Continued BPE as it is defined, without any index: twenty lines to check the fast one against."""
    runs, spelling, merges = dict(runs), dict(spelling), []
    while len(merges) < wanted:
        counts = Counter()
        for run, frequency in runs.items():
            for pair in itertools.pairwise(run):
                counts[pair] += frequency
        taken = set(spelling.values())
        allowed = [
            p
            for p, n in counts.items()
            if n >= least
            and admissible(spelling[p[0]], spelling[p[1]])
            and spelling[p[0]] + spelling[p[1]] not in taken
        ]
        if not allowed:
            break
        best = min(allowed, key=lambda p: (-counts[p], p))
        new = next_id + len(merges)
        spelling[new] = spelling[best[0]] + spelling[best[1]]
        merges.append(best)
        after = Counter()
        for run, frequency in runs.items():
            out, i = [], 0
            while i < len(run):
                out.append(new if run[i : i + 2] == best else run[i])
                i += 2 if run[i : i + 2] == best else 1
            after[tuple(out)] += frequency
        runs = after
    return merges


def test_worked_by_hand():
    # 中 = E4 B8 AD, 国 = E5 9B BD, 人 = E4 BA BA, in one run "中国中国人". Counts: (E4,B8) 2, (E5,9B) 2,
    # (E4,BA) 1. (B8,AD) and (9B,BD) occur twice as well, but begin inside a character; (AD,E5) crosses into
    # the next one. Tie between (E4,B8) and (E5,9B): the smaller left id, E4. Then E5 9B (a base id is
    # smaller than a new one), then the two characters in the order in which their beginnings were made,
    # then the word. 人 occurs once.
    result = continue_bpe(bytes_only(), ["中国中国人"], 10)
    spelt = [byte_level.bytes_of(t).hex() for t in result.tokens]
    assert spelt == ["e4b8", "e59b", "e4b8ad", "e59bbd", "e4b8ade59bbd"]
    assert result.counts == (2, 2, 2, 2, 2)
    assert "asked for and the text yields 5" in result.message
    assert result.tokenizer.encode("中国人").tokens[0] == byte_level.spell("中国".encode())


def test_ties_go_to_the_smaller_ids_whatever_the_order_of_texts():
    texts = ["天地", "人和", "山水", "天地", "人和", "山水"]
    shuffled = random.Random(3).sample(texts, len(texts))
    one, other = continue_bpe(bytes_only(), texts, 12), continue_bpe(bytes_only(), shuffled, 12)
    assert one.merges == other.merges
    first = [byte_level.bytes_of(left) for left, _ in one.merges[:2]]
    assert first == [b"\xe4", b"\xe5"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("least", [1, 2, 3])
def test_equals_the_slow_reference(style, least):
    base = byte_bpe(style)
    runs = han_token_runs(base, CHINESE)
    spelling = {index: token for token, index in base.get_vocab().items()}
    next_id = max(spelling) + 1
    merges, counts = learn_merges(runs, spelling, next_id, 120, least)
    assert merges == reference(runs, spelling, next_id, 120, least)
    assert len(counts) == len(merges) and min(counts) >= least


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="中国人民哈一丁丂七", min_size=1, max_size=12), min_size=1, max_size=8))
def test_equals_the_slow_reference_on_any_text(texts):
    base = bytes_only()
    runs = han_token_runs(base, texts)
    spelling = {index: token for token, index in base.get_vocab().items()}
    assert learn_merges(runs, spelling, 256, 40, 1)[0] == reference(runs, spelling, 256, 40, 1)


@pytest.mark.parametrize("style", STYLES)
def test_encoding_applies_exactly_what_was_learnt(style):
    # Each merge was counted so often in training; encoding the same text must save exactly that many tokens.
    base = byte_bpe(style)
    result = continue_bpe(base, CHINESE, 100)
    before, after = (sum(len(e.ids) for e in t.encode_batch(CHINESE)) for t in (base, result.tokenizer))
    assert before - after == sum(result.counts)
    judged = reachability(result.tokenizer)
    assert all(
        judged[i].reachable or judged[i].reason == "swallowed inside a character"
        for i in range(base.get_vocab_size(), result.tokenizer.get_vocab_size())
    )


@pytest.mark.parametrize("style", STYLES)
def test_old_merges_and_ids_stay(style):
    base = byte_bpe(style)
    result = continue_bpe(base, CHINESE, 50)
    assert byte_level.merges_of(result.tokenizer)[: len(byte_level.merges_of(base))] == byte_level.merges_of(
        base
    )
    new = result.tokenizer.get_vocab()
    assert all(new[token] == index for token, index in base.get_vocab().items())
    assert sorted(new.values()) == list(range(base.get_vocab_size() + 50))
    assert byte_level.merges_of(result.tokenizer)[-50:] == list(result.merges)


@pytest.fixture(scope="module")
def continued():
    return {
        style: (byte_bpe(style), continue_bpe(byte_bpe(style), CHINESE * 2, 200).tokenizer)
        for style in STYLES
    }


# Neighbours of Han in Unicode and in UTF-8: kana, bopomofo, hexagrams (E4 B7), extension A, Yi (EA),
# compatibility.
NEAR = st.sampled_from(
    list("あいうアーンㄅ䷀䷿䶿㐀ꀀ豈々〇，。！한글é中国人民学习丁\u4dff\ua000\uf900\U00020000")
)
TEXT = st.text(
    st.one_of(st.characters(exclude_categories=("Cs",)), NEAR, st.sampled_from("ab 1\n")), max_size=40
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXT)
def test_text_without_han_keeps_its_ids(continued, text):
    for style, (base, longer) in continued.items():
        # Qwen's normaliser maps compatibility ideographs onto Han characters before anything else.
        plain = "".join(c for c in text if not han.has_han(unicodedata.normalize("NFC", c)))
        assert longer.encode(plain).ids == base.encode(plain).ids, style


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXT)
def test_mixed_text_joins_tokens_inside_han_runs_and_does_nothing_else(continued, text):
    for base, longer in continued.values():
        old, new = base.encode(text), longer.encode(text)
        assert longer.decode(new.ids) == base.decode(old.ids)
        spelling = {i: t for t, i in base.get_vocab().items()}
        at = 0
        for index, token in zip(new.ids, new.tokens, strict=True):
            if index in spelling:
                assert old.ids[at] == index
                at += 1
                continue
            joined = ""
            while len(joined) < len(token):
                joined += old.tokens[at]
                at += 1
            assert joined == token
            assert all(
                han.FIRST <= c <= han.LAST
                for c in byte_level.bytes_of(token).decode("utf-8", errors="ignore")
            )
        assert at == len(old.ids)


def test_no_new_token_can_begin_elsewhere(continued):
    for base, longer in continued.values():
        for token in set(longer.get_vocab()) - set(base.get_vocab()):
            data = byte_level.bytes_of(token)
            assert data[0] in range(0xE4, 0xEA)
            assert data[-1] != 0xE4
            if data[0] == 0xE4:
                assert data[1] >= 0xB8


def test_transformers_tokenizer_round_trip(tmp_path):
    base = byte_bpe("qwen")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<|end|>", pad_token="<|end|>")
    result = continue_bpe(wrapped, CHINESE, 80)
    assert isinstance(result.tokenizer, PreTrainedTokenizerFast)
    assert result.tokenizer.pad_token == "<|end|>" and len(result.tokenizer) == len(wrapped) + 80
    result.tokenizer.save_pretrained(tmp_path / "t")
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "t")
    for line in CHINESE[:8] + ENGLISH[:6]:
        assert again(line)["input_ids"] == result.tokenizer(line)["input_ids"]
        assert again.decode(again(line)["input_ids"]) == line


def test_added_tokens_stay_whole():
    base = byte_bpe("smollm2")
    base.add_tokens(["人工智能"])
    result = continue_bpe(base, CHINESE, 60)
    index = base.token_to_id("人工智能")
    assert index in result.tokenizer.encode("学习人工智能学习").ids
    assert min(result.tokenizer.token_to_id(t) for t in result.tokens) > index


def test_a_base_that_lacks_bytes_cannot_be_fooled():
    # Without a token for B7, the hexagram E4 B7 B8 is spelt E4 B8, as 中 (E4 B8 AD) begins.
    vocabulary = {c: b for c, b in byte_level.byte_alphabet().items() if b != 0xB7}
    base = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    longer = continue_bpe(base, ["中国中国中国"], 10).tokenizer
    assert longer.encode("\u4df8").ids == base.encode("\u4df8").ids
    assert len(longer.encode("国国").ids) < len(base.encode("国国").ids)


def test_bad_input(tmp_path):
    base = byte_bpe("smollm2")
    for texts in ([], [""], ["no Han here 123", "かな"]):
        with pytest.raises(VocabularyError, match="no run of Han"):
            continue_bpe(base, texts, 5)
    one_line = continue_bpe(base, ["学习学习"], 1000)
    assert 0 < len(one_line) < 1000 and "1000 new tokens were asked for" in one_line.message
    with pytest.raises(VocabularyError, match="0 new tokens"):
        continue_bpe(base, CHINESE, 0)
    with pytest.raises(VocabularyError, match="WordPiece"):
        continue_bpe(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")), CHINESE, 5)
    with pytest.raises(VocabularyError, match="Unigram"):
        continue_bpe(Tokenizer(models.Unigram([("a", 0.0)])), CHINESE, 5)
    with pytest.raises(VocabularyError, match="not byte-level"):
        continue_bpe(Tokenizer(models.BPE({"a": 0}, [])), CHINESE, 5)
    tiktoken = tmp_path / "qwen.tiktoken"
    tiktoken.write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(VocabularyError, match=r"no tokenizer\.json"):
        continue_bpe(tiktoken, CHINESE, 5)


@pytest.mark.parametrize("style", STYLES)
def test_the_first_tokens_of_a_result_are_what_asking_for_fewer_gives(style):
    base = byte_bpe(style)
    result = continue_bpe(base, CHINESE, 12)
    for count in (0, 1, 7, len(result)):
        shorter = result.first(count)
        assert shorter.merges == result.merges[:count] and len(shorter) == count
        asked = continue_bpe(base, CHINESE, count).tokenizer if count else base
        assert shorter.tokenizer.get_vocab() == asked.get_vocab()
        for text in CHINESE + ENGLISH:
            assert shorter.tokenizer.encode(text).ids == asked.encode(text).ids
    with pytest.raises(VocabularyError, match="first 99"):
        result.first(99)
