from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chinese_llama_lab.errors import TextError
from chinese_llama_lab.tokenization.fast import byte_alphabet
from chinese_llama_lab.training.metrics import bits_per_character


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {c: b for c, b in byte_alphabet().items()} | {"<s>": 256}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


def by_hand(model, ids):
    logits = model(torch.tensor([ids])).logits[0].double()
    return float(-torch.log_softmax(logits[:-1], -1)[range(len(ids) - 1), ids[1:]].sum())


def test_equals_the_definition(model, tokenizer):
    text = "中国 ab"
    with torch.no_grad():
        nats = by_hand(model, [256, *tokenizer.encode(text)])
    got = bits_per_character(model, tokenizer, [text], window=64)
    assert got.tokens == 9 and got.characters == 5
    assert got.bits_per_character == pytest.approx(nats / math.log(2) / 5, rel=1e-5)
    assert got.perplexity == pytest.approx(math.exp(nats / 9), rel=1e-5)


def test_what_stands_before_a_text_is_read_and_not_scored(model, tokenizer):
    text, start = "abcdefgh" * 4, "xyz"
    before = tokenizer.encode(start)
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *tokenizer.encode(text)]])).logits[0, 2:-1].double()
    expected = -float(torch.log_softmax(logits, -1)[range(32), tokenizer.encode(text)].sum())
    got = bits_per_character(model, tokenizer, [text], window=64, start=start)
    assert (got.tokens, got.characters) == (32, 32)
    assert got.nats == pytest.approx(expected, rel=1e-5)
    in_windows = bits_per_character(model, tokenizer, [text], window=16, start=start)
    assert in_windows.tokens == 32 and in_windows.nats != got.nats
    assert bits_per_character(model, tokenizer, [text], window=64).nats != got.nats
    for bad in ("", "x" * 33):
        with pytest.raises(TextError, match="tokens"):
            bits_per_character(model, tokenizer, [text], window=64, start=bad)


def test_windows_score_every_token_once(model, tokenizer):
    text = "abcdefgh" * 10
    ids = [256, *tokenizer.encode(text)]
    window, stride = 16, 4
    expected, scored = 0.0, 1
    with torch.no_grad():
        for begin in range(0, len(ids), stride):
            end = min(begin + window, len(ids))
            if end <= scored:
                break
            logits = model(torch.tensor([ids[begin:end]])).logits[0].double().log_softmax(-1)
            for at in range(scored, end):
                expected -= float(logits[at - 1 - begin, ids[at]])
            scored = end
    got = bits_per_character(model, tokenizer, [text], window=window, stride=stride, head_rows=3)
    assert got.tokens == 80 and got.nats == pytest.approx(expected, rel=1e-5)


def test_a_uniform_model_costs_log2_of_its_vocabulary(tokenizer):
    config = LlamaConfig(
        vocab_size=257, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    got = bits_per_character(model, tokenizer, ["中" * 200])
    assert got.bits_per_character == pytest.approx(3 * math.log2(257), rel=1e-5)


def test_deterministic_and_leaves_the_mode(model, tokenizer):
    model.train()
    one, other = (bits_per_character(model, tokenizer, ["学习", "", "x"], window=32) for _ in range(2))
    assert one == other and model.training and one.characters == 3
    model.eval()


def test_bad_input(model, tokenizer):
    for texts in ([], [""]):
        with pytest.raises(TextError, match="no text"):
            bits_per_character(model, tokenizer, texts, window=32)
    with pytest.raises(TextError, match="reads 64"):
        bits_per_character(model, tokenizer, ["x"], window=65)
    with pytest.raises(TextError, match="stride"):
        bits_per_character(model, tokenizer, ["x"], window=32, stride=32)


def test_one_text_is_not_scored_character_by_character(model, tokenizer):
    with pytest.raises(TextError, match="one text"):
        bits_per_character(model, tokenizer, "中国", window=32)
    with pytest.raises(TextError, match="surrogate"):
        bits_per_character(model, tokenizer, ["中国", "\ud800"], window=32)


def test_special_tokens_in_a_text_are_scored_as_text(model, tokenizer):
    scored = bits_per_character(model, tokenizer, ["a<s>b"], window=16, stride=8)
    assert scored.tokens == scored.characters == 5
