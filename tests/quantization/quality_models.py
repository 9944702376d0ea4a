"""Models of two layers whose rows divide into blocks of 64, for tests of what quantization costs."""

from __future__ import annotations

import torch
from training.conftest import make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

ROWS = 259


def tiny(seed: int = 0, *, tied: bool = False, rows: int = ROWS, **options) -> LlamaForCausalLM:
    """Random weights, large enough that the predictions are not all alike."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
        initializer_range=0.15,
        **options,
    )
    return LlamaForCausalLM(config).eval()


def saved(folder, seed: int = 0, **options):
    """A folder with a tiny model and its tokenizer."""
    tiny(seed, **options).save_pretrained(folder)
    make_tokenizer(options.get("rows", ROWS) - ROWS).save_pretrained(folder)
    return folder
