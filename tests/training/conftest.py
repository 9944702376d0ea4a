"""Throw-away tokenizers and models: bytes as tokens, two layers, a second to train."""

from __future__ import annotations

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers import decoders as token_decoders
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chinese_llama_lab.tokenization.fast import byte_alphabet
from tests.threads import one_thread  # noqa: F401 - a fixture

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BYTES = 256
CHINESE = [
    "中国的首都是北京。",
    "今天天气很好,我们去公园散步。",
    "学习语言需要时间和耐心。",
    "他昨天买了三本书。",
]
ENGLISH = ["The capital of France is Paris.", "We walk in the park when the weather is good."]


def make_tokenizer(extra: int = 0) -> PreTrainedTokenizerFast:
    """256 bytes, BOS, EOS and PAD, and `extra` ordinary new tokens (Han characters) behind them."""
    inner = Tokenizer(models.BPE(dict(byte_alphabet().items()), []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = token_decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_tokens([AddedToken(chr(0x4E00 + n), normalized=False) for n in range(extra)])
    tokenizer.chat_template = CHAT
    return tokenizer


def make_model(rows: int = 259, *, tied: bool = False, layers: int = 2, seed: int = 0, **options):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
        **options,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.pad_token_id = 258
    return model


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model():
    return make_model()
