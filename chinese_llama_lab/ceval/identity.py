"""What a score is a score of: hashes of model, tokenizer and questions, and the versions they met."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from chinese_llama_lab.ceval.prompts import choose_shots
from chinese_llama_lab.ceval.questions import Question

_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes")
_AT_ONCE = 1 << 26  # values that are brought to the processor at a time


def model_sha256(model: Any) -> str:
    """Over names, shapes, dtypes and every value of every tensor: adapters and 4-bit weights are among them.

    Two models that differ by training, merging or quantization differ in it, if only in one row. A third of a
    second for 135 million float32 weights.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor!r}".encode())
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.device.type != "meta" and tensor.numel():
            for piece in tensor.detach().reshape(-1).split(_AT_ONCE):
                digest.update(piece.to("cpu").contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """Over what the tokenizer does with a text, and its chat template; not over its name or folder."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is not None:
        about = json.loads(inner.to_str())
        for passing in ("padding", "truncation"):
            about.pop(passing, None)
    else:
        about = sorted(tokenizer.get_vocab().items())
    template = getattr(tokenizer, "chat_template", None)
    return _sha256([about, template, str(tokenizer.bos_token), str(tokenizer.eos_token)])


def questions_sha256(questions: Iterable[Question]) -> str:
    """Over the questions in this order; not over where they were read."""
    return _sha256(
        [
            (q.benchmark, q.subject, q.split, q.id, q.text, q.options, q.answer, q.explanation)
            for q in questions
        ]
    )


def demonstrations_sha256(questions: Iterable[Question], dev: Sequence[Question], shots: int) -> str:
    """Over what is shown before these questions where all shots fit: without shots, over nothing."""
    firsts = {(question.benchmark, question.subject): question for question in questions}
    return questions_sha256(shot for first in firsts.values() for shot in choose_shots(dev, first, shots))


def versions() -> dict[str, str]:
    """Of the packages that logits depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def quantization_of(model: Any) -> dict[str, Any] | None:
    """The quantization settings in the model's config, or None."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    about = config if isinstance(config, dict) else config.to_dict()
    kept: dict[str, Any] = json.loads(json.dumps(about, default=str, sort_keys=True))
    return kept


def adapters_of(model: Any) -> list[str]:
    """Names of the peft adapters that are active."""
    active = getattr(model, "active_adapters", None) if hasattr(model, "peft_config") else None
    return [str(name) for name in (active() if callable(active) else active or [])]


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
