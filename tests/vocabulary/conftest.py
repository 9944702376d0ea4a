"""Small models trained on the spot, and the gold files where this checkout has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers import decoders as token_decoders

from chinese_llama_lab.vocabulary.sp_train import train_sentencepiece

CHINESE = [
    "中国人民从此站起来了，中国人民热爱和平。",
    "越来越多的人学习人工智能，人工智能越来越有用。",
    "意大利和西班牙都在南欧，意大利的首都是罗马。",
    "今天天气很好，我们一起去北京大学图书馆看书。",
    "中华人民共和国成立于一九四九年十月一日。",
    "机器学习是人工智能的一个分支，研究计算机怎样学习。",
    "他说：“学习语言要多读、多写、多听。”",
    "北京是中国的首都，上海是中国最大的城市。",
] * 4
ENGLISH = [
    "the people of the world are many and the people sing",
    "def people(x): return x + 1  # people",
    "there are 10 people and 1998 more people in the town",
    "    for i in range(10):\n        print(i)",
    "これはペンです。ありがとうございます。",
    "machine learning is the study of learning machines",
] * 4


def gold(name: str) -> Path:
    """A gold file, or skip: a reader's machine has none."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "gold"
    path = Path(os.environ.get("LAB_GOLD_DIR") or beside) / name
    if not path.is_file():
        pytest.skip(f"no gold artefact {name}: neither ../shared/gold nor LAB_GOLD_DIR is there")
    return path


@pytest.fixture(scope="session")
def small_base():
    """A BPE model like LLaMA: identity, byte fallback, split digits; English with a few Han characters."""
    return train_sentencepiece(
        [*ENGLISH, "中 国 人 的 是"],
        420,
        "bpe",
        byte_fallback=True,
        normalization="identity",
        split_digits=True,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
    ).model


@pytest.fixture(scope="session")
def small_extra():
    return train_sentencepiece(
        CHINESE + ENGLISH[:2] + ["1998年10月"] * 5, 260, "unigram", character_coverage=1.0
    ).model


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")


def byte_bpe(style: str, size: int = 330) -> Tokenizer:
    """A throw-away byte-level BPE tokenizer in the manner of SmolLM2, Llama-3 or Qwen."""
    split = lambda pattern: pre_tokenizers.Split(Regex(pattern), behavior="isolated")  # noqa: E731
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE(ignore_merges=style == "llama3"))
    tokenizer.pre_tokenizer = {
        "smollm2": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "llama3": pre_tokenizers.Sequence([split(LLAMA3), level]),
        "qwen": pre_tokenizers.Sequence([split(QWEN), level]),
    }[style]
    if style == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = token_decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(ENGLISH * 3 + CHINESE[:1], trainer)
    return tokenizer


STYLES = ("smollm2", "llama3", "qwen")
