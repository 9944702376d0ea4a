"""Merging an adapter into 4-bit weights, against merging first and quantizing then.

An update is small beside the step from one 4-bit value to the next. Added to weights that lie on those values
already, most of it is rounded away again; added to the original weights, it decides for each of them to
which side it is rounded. Three ways from a base and an adapter to a 4-bit model:

- `merge, then quantize`: W ← Q(W₀ + ΔW)
- `quantize, merge, quantize`: W ← Q(Q(W₀) + ΔW), what peft does when it merges into a `Linear4bit`
- `quantize, adapter beside it`: W ← Q(W₀) + ΔW, as QLoRA serves; more to store and to compute. An adapter
  that QLoRA trained has learnt on Q(W₀) and makes up for some of its error; one from 16 bits has not

Weights are restored in float32 and all products are in float32, so that nothing but the rounding of the
linear layers is measured; embedding, head and norms are the merged model's in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from chinese_llama_lab.quantization.agreement import logit_divergence
from chinese_llama_lab.quantization.blockwise import Quantized, dequantize, quantize
from chinese_llama_lab.quantization.codebooks import Kind
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.kinds import FOUR_BIT
from chinese_llama_lab.quantization.texts import blocks_of

MERGE_FIRST = "merge, then quantize"
MERGE_INTO = "quantize, merge, quantize"
BESIDE = "quantize, adapter beside it"
MERGED = "merged, not quantized"
NO_ADAPTER = "base, not quantized"
WAYS = (MERGE_FIRST, MERGE_INTO, BESIDE)


def merge_into_quantized(quantized: Quantized, update: torch.Tensor) -> Quantized:
    """Restore, add, and quantize again in the same way: bit for bit what peft's merge into 4 bits gives.

    Args:
        quantized: 4-bit weights [outputs, inputs]. update: α/r · BA, of their shape.

    Raises: QuantizationError: another shape, or an update that is not finite.
    """
    if update.shape != quantized.shape:
        raise QuantizationError(
            f"the update has shape {list(update.shape)} and the weights {list(quantized.shape)}",
            where="update",
            remedy="take both from the same layer",
        )
    merged = dequantize(quantized) + update
    return quantize(merged, quantized.kind, quantized.block_size, quantized.double, name="the merged weights")


@dataclass
class _Loss:
    """Sums over all linear layers of one way."""

    error: float = 0.0
    signal: float = 0.0
    update: float = 0.0
    kept: float = 0.0

    def add(
        self, way: torch.Tensor, without: torch.Tensor, merged: torch.Tensor, update: torch.Tensor
    ) -> None:
        self.error += _squared(way - merged)
        self.signal += _squared(merged)
        self.update += _squared(update)
        self.kept += float(torch.sum((way - without) * update, dtype=torch.float64))


def merging_loss(
    base: str | Path,
    adapter: str | Path,
    texts: dict[str, Sequence[str]],
    *,
    kind: str = "nf4",
    block_size: int = 64,
    block: int = 256,
    ways: Sequence[str] = WAYS,
    device: str = "cpu",
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Merge an adapter in three ways, and compare each with the merged model before any quantization.

    Two models in float32 are in memory: the merged one and the one that is made of it.

    Args:
        base: folder of the unquantized model that the adapter was trained on.
        adapter: folder as peft saves it, or of a run. Low-rank pairs on linear layers (no DoRA), and anything
            on embedding and head.
        texts: by language, such as `{"zh": […], "en": […]}`.
        kind: `nf4`, `nf4-double`, `fp4` or `fp4-double`. block_size: weights a scale.
        block: tokens that are read at once for the divergence, and the window for bits per character.
        ways: of `WAYS`; and `NO_ADAPTER`, the base's own linear layers: how much there is to lose.
        device: where the models go.
        watch: called with each row as it comes.

    Returns: a row a way: `way`, `kind`, `block_size`; `rms`, the error of the linear layers' weights over the
        RMS of the merged ones; `error_over_update`, the same over the RMS of the update; `update_kept`, how
        much of the update is still in the weights (its projection onto it; 1 is all); and for each language
        `…_kl` (nats per token, from the merged model), `…_kl_99`, `…_same`, `…_bits` (per character). The
        first row, `MERGED`, is the merged model itself.

    Raises: QuantizationError: an unknown kind or way, DoRA, an adapter without low-rank updates.
        AdapterError: what `merge_adapters` refuses.
    """
    from chinese_llama_lab.adapters import merge_adapters
    from chinese_llama_lab.sources.models import load_base

    if kind not in FOUR_BIT:
        raise QuantizationError(
            f"there is no 4-bit kind {kind!r}", where="kind", remedy=f"use one of {', '.join(FOUR_BIT)}"
        )
    if unknown := [way for way in ways if way not in (*WAYS, NO_ADAPTER)]:
        raise QuantizationError(
            f"there is no way {unknown[0]!r}", where="ways", remedy=f"use {'; '.join((*WAYS, NO_ADAPTER))}"
        )
    with TemporaryDirectory() as folder, ExitStack() as stack:
        out = Path(folder) / "merged"
        merge_adapters(Path(base), [Path(adapter)], out, dtype="float32")
        reference, tokenizer = load_base(str(out), device=device)
        model = load_base(str(out), device=device).model
        updates = _Updates(Path(base), Path(adapter), stack, kind, block_size)
        rows = [_row(MERGED, "none", 0, _Loss(), reference, reference, tokenizer, texts, block)]
        if watch is not None:
            watch(rows[0])
        for way in ways:
            loss = updates.apply(model, reference, way)
            how = ("none", 0) if way == NO_ADAPTER else (kind, block_size)
            row = _row(way, *how, loss, reference, model, tokenizer, texts, block)
            rows.append(row)
            if watch is not None:
                watch(row)
    return rows


