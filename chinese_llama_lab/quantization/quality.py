"""What quantization costs: one row a kind, with everything that this subpackage can say about it.

The measures have files of their own: `agreement.py` (divergence of the logits, greedy agreement),
`layer_errors.py` (weights, by kind of layer), `merging_loss.py` (merging into 4 bits); they can be imported
from here. This file puts them together.

The bundled SmolLM2 is itself made of 4-bit weights (GGUF), written out in float32: what stands as float32
here is not the model as it was trained. Its weights lie on another grid than NF4's and are rounded again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from chinese_llama_lab.quantization.agreement import (
    Agreement,
    Continuation,
    Divergence,
    agreement,
    greedy_agreement,
    greedy_continuations,
    logit_divergence,
)
from chinese_llama_lab.quantization.dequantized import dequantized
from chinese_llama_lab.quantization.described import described
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.layer_errors import errors_by_layer_kind, outlier_sweep, plant_outliers
from chinese_llama_lab.quantization.merging_loss import merge_into_quantized, merging_loss
from chinese_llama_lab.quantization.packing import layers_4bit
from chinese_llama_lab.quantization.texts import blocks_of, encoded

__all__ = [
    "KINDS",
    "Agreement",
    "Continuation",
    "Divergence",
    "agreement",
    "compare_kinds",
    "dequantized",
    "errors_by_layer_kind",
    "greedy_agreement",
    "greedy_continuations",
    "logit_divergence",
    "merge_into_quantized",
    "merging_loss",
    "outlier_sweep",
    "plant_outliers",
]

KINDS = ("fp32", "bf16", "int8", "nf4", "nf4-double", "fp4")


def compare_kinds(
    folder: str | Path,
    kinds: Iterable[str] = KINDS,
    zh_texts: Sequence[str] = (),
    en_texts: Sequence[str] = (),
    prompts: Sequence[str] = (),
    *,
    new_tokens: int = 200,
    block: int = 256,
    compute_dtype: str | None = None,
    device: str = "cpu",
    restore: bool = True,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Load a model in each kind and compare it with itself in float32.

    Beside the float32 model there is one other in memory at a time. The reference's greedy continuations are
    made once.

    Args:
        folder: the unquantized model: a name, a folder or a hub id.
        kinds: as `load_quantized` has them.
        zh_texts, en_texts: held-out text. prompts: text to be continued, each after BOS.
        new_tokens: of a continuation, at most.
        block: tokens read at once for the divergence, and the window for bits per character.
        compute_dtype, device: as for `load_quantized`.
        restore: score 4-bit kinds by `dequantized`: on a CPU the results of bitsandbytes' layers to the bit,
            but for its AVX512-BF16 kernel. False takes the layers, and that kernel where there is one.
        watch: called with each row as it comes.

    Returns: a row a kind: `kind`; `compute_dtype` and `scored` (`4-bit layers`, `restored weights` or
        `as loaded`); `bytes` of all weights as loaded, scales and
        buffers included; for `zh` and `en`: `…_kl` in nats per token, `…_kl_99`
        its 99th percentile, `…_same` first choices, `…_kl_bits` the divergence in bits per character (which
        compares across tokenizers), `…_perplexity` per token (which does not), `…_bits` per character;
        `greedy_share`, `greedy_equal` (tokens before the first difference, mean over the prompts) and
        `greedy_tokens` (their mean length).

    Raises: QuantizationError: no text or no prompt; and what the measures and `load_quantized` raise.
    """
    return list(
        _watched(
            iterate_kinds(
                folder,
                kinds,
                zh_texts,
                en_texts,
                prompts,
                new_tokens=new_tokens,
                block=block,
                compute_dtype=compute_dtype,
                device=device,
                restore=restore,
            ),
            watch,
        )
    )


def iterate_kinds(
    folder: str | Path,
    kinds: Iterable[str],
    zh_texts: Sequence[str],
    en_texts: Sequence[str],
    prompts: Sequence[str],
    *,
    new_tokens: int = 200,
    block: int = 256,
    compute_dtype: str | None = None,
    device: str = "cpu",
    restore: bool = True,
) -> Iterator[dict[str, Any]]:
    """The rows of `compare_kinds`, one at a time."""
    from chinese_llama_lab.quantization.load import load_quantized

    texts = {"zh": list(zh_texts), "en": list(en_texts)}
    for name, given in {**texts, "prompts": list(prompts)}.items():
        if not any(given):
            raise QuantizationError(f"{name}: there is no text", where=name, remedy="give at least one text")
    reference: Any
    reference, tokenizer = load_quantized(folder, "fp32", device=device)
    started = [encoded(tokenizer, prompt) for prompt in prompts]
    continuations = greedy_continuations(reference, started, new_tokens)
    for kind in kinds:
        if kind == "fp32":
            model = reference
        else:
            options: dict[str, Any] = {"compute_dtype": compute_dtype, "device": device}
            model = load_quantized(folder, kind, fast=not restore, **options).model
        size = described(model).bytes
        row: dict[str, Any] = {"kind": kind, **_way(model, restore), "bytes": size}
        for language, given in texts.items():
            row.update(_scores(reference, model, tokenizer, language, given, block))
        agreed = agreement(model, continuations)
        row["greedy_share"] = agreed.share
        row["greedy_equal"] = agreed.mean_equal_before
        row["greedy_tokens"] = sum(agreed.lengths) / len(agreed.lengths)
        del model  # before the next one is loaded
        yield row


def _way(model: Any, restore: bool) -> dict[str, str]:
    """In which dtype products are made, and how the model is scored; restores it if asked."""
    layer = next((layer for _, layer in layers_4bit(model)), None)
    if layer is None:
        return {"compute_dtype": str(model.dtype).removeprefix("torch."), "scored": "as loaded"}
    dtype = layer.compute_dtype
    if restore:
        dequantized(model)
    return {
        "compute_dtype": str(dtype).removeprefix("torch."),
        "scored": "restored weights" if restore else "4-bit layers",
    }


def _scores(
    reference: Any, model: Any, tokenizer: Any, language: str, texts: Sequence[str], block: int
) -> dict[str, float]:
    from chinese_llama_lab.training.metrics import bits_per_character

    divergence = logit_divergence(reference, model, blocks_of(tokenizer, texts, block))
    scored = bits_per_character(model, tokenizer, texts, window=block)
    return {
        f"{language}_kl": divergence.mean,
        f"{language}_kl_99": divergence.percentile_99,
        f"{language}_same": divergence.same_first_choice,
        f"{language}_kl_bits": divergence.nats / math.log(2) / scored.characters,
        f"{language}_perplexity": scored.perplexity,
        f"{language}_bits": scored.bits_per_character,
    }


def _watched(
    rows: Iterator[dict[str, Any]], watch: Callable[[dict[str, Any]], None] | None
) -> Iterator[dict[str, Any]]:
    for row in rows:
        if watch is not None:
            watch(row)
        yield row
