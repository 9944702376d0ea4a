"""Fast decoding for LLaMA-like models: one token a step, with nothing done twice.

transformers' step is general: cache objects, masks, hooks and argument checks, some 60 Python calls a layer.
With one new token, no padding and no training none of that is needed. Left over are, a layer:

- the seven products of the model's own modules, whose weights are neither copied nor changed; on a processor
  and for one sequence as matrix times vector (`mv`). In bfloat16 it depends on the processor which is faster:
  on an Intel Xeon `linear` took 1.46 times as long for the head (`results/bench_speed_tried.csv`); on an AMD
  EPYC the loop with `mv` was no faster than transformers' forward (`results/bench_speed_compile.csv`). The
  clock does not choose: their bfloat16 results may differ in the last bit, so that tokens of a model could
  differ from run to run
- keys and values written into a buffer that was allocated once
- attention of a group of query heads to the one key head that they share, so that keys are never repeated
- rotation with the cosines that the model itself gives for the position, whatever its rope scaling

What was tried and left out, with figures: `benchmarks/speed.py`. This is greedy decoding alone, and it
does not stop at EOS.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from chinese_llama_lab.inference.bandwidth import SpeedError


def unwrapped(model: Any) -> Any:
    """The transformers model inside a peft model (its LoRA layers stay in it), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_room(model: Any, prompt: int, new_tokens: int) -> None:
    """Raise SpeedError where prompt and new tokens are none, or more than the model's context."""
    if prompt < 1 or new_tokens < 1:
        raise SpeedError(
            f"the prompt has {prompt} tokens and new_tokens is {new_tokens}",
            remedy="use 1 or more of both",
        )
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and prompt + new_tokens > limit:
        raise SpeedError(
            f"{prompt} tokens of prompt and {new_tokens} new ones exceed the model's context of {limit}",
            remedy=f"ask for {max(0, limit - prompt)} new tokens at most, or shorten the prompt",
        )


def check_ids(ids: torch.Tensor) -> None:
    """Raise SpeedError unless `ids` are whole numbers of shape [batch, tokens]."""
    if ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise SpeedError(
            f"the prompt is a tensor of shape {list(ids.shape)} and {ids.dtype}",
            where="ids",
            remedy="give token ids [batch, tokens], int64, all rows equally long",
        )


def _product(module: Any, x: torch.Tensor) -> torch.Tensor:
    """`module(x)`, x of [batch, in]; as matrix times vector for one sequence on a processor."""
    bias: torch.Tensor | None = getattr(module, "bias", None)
    if (
        len(x) == 1
        and type(module) is torch.nn.Linear
        and not x.is_cuda
        and x.dtype == module.weight.dtype
        and "forward" not in module.__dict__  # somebody replaced it: respect that
        and not module._forward_hooks
        and not module._forward_pre_hooks
    ):
        if bias is None:
            return torch.mv(module.weight, x[0])[None]
        return torch.addmv(bias, module.weight, x[0])[None]
    found: torch.Tensor = module(x)
    return found