class _Updates:
    """The adapter's low-rank updates, beside the base's weights that they belong to."""

    def __init__(self, base: Path, adapter: Path, stack: ExitStack, kind: str, block_size: int) -> None:
        from chinese_llama_lab.merging.adapter import Adapter
        from chinese_llama_lab.merging.base import Base

        self.base, self.adapter = Base(base, stack), Adapter(adapter, stack)
        book, self.double = FOUR_BIT[kind]
        self.code = cast(Kind, book)
        self.block_size = block_size
        if self.adapter.settings.dora or not self.adapter.pairs:
            state = "uses DoRA" if self.adapter.settings.dora else "has no low-rank updates"
            raise QuantizationError(
                f"the adapter {state}", where=str(adapter), remedy="give an adapter with plain LoRA"
            )

    def apply(self, model: Any, reference: Any, way: str) -> _Loss:
        """Set the linear layers of `model` to what a way makes of them."""
        loss = _Loss()
        head = model.get_output_embeddings()
        with torch.no_grad():
            for name, module in model.named_modules():
                if not isinstance(module, torch.nn.Linear) or module is head:
                    continue
                merged = reference.get_submodule(name).weight
                made, without, update = self._made(f"{name}.weight", merged, way)
                loss.add(made, without, merged, update)
                module.weight.copy_(made)
        return loss

    def _made(
        self, name: str, merged: torch.Tensor, way: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(weights of a way, the same way without the update, update); float32."""
        plain = self.base.whole(name).float().to(merged.device)
        update = self._update(name, merged)
        if way == NO_ADAPTER:
            return plain, plain, update
        rounded = quantize(plain, self.code, self.block_size, self.double, name=name)
        without = dequantize(rounded)
        if way == MERGE_FIRST:
            return dequantize(self._quantized(merged, name)), without, update
        if way == MERGE_INTO:
            return dequantize(merge_into_quantized(rounded, update)), without, update
        return without + update, without, update

    def _quantized(self, tensor: torch.Tensor, name: str) -> Quantized:
        return quantize(tensor.detach(), self.code, self.block_size, self.double, name=name)

    def _update(self, name: str, merged: torch.Tensor) -> torch.Tensor:
        """α/r · BA; zeros where the adapter has none."""
        pair = self.adapter.pairs.get(name)
        if pair is None:
            return torch.zeros_like(merged)
        a, b = (self.adapter.tensors.get_tensor(key).float().to(merged.device) for key in (pair.a, pair.b))
        return self.adapter.settings.scale(name.removesuffix(".weight")) * (b @ a)


def _squared(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) ** 2


def _row(
    way: str,
    kind: str,
    block_size: int,
    loss: _Loss,
    reference: Any,
    model: Any,
    tokenizer: Any,
    texts: dict[str, Sequence[str]],
    block: int,
) -> dict[str, Any]:
    from chinese_llama_lab.training.metrics import bits_per_character

    exact = model is reference
    row: dict[str, Any] = {
        "way": way,
        "kind": kind,
        "block_size": block_size,
        "rms": 0.0 if exact else math.sqrt(loss.error / loss.signal),
        "error_over_update": 0.0 if exact else math.sqrt(loss.error / loss.update),
        "update_kept": 1.0 if exact else loss.kept / loss.update,
    }
    for language, given in texts.items():
        divergence = None
        if not exact:
            divergence = logit_divergence(reference, model, blocks_of(tokenizer, given, block))
        scored = bits_per_character(model, tokenizer, given, window=block)
        row[f"{language}_kl"] = divergence.mean if divergence else 0.0
        row[f"{language}_kl_99"] = divergence.percentile_99 if divergence else 0.0
        row[f"{language}_same"] = divergence.same_first_choice if divergence else 1.0
        row[f"{language}_bits"] = scored.bits_per_character
    return row
