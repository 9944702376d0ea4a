"""Attention for training on a CPU in bfloat16: one key head at a time, small enough for the cache.

torch's attention for CPUs is fast forwards; its backward pass takes four times as long, and transformers
hands it keys and values repeated for each query head. Here the queries that share a key head are one matrix,
each product is one matrix product, and the backward pass computes the probabilities again rather than keep
them. Value and gradients are those of attention, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAME = "lean"


def _bias(mask: torch.Tensor | None, batch: int, length: int, like: torch.Tensor) -> torch.Tensor:
    """0 where a query sees a key, else a number that leaves it no weight; (batch, length, length)."""
    hidden = torch.finfo(like.dtype).min / 2  # added to a score it must not become infinite
    if mask is None:
        future = like.new_full((length, length), hidden).triu_(1)
        return future.expand(batch, -1, -1)
    if mask.dtype == torch.bool:
        seen = mask[:, 0].expand(batch, -1, -1)
        return torch.where(seen, like.new_zeros(()), like.new_full((), hidden))
    return mask[:, 0].to(like.dtype).clamp_min(hidden).expand(batch, -1, -1)


class _Attention(torch.autograd.Function):
    """softmax(scale · QKᵀ) V where the mask lets it.

    q is (batch, heads, length, width); k and v have one head for several of q's.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        out = torch.empty(q.shape, dtype=q.dtype)
        bias = _bias(mask, len(q), q.shape[2], q)
        for b, j, heads, several in _groups(q, k, bias):
            p = _probabilities(_rows(q[b, heads]), k[b, j], several, scale)
            torch.mm(p, v[b, j], out=out[b, heads].view(-1, v.shape[-1]))
        ctx.save_for_backward(q, k, v, mask)  # the mask is the same tensor in all layers, the bias is not
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        q, k, v, mask = ctx.saved_tensors
        bias = _bias(mask, len(q), q.shape[2], q)
        to_q, to_k, to_v = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
        for b, j, heads, several in _groups(q, k, bias):
            queries, g = _rows(q[b, heads]), _rows(gradients[0][b, heads])
            p = _probabilities(queries, k[b, j], several, ctx.scale)
            torch.mm(p.T, g, out=to_v[b, j])
            # Through the softmax: p · (∂p − Σ p · ∂p).
            scores = torch.ops.aten._softmax_backward_data(g @ v[b, j].T, p, -1, p.dtype)
            torch.mm(scores, k[b, j], out=to_q[b, heads].view(-1, k.shape[-1]))
            torch.mm(scores.T, queries, out=to_k[b, j])
        return to_q.mul_(ctx.scale), to_k.mul_(ctx.scale), to_v, None, None


def _groups(
    q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor
) -> Iterator[tuple[int, int, slice, torch.Tensor]]:
    """(sequence, key head, its query heads, bias of their rows)."""
    shared = q.shape[1] // k.shape[1]
    for b in range(len(q)):
        several = bias[b].repeat(shared, 1)
        for j in range(k.shape[1]):
            yield b, j, slice(j * shared, (j + 1) * shared), several


def _rows(heads: torch.Tensor) -> torch.Tensor:
    return heads.reshape(-1, heads.shape[-1])


def _probabilities(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.softmax(torch.addmm(bias, q, k.T, alpha=scale), -1)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' interface. Returns (batch, length, heads, width)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    length, width = query.shape[2:]
    plain = (
        query.dtype == key.dtype == value.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and key.shape[2] == length  # no cache
        and not dropout
        and not torch.is_autocast_enabled("cpu")
        and others.get("is_causal") is None
        and getattr(module, "is_causal", True)
        and others.get("position_bias") is None
        and (attention_mask is None or attention_mask.shape[1] == 1)
    )
    if not plain:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return found
    out: torch.Tensor = _Attention.apply(query, key, value, attention_mask, scaling or width**-0.5)
    return out.transpose(1, 2).contiguous(), None


@contextmanager
def lean_attention(config: Any) -> Iterator[None]:
    """Within the block, models with this transformers config attend as above where that is the faster way.

    A model with another attention than `sdpa`, or on a machine with a GPU, attends as ever.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if config._attn_implementation != "sdpa" or torch.cuda.is_available():
        yield
        return
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
