"""What quantizing does to the weights of a whole model, by kind of layer; and outliers by block size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from chinese_llama_lab.quantization.checks import BLOCK_SIZES, checked
from chinese_llama_lab.quantization.codebooks import Kind
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.kinds import BLOCK, FOUR_BIT, LOADABLE, PLAIN, check_kind
from chinese_llama_lab.quantization.measures import outlier_share, sweep, weight_error

_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ORDER = (*_PARTS, "embed_tokens", "lm_head")


@dataclass
class _Sums:
    """Of all tensors of one kind of layer that were seen so far."""

    tensors: int = 0
    weights: int = 0
    signal: float = 0.0
    error: float = 0.0
    bits: float = 0.0
    outliers: float = 0.0
    worst: float = 0.0
    worst_tensor: str = ""


def errors_by_layer_kind(source: Any, kinds: Iterable[str] = LOADABLE) -> list[dict[str, Any]]:
    """The relative error of each kind of layer's weights, for each kind of quantization.

    4-bit kinds are in blocks of 64. `int8` is bitsandbytes' way: one scale a row, of weights rounded to
    float16 first. It also rounds what goes into a layer, which no measure of weights shows. Embedding and
    head, which loading leaves unquantized, are measured too: the rows say what quantizing them would do.

    Args:
        source: a model that is not quantized, or a folder with safetensors weights, which is read one matrix
            at a time.
        kinds: as `load_quantized` has them.

    Returns: a row a kind of layer and kind of quantization: `layer` (`embed_tokens`, and `lm_head` unless it
        is the same matrix), `kind`, `tensors`, `weights`, `bits_per_weight`, `rms` (root mean square of the
        error over that of the weights, all layers together), `worst_rms` and `worst_tensor`,
        `outliers` (the share of weights beyond four standard deviations of their matrix).

    Raises: QuantizationError: an unknown kind, no weights, NaN or infinity, weights that are quantized
        already (all with the tensor's name).
    """
    chosen = _known(kinds)
    sums: dict[tuple[str, str], _Sums] = {}
    for name, tensor in _matrices(source):
        layer = name.split(".")[-2]
        signal = _length(checked(tensor, name), name)
        outliers = outlier_share(tensor)
        for kind in chosen:
            rms, bits = _error(tensor, kind, signal, name)
            at = sums.setdefault((layer, kind), _Sums())
            at.tensors += 1
            at.weights += tensor.numel()
            at.signal += signal**2
            at.error += (rms * signal) ** 2
            at.bits += bits * tensor.numel()
            at.outliers += outliers * tensor.numel()
            if rms >= at.worst:
                at.worst, at.worst_tensor = rms, name
    if not sums:
        raise QuantizationError("there are no matrices to quantize", where=str(source)[:80])
    layers = sorted({layer for layer, _ in sums}, key=lambda n: (_ORDER.index(n) if n in _ORDER else 99, n))
    return [_row(layer, kind, sums[layer, kind]) for layer in layers for kind in chosen]


def plant_outliers(tensor: torch.Tensor, share: float, sigmas: float = 20.0, seed: int = 0) -> torch.Tensor:
    """A copy in which a share of the weights, drawn by `seed`, is ± `sigmas` standard deviations.

    Raises: QuantizationError: a share outside 0 to 1, or a tensor that cannot be quantized.
    """
    flat = checked(tensor, "tensor").clone()
    if not 0 <= share <= 1:
        raise QuantizationError(f"the share is {share}", where="share", remedy="use 0 to 1")
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(len(flat), generator=generator)[: round(share * len(flat))]
    signs = torch.randint(0, 2, (len(places),), generator=generator) * 2 - 1
    size = sigmas * float(flat.double().std(correction=0))
    flat[places.to(flat.device)] = (signs * size).to(flat)
    return flat.view(tensor.shape)


def outlier_sweep(
    tensor: torch.Tensor,
    shares: Sequence[float] = (0.0, 1e-4, 1e-3, 1e-2),
    sigmas: float = 20.0,
    kinds: Iterable[Kind] = ("nf4",),
    block_sizes: Sequence[int] = BLOCK_SIZES,
    *,
    seed: int = 0,
    name: str = "tensor",
) -> list[dict[str, Any]]:
    """Errors by block size, with more and more outliers planted.

    Returns: a row a share, kind and block size: `tensor`, `planted` (the share), `sigmas`, `kind`,
        `block_size`, `bits_per_weight`, `rms` (over the weights with their outliers) and `rms_before`: the
        error over the RMS before any was planted. Outliers swell the RMS of their tensor, so that the first
        flatters; the second says what the ordinary weights lose.

    Raises: QuantizationError: as `plant_outliers` and `sweep`.
    """
    kinds = list(kinds)
    before = _length(checked(tensor, name), name)
    rows = []
    for share in shares:
        planted = plant_outliers(tensor, share, sigmas, seed)
        swelled = _length(planted, name) / before
        for error in sweep(planted, kinds, block_sizes, name=name):
            rows.append(
                {
                    "tensor": name,
                    "planted": share,
                    "sigmas": sigmas if share else 0.0,
                    "kind": error.kind,
                    "block_size": error.block_size,
                    "bits_per_weight": error.bits_per_weight,
                    "rms": error.rms,
                    "rms_before": error.rms * swelled,
                }
            )
    return rows


def int8_by_row(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [outputs, inputs] as bitsandbytes' `Linear8bitLt` keeps them: (int8 codes, float32 [outputs]).

    The scale of a row is its largest magnitude; a code of 127 stands for it.
    """
    rounded = tensor.detach().half()
    scales = rounded.abs().amax(dim=1).float()
    factors = 127.0 / scales.clamp(min=1e-30)  # a row of zeros has no scale
    return torch.round(rounded * factors.unsqueeze(1)).to(torch.int8), scales


def _known(kinds: Iterable[str]) -> list[str]:
    chosen = [kinds] if isinstance(kinds, str) else list(kinds)
    for kind in chosen:
        check_kind(kind)
    return chosen


def _matrices(source: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, weights) of every matrix; a tied pair once."""
    if isinstance(source, (str, Path)):
        yield from _matrices_of_folder(Path(source))
        return
    for name, parameter in source.named_parameters():
        if parameter.dim() == 2 and name.endswith(".weight"):
            yield name, parameter.detach()


def _matrices_of_folder(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise QuantizationError(
            "the folder holds no safetensors weights", where=str(folder), remedy="give a model's folder"
        )
    config = folder / "config.json"
    tied = config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("tie_word_embeddings")
    for path in paths:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                if tied and name == "lm_head.weight":
                    continue
                if name.endswith(".weight") and len(tensors.get_slice(name).get_shape()) == 2:
                    yield name, tensors.get_tensor(name)


def _length(tensor: torch.Tensor, name: str) -> float:
    length = float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
    if not 0 < length < math.inf:
        state = "zeros alone" if length == 0 else "NaN or infinity"
        raise QuantizationError(f"{name} holds {state}", where=name, remedy="look at how it was made")
    return length


def _error(tensor: torch.Tensor, kind: str, signal: float, name: str) -> tuple[float, float]:
    """(relative error, bits a weight) of one matrix."""
    if kind in FOUR_BIT:
        book, double = FOUR_BIT[kind]
        found = weight_error(tensor, cast(Kind, book), BLOCK, double, name=name)
        return found.rms, found.bits_per_weight
    if kind == "int8":
        codes, scales = int8_by_row(tensor)
        restored = codes.float() * (scales / 127).unsqueeze(1)
        bits = 8 + 32 / tensor.shape[1]
    else:
        dtype = getattr(torch, PLAIN[kind])
        restored = tensor.to(dtype).float()
        bits = 8.0 * dtype.itemsize
    difference = restored - tensor
    return float(torch.linalg.vector_norm(difference, dtype=torch.float64)) / signal, bits


def _row(layer: str, kind: str, at: _Sums) -> dict[str, Any]:
    return {
        "layer": layer,
        "kind": kind,
        "tensors": at.tensors,
        "weights": at.weights,
        "bits_per_weight": at.bits / at.weights,
        "rms": math.sqrt(at.error / at.signal),
        "worst_rms": at.worst,
        "worst_tensor": at.worst_tensor,
        "outliers": at.outliers / at.weights,
    }
