"""What llama.cpp needs to know of a LLaMA model's shape, read from `config.json`, and which models it suits.

A GGUF file names its architecture and gives its numbers as `llama.*` keys. llama.cpp computes LLaMA in one
fixed way: RMS norm, SiLU, no biases, rotary positions over the whole head. A config that asks for anything
else is refused, since the file would load and talk nonsense.

Source: `src/models/llama.cpp` and `conversion/llama.py` of llama.cpp; the keys are the `gguf` package's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinese_llama_lab.errors import LabError

if TYPE_CHECKING:
    import torch

SUPPORTED = ("LlamaForCausalLM",)
_ROPE = ("default", "linear", "llama3")


class GgufError(LabError):
    """A model folder cannot be written as GGUF, or not under this name."""


@dataclass(frozen=True)
class Shape:
    """Numbers of a LLaMA model.

    Attributes:
        layers, hidden, feed_forward, heads, kv_heads, head_dim, context: counts.
        epsilon: of the RMS norm. theta: base of the rotary frequencies.
        scaling: factor by which positions are divided (`linear`), or None.
        frequency_factors: what each rotary frequency is divided by (`llama3`), float32 [head_dim / 2].
    """

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    epsilon: float
    theta: float
    scaling: float | None = None
    frequency_factors: torch.Tensor | None = None

    def write(self, writer: Any) -> None:
        """Put the `llama.*` keys into a `gguf.GGUFWriter`."""
        from gguf import RopeScalingType

        writer.add_block_count(self.layers)
        writer.add_context_length(self.context)
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(self.epsilon)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_rope_freq_base(self.theta)
        if self.scaling is not None:
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(self.scaling)


def refuse_other_models(config: dict[str, Any], folder: Path) -> None:
    """Raise `GgufError` for another architecture, or for quantized weights.

    Args:
        config: `config.json`, as it is. folder: for the message.
    """
    where = str(folder / "config.json")
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else config.get("model_type", "none at all")
    if config.get("model_type") != "llama" or name not in (*SUPPORTED, "LLaMAForCausalLM", "llama"):
        raise GgufError(
            f"the architecture is {name}, and only {', '.join(SUPPORTED)} (model_type llama) is exported",
            where=where,
            remedy="use llama.cpp's own convert_hf_to_gguf.py for other models",
        )
    if quantized := config.get("quantization_config"):
        method = (isinstance(quantized, dict) and quantized.get("quant_method")) or "unknown method"
        raise GgufError(
            f"the weights are quantized ({method}); exporting them would round twice",
            where=where,
            remedy="export the 16-bit or 32-bit model; kind='q8_0' quantizes on the way",
        )


def read_shape(folder: Path) -> Shape:
    """The numbers of a folder's model.

    Raises: GgufError: an activation, a bias or a kind of rotary scaling that llama.cpp's LLaMA does not have.
    """
    from transformers import AutoConfig

    where = str(folder / "config.json")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.hidden_act not in ("silu", "swish"):
        raise GgufError(
            f"the activation is {config.hidden_act}, and llama.cpp's LLaMA has SiLU",
            where=where,
            remedy="such a model cannot be exported",
        )
    for name in ("attention_bias", "mlp_bias"):
        if getattr(config, name, False):
            raise GgufError(
                f"its {name} is true, and only models without biases are exported",
                where=where,
                remedy="use llama.cpp's own convert_hf_to_gguf.py",
            )
    rope = dict(config.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    if kind not in _ROPE:
        raise GgufError(
            f"its rotary scaling is {kind!r}; known are {', '.join(_ROPE)}",
            where=where,
            remedy="use llama.cpp's own convert_hf_to_gguf.py",
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        feed_forward=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        context=config.max_position_embeddings,
        epsilon=config.rms_norm_eps,
        theta=float(rope.get("rope_theta", 10000.0)),
        scaling=float(rope["factor"]) if kind == "linear" else None,
        frequency_factors=_frequency_factors(config, head_dim, rope) if kind == "llama3" else None,
    )


def _frequency_factors(config: Any, head_dim: int, rope: dict[str, Any]) -> torch.Tensor:
    """What Llama 3 divides each rotary frequency by: the plain frequencies over those of transformers."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    plain = float(rope["rope_theta"]) ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    return (plain / scaled.double()).float()
