from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from chinese_llama_lab.errors import TextError
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.instructions import Example
from chinese_llama_lab.training.packing import pack, pack_examples

from .conftest import CHINESE, ENGLISH

EOS = 257


def documents_of(packed):
    ids = list(packed.ids)
    ends = [*packed.starts[1:], len(ids)]
    return [ids[a:b] for a, b in zip(packed.starts, ends, strict=True)]


def test_nothing_is_lost_but_the_reported_tail(tokenizer):
    texts = [*CHINESE * 3, "", "  ", "a"]
    packed = pack(texts, tokenizer, 32)
    whole = [number for number, text in enumerate(texts) if text.strip()]
    assert sorted(packed.documents) == whole
    for number, ids in zip(packed.documents, documents_of(packed), strict=True):
        assert ids == [*tokenizer.encode(texts[number], add_special_tokens=False), EOS]
    blocks = [i for n in range(len(packed)) for i in packed.block_ids(n)]
    assert blocks == list(packed.ids[: len(blocks)]) and packed.tail == len(packed.ids) - len(blocks) < 32
    assert packed.characters == sum(len(texts[n]) for n in whole)
    assert f"tail of {packed.tail} tokens" in repr(packed)


def test_deterministic_by_seed(tokenizer):
    one, same, other = (pack(CHINESE * 5, tokenizer, 32, seed=s) for s in (1, 1, 2))
    assert one.ids == same.ids and one.documents == same.documents and one.ids != other.ids
    assert sorted(one.ids) == sorted(other.ids)


def test_positions_and_documents_of_a_block(tokenizer):
    packed = pack(CHINESE * 3 + ["ab"], tokenizer, 20)
    for n in range(len(packed)):
        expected, held = [], set()
        for at in range(n * 20, n * 20 + 20):
            place = max(k for k, start in enumerate(packed.starts) if start <= at)
            expected.append(at - max(packed.starts[place], n * 20))
            held.add(packed.documents[place])
        assert packed.block_positions(n) == expected
        assert set(packed.block_documents(n)) == held
    joined = pack(CHINESE * 3, tokenizer, 20, separate=False)
    assert joined.block_positions(1) == list(range(20))


