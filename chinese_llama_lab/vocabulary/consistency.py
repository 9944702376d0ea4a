"""Refuse a model and a tokenizer that do not belong together, naming the numbers.

The trap this is for: Chinese-LLaMA has 49,953 rows and Chinese-Alpaca's tokenizer 49,954 tokens; loading
one with the other works, and the last token reads a row that is not there (or, after a resize, one that was
never trained).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.vocabulary.errors import VocabularyError

SPARE_ROWS = "spare_vocab_rows"  # written into the config by `extend_embeddings` when it pads


@dataclass(frozen=True)
class Sizes:
    """Everything that says how large the vocabulary is."""

    tokenizer: int
    highest_id: int
    config: int
    embedding: int
    head: int | None
    spare: int


def sizes(model: Any, tokenizer: Any, *, spare_rows: int | None = None) -> Sizes:
    """Collect the numbers, without judging them."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    head = model.get_output_embeddings()
    spare = spare_rows if spare_rows is not None else int(getattr(config, SPARE_ROWS, 0) or 0)
    return Sizes(
        tokenizer=len(tokenizer),
        highest_id=max(tokenizer.get_vocab().values()),
        config=int(config.vocab_size),
        embedding=int(model.get_input_embeddings().weight.shape[0]),
        head=None if head is None else int(head.weight.shape[0]),
        spare=spare,
    )


def check_consistency(model: Any, tokenizer: Any, *, spare_rows: int | None = None) -> Sizes:
    """Raise unless config, tokenizer, embedding, head and pad agree.

    Args:
        model: a transformers causal language model.
        tokenizer: a transformers tokenizer.
        spare_rows: rows that the model has beyond the tokenizer on purpose; by default what
            `extend_embeddings` noted in the config, else 0. Qwen's hub models have some: pass their number.

    Returns: the sizes.

    Raises: VocabularyError naming every disagreement.
    """
    n = sizes(model, tokenizer, spare_rows=spare_rows)
    wrong: list[str] = []
    if n.highest_id + 1 != n.tokenizer:
        wrong.append(f"the tokenizer has {n.tokenizer} tokens but its highest id is {n.highest_id}")
    if n.config != n.embedding:
        wrong.append(f"config.vocab_size is {n.config} and the embedding has {n.embedding} rows")
    if n.head is not None and n.head != n.embedding:
        wrong.append(f"the output head has {n.head} rows and the embedding {n.embedding}")
    if n.tokenizer + n.spare != n.embedding:
        spare = f" (plus {n.spare} spare rows)" if n.spare else ""
        wrong.append(f"the tokenizer has {n.tokenizer} tokens{spare} and the embedding {n.embedding} rows")
    wrong += _head_disagreements(model)
    wrong += _pad_disagreements(model, tokenizer)
    if wrong:
        raise VocabularyError(
            "Model and tokenizer do not belong together: " + "; ".join(wrong) + ".",
            where=_name(model, tokenizer),
            remedy="Load the tokenizer that was saved with this model, or resize with `extend_embeddings`.",
        )
    return n


def _head_disagreements(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    if head is None:
        return []
    wrong = []
    shared = head.weight is model.get_input_embeddings().weight
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    if tied and not shared:
        wrong.append("the config ties embedding and head, but they are two matrices")
    if shared and not tied:
        wrong.append("the config unties embedding and head, but they are one matrix")
    bias = getattr(head, "bias", None)
    if bias is not None and bias.shape[0] != head.weight.shape[0]:
        wrong.append(f"the head has {head.weight.shape[0]} rows and {bias.shape[0]} biases")
    return wrong


def _pad_disagreements(model: Any, tokenizer: Any) -> list[str]:
    wrong = []
    rows = int(model.get_input_embeddings().weight.shape[0])
    generation = getattr(model, "generation_config", None)
    said = {
        "the tokenizer": tokenizer.pad_token_id,
        "config": getattr(model.config, "pad_token_id", None),
        "generation_config": getattr(generation, "pad_token_id", None),
    }
    for who, pad in said.items():
        if pad is not None and not 0 <= pad < rows:
            wrong.append(f"the pad id of {who} is {pad} and the embedding has {rows} rows")
    if said["the tokenizer"] != said["config"]:
        wrong.append(
            f"the pad id is {said['the tokenizer']} in the tokenizer and {said['config']} in the config"
        )
    if said["generation_config"] is not None and said["generation_config"] != said["the tokenizer"]:
        wrong.append(
            f"the pad id is {said['the tokenizer']} in the tokenizer and {said['generation_config']}"
            " in the generation config"
        )
    return wrong


def _name(model: Any, tokenizer: Any) -> str:
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    return f"model {name}, tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"
