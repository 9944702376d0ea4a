"""Tiny LLaMA folders with a tokenizer of either family, for the tests of GGUF files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chinese_llama_lab.vocabulary.save import save_tokenizer
from chinese_llama_lab.vocabulary.sp_train import train_sentencepiece
from tests.vocabulary.conftest import CHINESE, ENGLISH, byte_bpe

CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
TEXTS = [
    *CHINESE[:8],
    *ENGLISH[:6],
    "  two spaces first",
    "a  1 b   22\n\n\t3",
    "龘𠮷 👩‍👩‍👧 é e\u0301",
    "</s",
    "１２３½",
]


def byte_level(folder: Path, style: str = "smollm2") -> int:
    """Save a byte-level tokenizer; returns its number of tokens."""
    inner = byte_bpe(style)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|end|>", eos_token="<|end|>", unk_token="<|end|>"
    )
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def sentencepiece(folder: Path) -> int:
    """Save a SentencePiece BPE tokenizer as LLaMA's: identity, byte fallback, BOS in front."""
    model = train_sentencepiece(
        [*CHINESE, *ENGLISH],
        700,
        "bpe",
        byte_fallback=True,
        normalization="identity",
        split_digits=True,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
    ).model
    save_tokenizer(model, folder)
    return len(model.pieces)


FAMILIES = {"byte-level": byte_level, "SentencePiece": sentencepiece}


def save_model(folder: Path, rows: int, *, dtype=torch.float32, shard="5GB", seed=0, **options) -> Path:
    """A model of two layers with grouped queries; large random values, so that its logits differ clearly."""
    settings = {
        "vocab_size": rows,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_theta": 5000.0,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.3,
        **options,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def make(folder: Path, family: str = "byte-level", *, spare: int = 0, **options) -> Path:
    """A whole folder: tokenizer and model of as many rows, and `spare` more."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = FAMILIES[family](folder.with_name(folder.name + "-tokenizer"))
    for path in folder.with_name(folder.name + "-tokenizer").iterdir():
        path.rename(folder / path.name)
    return save_model(folder, rows + spare, **options)


def fields(path: Path) -> dict:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Name -> (kind, data as it is in the file)."""
    return {t.name: (t.tensor_type.name, np.array(t.data)) for t in gguf.GGUFReader(path).tensors}