def test_attention_does_not_cross_documents(model, tokenizer):
    """Each document of a block gives the logits that it gives alone; joined, it does not."""
    packed = pack(["今天", "明天", "a", "bcd"], tokenizer, 20)
    ids, positions = torch.tensor([packed.block_ids(0)]), torch.tensor([packed.block_positions(0)])
    model.eval()
    with torch.no_grad():
        apart = model(ids, position_ids=positions, use_cache=False).logits[0]
        joined = model(ids).logits[0]
        begins = [n for n, p in enumerate(positions[0].tolist()) if p == 0] + [20]
        for begin, end in pairwise(begins):
            alone = model(ids[:, begin:end]).logits[0]
            assert torch.allclose(apart[begin:end], alone, atol=1e-5)
    assert len(begins) == 5 and not torch.allclose(apart[-1], joined[-1], atol=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_replay_has_its_share(tokenizer, share):
    packed = pack(CHINESE * 20, tokenizer, 64, replay=ENGLISH * 40, replay_share=share)
    longest = max(len(text) for text in ENGLISH) + 1
    assert abs(packed.replay_tokens - share * len(packed.ids)) <= longest
    assert sum(number < 0 for number in packed.documents) and sum(n >= 0 for n in packed.documents) == 80


def test_a_short_run_takes_what_it_needs_from_a_long_corpus(tokenizer):
    texts = [f"{n}{text}" for n in range(400) for text in CHINESE]
    whole = pack(texts, tokenizer, 32, replay=ENGLISH * 900, replay_share=0.25)
    few = pack(texts, tokenizer, 32, replay=ENGLISH * 900, replay_share=0.25, tokens=5000)
    assert 5000 <= len(few.ids) < 5400 < len(whole.ids) / 4
    assert abs(few.replay_share - 0.25) < 0.02
    assert pack(texts, tokenizer, 32, tokens=5000).ids == pack(texts, tokenizer, 32, tokens=5000).ids
    # The documents are drawn from all of the corpus, not from its beginning.
    assert max(few.documents) > 1000
    less = pack(CHINESE, tokenizer, 8, tokens=10**6)
    assert sorted(less.documents) == [0, 1, 2, 3]


def test_bos(tokenizer):
    packed = pack(["ab"] * 4, tokenizer, 4, bos=True)
    assert packed.block_ids(0) == [256, *tokenizer.encode("ab"), EOS]


def test_bad_input(tokenizer):
    for texts in ([], ["", " "]):
        with pytest.raises(TrainingError, match="holds no text"):
            pack(texts, tokenizer, 8)
    with pytest.raises(TrainingError, match="3 tokens, and a block has 8"):
        pack(["ab"], tokenizer, 8)
    with pytest.raises(
        TrainingError, match=r"needs \d+ tokens, and the replay texts hold 32\D(.|\n)*0\.\d+ or"
    ):
        pack(CHINESE * 9, tokenizer, 8, replay=ENGLISH[:1], replay_share=0.5)
    with pytest.raises(TrainingError, match="document 1 is int"):
        pack(["a", 3], tokenizer, 8)
    with pytest.raises(TrainingError, match="tokens is 0"):
        pack(CHINESE, tokenizer, 8, tokens=0)
    for wrong in ({"replay_share": 1.0}, {"replay_share": -0.1}):
        with pytest.raises(TrainingError, match="replay_share"):
            pack(CHINESE, tokenizer, 8, **wrong)
    with pytest.raises(TrainingError, match="block is 1"):
        pack(CHINESE, tokenizer, 1)


def test_rows_packed_whole():
    rows = [Example([9] * n, [-100] + [9] * (n - 1), k, n) for k, n in enumerate([5, 3, 7, 2, 3])]
    bins = pack_examples(rows, 10)
    assert sorted(e.row for b in bins for e in b.examples) == [0, 1, 2, 3, 4] and len(bins) == 2
    for one in bins:
        assert len(one.input_ids) == len(one.labels) == len(one.position_ids) <= 10
        assert [label for label, p in zip(one.labels, one.position_ids, strict=True) if p == 0] == [
            -100
        ] * len(one.examples)
    with pytest.raises(TrainingError, match="row 2 has 7 tokens"):
        pack_examples(rows, 6)


def test_special_tokens_in_a_text_are_text(tokenizer):
    packed = pack(["a</s>b", "<s><pad>"] * 2, tokenizer, 4)
    assert list(packed.ids).count(EOS) == 4 and not {256, 258} & set(packed.ids)
    assert sorted(tokenizer.decode(ids[:-1]) for ids in documents_of(packed)) == sorted(
        ["a</s>b", "<s><pad>"] * 2
    )


def test_a_text_in_place_of_a_list_is_refused(tokenizer):
    for wrong in ("一个文件", b"bytes", {"text": "a"}):
        with pytest.raises(TrainingError, match=r"corpus is .*, not a list of documents"):
            pack(wrong, tokenizer, 4)
    with pytest.raises(TrainingError, match="the replay is str"):
        pack(CHINESE, tokenizer, 4, replay="text", replay_share=0.1)
    with pytest.raises(TrainingError, match=r"document 0 is int(.|\n)*where: replay"):
        pack(CHINESE, tokenizer, 4, replay=[3], replay_share=0.1)


def test_half_a_character_is_refused_by_name(tokenizer):
    with pytest.raises(TextError, match=r"U\+D800(.|\n)*document 1, character 2"):
        pack(["好", "ab\ud800"], tokenizer, 2)


def test_a_share_that_was_missed_is_reported(tokenizer):
    """One English document that is longer than all that was asked for: none is taken, and it is said."""
    packed = pack(CHINESE * 2, tokenizer, 16, replay=["x" * 900], replay_share=0.2)
    assert packed.replay_tokens == 0 and "0.0% of the tokens replayed (20.0% asked for)" in repr(packed)
    assert "asked" not in repr(pack(CHINESE * 9, tokenizer, 16, replay=ENGLISH * 9, replay_share=0.2))
