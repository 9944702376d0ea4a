"""A byte-level tokenizer, a model of two layers, and questions small enough to read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers import decoders as token_decoders
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chinese_llama_lab.ceval.questions import Question
from chinese_llama_lab.tokenization.fast import byte_alphabet
from tests.threads import one_thread  # noqa: F401 - a fixture

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED = Question(
    "operating_system",
    "val",
    "7",
    "下列程序的输出是____。\nprint({1: None}[1])  # {subject} %s",
    ("1", "None", "NA", "报错"),
    "B",
    where="val/operating_system_val.csv, row 8",
)
FIRST = Question(
    "operating_system",
    "dev",
    "0",
    "进程与线程相比____。",
    ("更轻量", "有独立的地址空间", "不能并发", "不占内存"),
    "B",
    "1. 线程共享进程的地址空间。\n2. 进程之间互相独立。",
)
SECOND = Question("operating_system", "dev", "1", "2+2=", ("3", "5", "4", "22"), "C", "1. 2+2=4。")
SHOTS = [FIRST, SECOND]


def make_tokenizer(merges: tuple[str, ...] = (), **options) -> PreTrainedTokenizerFast:
    """256 bytes, tokens joined from them, BOS, EOS and PAD."""
    alphabet = dict(byte_alphabet().items())
    pairs = []
    for merge in merges:
        left, right = merge.split(" ")
        alphabet[left + right] = len(alphabet)
        pairs.append((left, right))
    inner = Tokenizer(models.BPE(alphabet, pairs))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = token_decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **options
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def make_model(rows: int, positions: int = 2048) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.pad_token_id = 0
    return model.eval()


def many(count: int, **changes) -> list[Question]:
    """Questions that have nothing in common, balanced in letters and lengths."""
    return [
        replace(
            ASKED,
            id=str(n),
            text="".join(chr(0x4E00 + (n * 97 + k * 31) % 20000) for k in range(12)),
            options=("甲乙", "丙丁", "戊己", "庚辛"),
            answer="ABCD"[n % 4],
            where=f"row {n}",
            **changes,
        )
        for n in range(count)
    ]


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer(("Ġ A", "Ġ B", "Ġ C", "Ġ D"))


@pytest.fixture(scope="session")
def model(tokenizer):
    return make_model(len(tokenizer))


@pytest.fixture(scope="module")
def model_folder(tokenizer, tmp_path_factory):
    """As `load_base` takes it."""
    place = tmp_path_factory.mktemp("model")
    make_model(len(tokenizer), 8192).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place
