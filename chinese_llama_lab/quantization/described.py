"""What a loaded model takes, by part: counted from the tensors that are there."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

_ORDER = ("embedding", "attention", "mlp", "norms", "head", "adapter", "other")


@dataclass
class Part:
    """One part of a model.

    Attributes:
        part: `embedding`, `attention` and `mlp` (their linear layers), `norms`, `head` (absent where it is
            the embedding), `adapter`, `other` (buffers).
        held_as: `nf4`, `nf4-double`, `fp4`, `fp4-double`, `int8`, or dtypes.
        weights: how many numbers the part stands for. bytes: what is stored for them.
        scales: of these bytes, those for scales and code books.
    """

    part: str
    held_as: str = ""
    weights: int = 0
    bytes: int = 0
    scales: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight, scales included."""
        return 8 * self.bytes / self.weights if self.weights else 0.0

    def row(self) -> dict[str, Any]:
        """As a row of a result."""
        return {**asdict(self), "bits_per_weight": round(self.bits_per_weight, 4)}


@dataclass(frozen=True)
class Described:
    """A model's parts. bits_per_weight: of the quantized layers alone, or of all where none is."""

    parts: list[Part]
    quantized: list[str] = field(repr=False)

    @property
    def bytes(self) -> int:
        """All of the model: weights, scales, buffers."""
        return sum(part.bytes for part in self.parts)

    @property
    def weights(self) -> int:
        """Numbers that the model stands for."""
        return sum(part.weights for part in self.parts)

    @property
    def bits_per_weight(self) -> float:
        chosen = [part for part in self.parts if part.scales] or self.parts
        return 8 * sum(part.bytes for part in chosen) / max(1, sum(part.weights for part in chosen))

    def __getitem__(self, part: str) -> Part:
        return next((p for p in self.parts if p.part == part), Part(part))

    def __repr__(self) -> str:
        lines = [f"{'part':12}{'held as':>22}{'weights':>16}{'bytes':>16}{'bits a weight':>15}"]
        for p in [*self.parts, Part("all", "", self.weights, self.bytes)]:
            lines.append(
                f"{p.part:12}{p.held_as:>22}{p.weights:>16,}{p.bytes:>16,}{p.bits_per_weight:>15.3f}"
            )
        return "\n".join(lines)


def described(model: Any) -> Described:
    """Bytes by part of a loaded model, quantized or not; a tensor that is used twice counts once.

    Layers that are packed for the fast kernel hold their scales twice, unrounded and in bfloat16; both count.
    A model on the meta device is described as it would be.
    """
    parts: dict[str, Part] = {}
    kinds: dict[str, dict[str, None]] = {}
    quantized: list[str] = []
    seen: set[int] = set()
    heads = {id(p) for p in _head(model).parameters()} - {
        id(p) for p in model.get_input_embeddings().parameters()
    }

    def take(tensor: Any) -> int:
        if tensor is None:
            return 0
        key = id(tensor) if tensor.is_meta else tensor.data_ptr()
        if key in seen:
            return 0
        seen.add(key)
        return int(tensor.numel() * tensor.element_size())

    modules = dict(model.named_modules())
    for name, p in model.named_parameters():
        module = modules[name.rpartition(".")[0]]
        part = "head" if id(p) in heads else _part(name, module)
        here = parts.setdefault(part, Part(part))
        state = getattr(p, "quant_state", None)
        count, scales, held = p.numel(), 0, str(p.dtype).removeprefix("torch.")
        kept = getattr(module, "kept_state", None)
        if state is not None:
            count = math.prod(state.shape)
            scales = sum(take(t) for t in _scales(state)) + sum(take(t) for t in _scales(kept))
            held = state.quant_type + ("-double" if (kept or state).nested else "")
            quantized.append(name)
        elif type(p).__name__ == "Int8Params":
            row_scales = p.SCB if getattr(p, "SCB", None) is not None else module.state.SCB
            scales, held = take(row_scales), "int8"
            quantized.append(name)
        here.weights += count
        here.scales += scales
        here.bytes += take(p) + scales
        kinds.setdefault(part, {})[held] = None
    for _, buffer in model.named_buffers():
        other = parts.setdefault("other", Part("other", "buffers"))
        other.weights += buffer.numel()
        other.bytes += take(buffer)
    for part, held_as in kinds.items():
        parts[part].held_as = ", ".join(held_as)
    return Described([parts[part] for part in _ORDER if part in parts], quantized)


def _head(model: Any) -> Any:
    head = model.get_output_embeddings()
    return head if head is not None else type(model.get_input_embeddings())(1, 1)


def _scales(state: Any) -> list[Any]:
    if state is None:
        return []
    nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [state.absmax, state.code, *nested]


def _part(name: str, module: Any) -> str:
    if ".lora_" in name or "trainable_tokens_delta" in name or "modules_to_save" in name:
        return "adapter"
    if "embed_tokens" in name or type(module).__name__ == "Embedding":
        return "embedding"
    if "norm" in name.lower():
        return "norms"
    if ".self_attn." in name:
        return "attention"
    return "mlp" if ".mlp." in name else "other"