class FastDecoder:
    """A prompt read once, then one token a step.

    Args:
        model: a `LlamaForCausalLM` of transformers in eval mode: any dtype, GQA or not, tied or not, any rope
            scaling; quantized by bitsandbytes or with LoRA layers too, whose modules are called as they are.

    Raises: SpeedError: a model of another architecture, or one in training mode.
    """

    name = "fast"

    def __init__(self, model: Any) -> None:
        model = unwrapped(model)
        kind = getattr(model.config, "model_type", type(model).__name__)
        if kind != "llama":
            raise SpeedError(
                f"fast decoding is written for LLaMA models, and this one is {kind!r}",
                where=type(model).__name__,
                remedy="use model.generate",
            )
        if model.training:
            raise SpeedError("the model is in training mode", remedy="call model.eval() first")
        self.model = model
        self.layers = list(model.model.layers)
        attention = self.layers[0].self_attn
        self.heads = model.config.num_attention_heads
        self.kv_heads = model.config.num_key_value_heads
        self.width = int(attention.head_dim)
        self.scale = float(attention.scaling)
        self.length = self.room = 0

    @torch.inference_mode()
    def start(self, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """Read prompts [batch, tokens] and return the first new token of each [batch].

        The buffer of keys and values has room for `new_tokens`.

        Raises: SpeedError: ids of another shape, nothing to do, or more than the model's context.
        """
        from transformers import DynamicCache

        check_ids(ids)
        batch, prompt = ids.shape
        check_room(self.model, prompt, new_tokens)
        read = DynamicCache(config=self.model.config)
        logits = self.model(ids, past_key_values=read, use_cache=True, logits_to_keep=1).logits
        self.length, self.room = prompt, prompt + new_tokens
        self.cache = []
        for layer in read.layers:
            pair = []
            for filled in (layer.keys, layer.values):  # [batch, kv_heads, prompt, width]
                buffer = filled.new_empty(batch, self.kv_heads, self.room, self.width)
                buffer[:, :, :prompt] = filled
                pair.append(buffer)
            self.cache.append((pair[0], pair[1]))
            layer.keys = layer.values = None  # the prompt is held twice for one layer at a time
        # rotate_half(x) = roll(x) with the first half's sign changed.
        self.sign = torch.ones(self.width, device=ids.device, dtype=self.cache[0][0].dtype)
        self.sign[: self.width // 2] = -1
        first: torch.Tensor = logits[:, -1].argmax(-1)
        return first

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feed the last tokens [batch] and return the next ones [batch].

        Raises: SpeedError: before `start`, or beyond the room it made.
        """
        if self.length >= self.room:
            raise SpeedError(
                f"the buffer has room for {self.room} tokens, and they are there",
                remedy="call start with more new_tokens",
            )
        decoder, at, batch = self.model.model, self.length, len(tokens)
        x = decoder.embed_tokens(tokens)
        position = torch.full((1, 1), at, device=tokens.device)
        cosine, sine = (part[0, 0] for part in decoder.rotary_emb(x, position))
        sine = sine * self.sign
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            h = _norm(layer.input_layernorm, x)
            query = _product(attention.q_proj, h).view(batch, self.kv_heads, -1, self.width)
            key = _product(attention.k_proj, h).view(batch, self.kv_heads, self.width)
            value = _product(attention.v_proj, h).view(batch, self.kv_heads, self.width)
            keys[:, :, at] = self._rotated(key, cosine, sine)
            values[:, :, at] = value
            # The heads of a group stand where a sequence's positions would: all see the same keys.
            mixed = functional.scaled_dot_product_attention(
                self._rotated(query, cosine, sine),
                keys[:, :, : at + 1],
                values[:, :, : at + 1],
                scale=self.scale,
            )
            x = x + _product(attention.o_proj, mixed.reshape(batch, -1))
            h = _norm(layer.post_attention_layernorm, x)
            inner = mlp.act_fn(_product(mlp.gate_proj, h)) * _product(mlp.up_proj, h)
            x = x + _product(mlp.down_proj, inner)
        self.length = at + 1
        return _product(self.model.lm_head, _norm(decoder.norm, x)).argmax(-1)

    def _rotated(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(x * cosine, x.roll(self.width // 2, -1), sine)


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)


def generate_fast(model: Any, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """Greedy decoding: the prompts and `new_tokens` more, [batch, tokens + new_tokens].

    In float32 the tokens are those of `model.generate(do_sample=False)` without EOS; in bfloat16 the products
    round in another order, so that of two tokens with equal logits the other may win.

    Raises: SpeedError: see FastDecoder.
    """
    decoder = FastDecoder(model)
    tokens = decoder.start(ids, new_tokens)
    found = [tokens]
    for _ in range(new_tokens - 1):
        tokens = decoder.step(tokens)
        found.append(tokens)
    return torch.cat([ids, torch.stack(found, 1)], 1)
