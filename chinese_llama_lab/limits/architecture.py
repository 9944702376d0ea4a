"""What a config.json says of a model's architecture: heads, MLP, positions, context.

Four families write the same facts under different names. The names that are read here, and the traps:
`multi_query_group_num` (ChatGLM) is the number of key-value heads; `intermediate_size` of the first Qwen
counts two of the three matrices of its MLP together, so that its inner width is half of it; a config from
before GQA has no `num_key_value_heads`, which then equals the heads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.limits.errors import NativeError
from chinese_llama_lab.paths import data_dir

_HEADS = ("num_attention_heads", "n_head")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer")
_WIDTH = ("hidden_size", "n_embd")
_INNER = ("intermediate_size", "ffn_hidden_size")
_THETA = ("rope_theta", "rotary_emb_base")
_GATED = ("silu", "swish", "swiglu")
# Families whose code has a gated MLP and rotary positions whatever the config says; `hidden_act` names the
# gate's function where it is there. GPT-2, say, is not among them.
_FAMILIES = ("llama", "mistral", "yi", "qwen", "qwen2", "qwen3", "baichuan", "chatglm")


@dataclass(frozen=True)
class Architecture:
    """What a config says; None where it says nothing.

    Attributes:
        attention: `MHA` (a key-value head for each head), `GQA` (shared by some), `MQA` (one for all).
        heads, kv_heads, layers, width, inner, vocabulary: counts; inner is of one matrix of the MLP.
        mlp: `SwiGLU`, or the activation's name where it is another.
        position: `RoPE`. rope_theta: the base of its wavelengths.
        context: tokens it was built for. dynamic: whether it is stretched beyond that when it is used.
    """

    attention: str
    heads: int
    kv_heads: int
    layers: int
    width: int
    inner: int
    vocabulary: int
    mlp: str
    position: str
    rope_theta: float | None
    context: int | None
    dynamic: bool = False

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values in 16 bits; heads as wide as the width divided by the heads."""
        return 2 * self.layers * self.kv_heads * (self.width // self.heads) * 2


def attention_kind(heads: int, kv_heads: int) -> str:
    """`MHA`, `GQA` or `MQA`.

    Raises: NativeError: counts below 1, or heads that cannot be shared out evenly.
    """
    if kv_heads < 1 or heads < kv_heads or heads % kv_heads:
        raise NativeError(
            f"{heads} heads cannot share {kv_heads} heads of keys and values",
            where="num_attention_heads, num_key_value_heads",
            remedy="the second has to divide the first",
        )
    return "MHA" if kv_heads == heads else "MQA" if kv_heads == 1 else "GQA"


def describe(config: Any) -> Architecture:
    """Read a config: a mapping with the fields of config.json, a transformers config, or a model.

    Raises: NativeError: another family, a field missing that is needed, or a number that cannot be.
    """
    config = getattr(config, "config", config)
    fields: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    family = str(fields.get("model_type", ""))
    if family not in _FAMILIES:
        raise NativeError(
            f"a {family or 'nameless'!r} model is not read here",
            where="model_type",
            remedy=f"give a config of {', '.join(_FAMILIES)}",
        )
    heads = _count(fields, _HEADS)
    kv_heads = heads
    if fields.get("num_key_value_heads") is not None:
        kv_heads = _count(fields, ("num_key_value_heads",))
    elif fields.get("multi_query_attention"):
        kv_heads = _count(fields, ("multi_query_group_num",))
    inner = _count(fields, _INNER)
    activation = str(fields.get("hidden_act", "silu"))
    theta = next((fields[name] for name in _THETA if fields.get(name) is not None), None)
    if theta is None:  # transformers 5 keeps it in a mapping of its own
        theta = (fields.get("rope_parameters") or {}).get("rope_theta")
    # Qwen and ChatGLM: seq_length is what it was trained on, the other field what it stretches to.
    context = fields.get("seq_length") or fields.get("max_position_embeddings")
    return Architecture(
        attention=attention_kind(heads, kv_heads),
        heads=heads,
        kv_heads=kv_heads,
        layers=_count(fields, _LAYERS),
        width=_count(fields, _WIDTH),
        inner=inner // 2 if family == "qwen" else inner,
        vocabulary=_count(fields, ("padded_vocab_size", "vocab_size")),
        mlp="SwiGLU" if activation in _GATED else activation,
        position="RoPE",
        rope_theta=None if theta is None else float(theta),
        context=None if context is None else int(context),
        dynamic=bool(fields.get("use_dynamic_ntk") or fields.get("rope_scaling")),
    )


def published_configs() -> dict[str, Mapping[str, Any]]:
    """Model → the fields of its config.json that matter here, as they were read (`data/native_configs.json`).

    Raises: NativeError: the file is missing or damaged.
    """
    path = data_dir() / "native_configs.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: entry["config"] for name, entry in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NativeError(
            f"the configs cannot be read: {error}", where=str(path), remedy="restore the file"
        ) from error


def _count(fields: Mapping[str, Any], names: tuple[str, ...]) -> int:
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        raise NativeError(
            f"the config lacks {' or '.join(names)}", where=names[0], remedy="add it; config.json has it"
        )
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise NativeError(f"{name} is {value!r}", where=name, remedy="write a whole number of at least 1")
    return value
