"""The shape of a LLaMA-like model, from a name or a config: all that its memory depends on.

No weights are read and nothing is downloaded. The shapes of the course's models are built in, because most of
their configs lie behind a licence page. Counts equal those of the model that transformers builds on the meta
device (`tests/inference/test_shapes.py`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chinese_llama_lab.inference.configs import fields_of
from chinese_llama_lab.inference.errors import EstimateError

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TYPES = ("llama", "mistral", "qwen2", "qwen3")  # dense, RMSNorm, SwiGLU, rotary positions


@dataclass(frozen=True)
class Shape:
    """Sizes of a dense LLaMA-like model.

    Attributes:
        name: for messages. vocabulary: rows of the embedding. width: of the residual stream.
        inner: of the MLP.
        layers, heads, kv_heads, head_width: of attention; kv_heads < heads is GQA.
        tied: whether embedding and head are one matrix.
        biased: projections with a bias. head_norms: norms of queries and keys (Qwen3).
    """

    name: str
    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    tied: bool = False
    biased: tuple[str, ...] = ()
    head_norms: bool = False

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(rows, columns) of each linear matrix of one layer, by module name."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q_proj": (queries, self.width),
            "k_proj": (keys, self.width),
            "v_proj": (keys, self.width),
            "o_proj": (self.width, queries),
            "gate_proj": (self.inner, self.width),
            "up_proj": (self.inner, self.width),
            "down_proj": (self.width, self.inner),
        }

    @property
    def linear(self) -> int:
        """Weights of the linear layers, without the head."""
        return self.layers * sum(rows * columns for rows, columns in self.matrices().values())

    @property
    def matrix(self) -> int:
        """Weights of the embedding; as many again in the head of a model that is not tied."""
        return self.vocabulary * self.width

    @property
    def small(self) -> int:
        """Weights of norms and biases."""
        matrices = self.matrices()
        layer = 2 * self.width + sum(matrices[name][0] for name in self.biased)
        layer += 2 * self.head_width if self.head_norms else 0
        return self.layers * layer + self.width

    @property
    def parameters(self) -> int:
        """All parameters; a tied pair counts once."""
        return self.linear + self.matrix * (1 if self.tied else 2) + self.small

    def with_vocabulary(self, rows: int) -> Shape:
        """The same model with another number of rows, as after `resize_token_embeddings`."""
        return replace(self, vocabulary=rows)


def _llama(
    name: str,
    vocabulary: int,
    width: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int = 0,
    **rest: Any,
) -> Shape:
    head_width = rest.pop("head_width", width // heads)
    return Shape(name, vocabulary, width, inner, layers, heads, kv_heads or heads, head_width, **rest)


_QKV = ("q_proj", "k_proj", "v_proj")
_ALL = (
    _llama("llama-7b", 32000, 4096, 11008, 32, 32),
    _llama("llama-13b", 32000, 5120, 13824, 40, 40),
    _llama("llama-33b", 32000, 6656, 17920, 60, 52),
    _llama("llama-2-7b", 32000, 4096, 11008, 32, 32),
    _llama("llama-2-13b", 32000, 5120, 13824, 40, 40),
    _llama("chinese-llama-7b", 49953, 4096, 11008, 32, 32),
    _llama("chinese-alpaca-7b", 49954, 4096, 11008, 32, 32),
    _llama("chinese-llama-13b", 49953, 5120, 13824, 40, 40),
    _llama("chinese-alpaca-13b", 49954, 5120, 13824, 40, 40),
    _llama("chinese-llama-2-7b", 55296, 4096, 11008, 32, 32),
    _llama("chinese-llama-2-13b", 55296, 5120, 13824, 40, 40),
    _llama("llama-3-8b", 128256, 4096, 14336, 32, 32, 8),
    _llama("llama-3.2-3b", 128256, 3072, 8192, 28, 24, 8, tied=True),
    _llama("tinyllama", 32000, 2048, 5632, 22, 32, 4),
    _llama("qwen-7b", 151936, 4096, 11008, 32, 32, biased=_QKV),
    _llama("qwen2.5-0.5b", 151936, 896, 4864, 24, 14, 2, tied=True, biased=_QKV),
    _llama("qwen2.5-7b", 152064, 3584, 18944, 28, 28, 4, biased=_QKV),
    _llama("qwen3-8b", 151936, 4096, 12288, 36, 32, 8, head_width=128, head_norms=True),
    _llama("smollm2", 49152, 576, 1536, 30, 9, 3, tied=True),
    _llama("smollm2-zh", 54152, 576, 1536, 30, 9, 3, tied=True),  # this project's, with 5,000 new tokens
    _llama("smollm2-360m", 49152, 960, 2560, 32, 15, 5, tied=True),
    _llama("smollm2-1.7b", 49152, 2048, 8192, 24, 32, 32, tied=True),
)
SHAPES: Mapping[str, Shape] = {shape.name: shape for shape in _ALL}
# What was trained further without new tokens has its base's shape. No versions (`-chat-v1.0`): TinyLlama's
# early ones differ in their vocabulary.
_SAME_SHAPE = re.compile(r"(-(instruct|chat|hf|base))+$")
_HUB: Mapping[str, str] = {  # hub id, in lower case and without what `_SAME_SHAPE` strips → built-in name
    "huggyllama/llama-7b": "llama-7b",
    "huggyllama/llama-13b": "llama-13b",
    "huggyllama/llama-30b": "llama-33b",
    "meta-llama/llama-2-7b": "llama-2-7b",
    "meta-llama/llama-2-13b": "llama-2-13b",
    "hfl/chinese-llama-2-7b": "chinese-llama-2-7b",
    "hfl/chinese-alpaca-2-7b": "chinese-llama-2-7b",
    "hfl/chinese-llama-2-13b": "chinese-llama-2-13b",
    "hfl/chinese-alpaca-2-13b": "chinese-llama-2-13b",
    "meta-llama/meta-llama-3-8b": "llama-3-8b",
    "meta-llama/llama-3.1-8b": "llama-3-8b",
    "meta-llama/llama-3.2-3b": "llama-3.2-3b",
    "hfl/llama-3-chinese-8b": "llama-3-8b",
    "tinyllama/tinyllama-1.1b-chat-v1.0": "tinyllama",
    "tinyllama/tinyllama-1.1b-intermediate-step-1431k-3t": "tinyllama",
    "qwen/qwen-7b": "qwen-7b",
    "qwen/qwen2.5-0.5b": "qwen2.5-0.5b",
    "qwen/qwen2.5-7b": "qwen2.5-7b",
    "qwen/qwen3-8b": "qwen3-8b",
    "huggingfacetb/smollm2-135m": "smollm2",
    "huggingfacetb/smollm2-360m": "smollm2-360m",
    "huggingfacetb/smollm2-1.7b": "smollm2-1.7b",
}


def known_shape(name: str) -> Shape | None:
    """The built-in shape of a name or hub id; None where there is none. Case does not matter."""
    stripped = _SAME_SHAPE.sub("", name.lower())
    return SHAPES.get(stripped) or SHAPES.get(_HUB.get(stripped) or _HUB.get(name.lower(), ""))


def shape_of(source: Any) -> Shape:
    """The shape of a model.

    Args:
        source: a built-in name (`SHAPES`) or the hub id of one; a hub id whose config is in the hub's cache;
            a folder with `config.json`, or such a file; a mapping with a config's fields; a transformers
            config, or a model that has one; or a Shape.

    Raises: EstimateError: an unknown name, a config with fields missing or impossible, or of another family.
    """
    if isinstance(source, Shape):
        return source
    if isinstance(source, (str, Path)):
        return _named(source)
    if isinstance(source, Mapping):
        return _from_fields(source)
    found = fields_of(source)
    if found is None:
        raise EstimateError(
            f"{type(source).__name__} is neither a name nor a config",
            where="config",
            remedy=f"pass one of {', '.join(SHAPES)}, a folder, or a config's fields as a mapping",
        )
    return _from_fields(found)


def _named(source: str | Path) -> Shape:
    name = str(source)
    known = known_shape(name)
    if known is not None:
        return known
    fields = fields_of(source)
    if fields is None:
        near = difflib.get_close_matches(name.lower(), [*SHAPES, *_HUB], 3)
        meant = f"did you mean {' or '.join(near)}? Otherwise " if near else ""
        raise EstimateError(
            f"no shape of {name!r} is known here, and nothing is downloaded for an estimate",
            where="config",
            remedy=f"{meant}pass the model's config.json, which is all that is needed, or a folder that holds"
            f" it; or a built-in name: {', '.join(SHAPES)}",
        )
    return _from_fields(fields)


def _from_fields(fields: Mapping[str, Any]) -> Shape:
    inner = fields.get("text_config")
    if isinstance(inner, Mapping):
        fields = inner
    name = str(fields.get("_name_or_path") or fields.get("model_type") or "config")
    family = str(fields.get("model_type", "llama"))
    if family not in _TYPES:
        raise EstimateError(
            f"a {family!r} is not counted here: its layers differ from LLaMA's",
            where=name,
            remedy=f"pass a config of {', '.join(_TYPES)}, or a Shape",
        )
    missing = [field for field in _NEEDED if fields.get(field) is None]
    if missing:
        raise EstimateError(
            f"the config lacks {', '.join(missing)}",
            where=name,
            remedy="add them; they stand in the model's config.json",
        )
    heads = fields["num_attention_heads"]
    sizes = {field: fields[field] for field in _NEEDED}
    sizes["num_key_value_heads"] = fields.get("num_key_value_heads") or heads
    sizes["head_dim"] = fields.get("head_dim") or 0
    for field, value in sizes.items():
        least = 0 if field == "head_dim" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise EstimateError(
                f"{field} = {value!r} is not a size",
                where=name,
                remedy="write a whole number of at least 1",
            )
    if not sizes["head_dim"] and sizes["hidden_size"] % heads:
        raise EstimateError(
            f"hidden_size {sizes['hidden_size']} is no multiple of {heads} heads, and head_dim is missing",
            where=name,
            remedy="add head_dim",
        )
    if heads % sizes["num_key_value_heads"]:
        raise EstimateError(
            f"{heads} heads cannot share {sizes['num_key_value_heads']} key-value heads",
            where=name,
            remedy="num_key_value_heads has to divide num_attention_heads",
        )
    biased: tuple[str, ...] = _QKV if family == "qwen2" else ()
    if fields.get("attention_bias") and family != "qwen2":
        biased = (*_QKV, "o_proj")
    if fields.get("mlp_bias"):
        biased += ("gate_proj", "up_proj", "down_proj")
    return Shape(
        name,
        sizes["vocab_size"],
        sizes["hidden_size"],
        sizes["intermediate_size"],
        sizes["num_hidden_layers"],
        heads,
        sizes["num_key_value_heads"],
        sizes["head_dim"] or sizes["hidden_size"] // heads,
        tied=bool(fields.get("tie_word_embeddings", False)),
        biased=biased,
        head_norms=family == "qwen3",
    )
