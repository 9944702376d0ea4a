"""The layers of a LLaMA, with what LoRA training keeps of them cut down to what its backward needs.

Autograd keeps the input of every operation. Of a decoder layer with peft's LoRA that is each norm's input in
float32 and again after scaling, each projection's input once for the frozen weight and once more, cast, for
the adapter, and the three inner values of the MLP. Three functions here, and attention in
`lean_attention.py`, keep one copy in the model's own dtype and compute the rest again from it:

- `_Norm`: an RMSNorm whose weight is frozen keeps its input and one number a token.
- `_Low`: Wx + α/r · B(Ax) keeps x.
- `_SwiGLU`: keeps x, gate and up, not their product.

Value and gradients are those of transformers and peft (bfloat16: to rounding, since peft computes the adapter
in float32 and here its products are rounded like all others; weights and their gradients stay float32).
Hand-written backward passes for LoRA: the idea is Unsloth's; derivations and code are this project's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch.nn import functional

from chinese_llama_lab.training.lean_attention import lean_attention


class _Norm(torch.autograd.Function):
    """w · x / rms(x), computed in float32, as LlamaRMSNorm does; w is frozen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, inverse, weight)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, inverse, weight = ctx.saved_tensors
        g = (gradients[0] * weight).float()
        wide = x.float()
        along = (g * wide).mean(-1, keepdim=True) * inverse.square()
        return g.addcmul_(wide, along, value=-1).mul_(inverse).to(x.dtype), None, None


def _low_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Wx + bias + scale · B(Ax) for x of shape (n, in), a and b in x's dtype."""
    y = functional.linear(x, weight, bias)
    return y.addmm_(x @ a.T, b.T, alpha=scale)


def _low_backward(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients to x, A and B for the gradient g of shape (n, out)."""
    back = g @ b
    to_x = g @ weight
    to_x.addmm_(back, a, alpha=scale)
    return to_x, scale * (back.T @ x), scale * (g.T @ (x @ a.T))


class _Low(torch.autograd.Function):
    """One projection with its adapter."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        ctx.scale, ctx.own = scale, a.dtype
        a, b = a.to(x.dtype), b.to(x.dtype)
        ctx.save_for_backward(x, weight, a, b)
        y = _low_forward(x.reshape(-1, x.shape[-1]), weight, bias, a, b, scale)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight, a, b = ctx.saved_tensors
        g = gradients[0].reshape(-1, gradients[0].shape[-1])
        flat = x.reshape(-1, x.shape[-1])
        to_x, to_a, to_b = _low_backward(g, flat, weight, a, b, ctx.scale)
        return to_x.view(x.shape), None, None, to_a.to(ctx.own), to_b.to(ctx.own), None


class _SwiGLU(torch.autograd.Function):
    """down(silu(gate(x)) · up(x)), each of the three with its adapter."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scales: tuple[float, float, float], *parts: torch.Tensor
    ) -> torch.Tensor:
        gate_w, up_w, down_w = parts[:3]
        low = [part.to(x.dtype) for part in parts[3:]]
        ga, gb, ua, ub, da, db = low
        flat = x.reshape(-1, x.shape[-1])
        gate = _low_forward(flat, gate_w, None, ga, gb, scales[0])
        up = _low_forward(flat, up_w, None, ua, ub, scales[1])
        ctx.scales, ctx.own = scales, parts[3].dtype
        ctx.save_for_backward(x, gate, up, *parts[:3], *low)
        inner = functional.silu(gate).mul_(up)
        return _low_forward(inner, down_w, None, da, db, scales[2]).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, gate, up, gate_w, up_w, down_w, ga, gb, ua, ub, da, db = ctx.saved_tensors
        g = gradients[0].reshape(-1, x.shape[-1])
        flat = x.reshape(-1, x.shape[-1])
        active = functional.silu(gate)
        to_inner, to_da, to_db = _low_backward(g, active * up, down_w, da, db, ctx.scales[2])
        to_up = active.mul_(to_inner)
        to_gate = torch.ops.aten.silu_backward(to_inner.mul_(up), gate)
        to_x, to_ga, to_gb = _low_backward(to_gate, flat, gate_w, ga, gb, ctx.scales[0])
        more, to_ua, to_ub = _low_backward(to_up, flat, up_w, ua, ub, ctx.scales[1])
        found = [to_ga, to_gb, to_ua, to_ub, to_da, to_db]
        return (to_x.add_(more).view(x.shape), None, None, None, None, *(new.to(ctx.own) for new in found))


def _parts(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, float] | None:
    """(W, bias, A, B, scale) of a peft layer that is plain LoRA on a plain, frozen linear; None otherwise.

    Looked at on each call: adapters can be merged, disabled or switched meanwhile.
    """
    base = getattr(layer, "base_layer", None)
    if type(base) is not torch.nn.Linear or base.weight.requires_grad:
        return None
    active = layer.active_adapters
    if len(active) != 1 or layer.merged or layer.disable_adapters or active[0] not in layer.lora_A:
        return None
    name = active[0]
    a, b = layer.lora_A[name], layer.lora_B[name]
    dropout = layer.lora_dropout[name]
    idle = isinstance(dropout, torch.nn.Identity) or not dropout.training
    if not idle or name in layer.lora_variant or a.bias is not None or b.bias is not None:
        return None
    return base.weight, base.bias, a.weight, b.weight, layer.scaling[name]


def _same_dtype(x: torch.Tensor, *weights: torch.Tensor) -> bool:
    # Under autocast the dtype of the products is torch's choice.
    return not torch.is_autocast_enabled(x.device.type) and all(w.dtype == x.dtype for w in weights)


def _low_module(self: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
    parts = _parts(self)
    if parts is None or not _same_dtype(x, parts[0]):
        plain: torch.Tensor = type(self).forward(self, x, *arguments, **options)
        return plain
    y: torch.Tensor = _Low.apply(x, *parts)
    return y


def _norm_module(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    if self.weight.requires_grad or not _same_dtype(hidden_states, self.weight):
        plain: torch.Tensor = type(self).forward(self, hidden_states)
        return plain
    y: torch.Tensor = _Norm.apply(hidden_states, self.weight, self.variance_epsilon)
    return y


def _mlp_module(self: Any, x: torch.Tensor) -> torch.Tensor:
    found = [_parts(layer) for layer in (self.gate_proj, self.up_proj, self.down_proj)]
    parts = [p for p in found if p is not None]
    if len(parts) < 3 or not _same_dtype(x, *(p[0] for p in parts)) or any(p[1] is not None for p in parts):
        plain: torch.Tensor = type(self).forward(self, x)
        return plain
    low = [matrix for p in parts for matrix in (p[2], p[3])]
    y: torch.Tensor = _SwiGLU.apply(x, tuple(p[4] for p in parts), *(p[0] for p in parts), *low)
    return y


def _replacement(module: Any) -> Any:
    """The forward that computes the same with less, or None."""
    from peft.tuners.lora.layer import Linear
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    if type(module) is Linear:
        return _low_module
    if type(module) is LlamaRMSNorm:
        return _norm_module
    if type(module) is LlamaMLP and module.config.hidden_act == "silu":
        return _mlp_module
    return None


@contextmanager
def lean_layers(model: Any) -> Iterator[None]:
    """Within the block, the layers of a peft model of a LLaMA compute as above.

    Args:
        model: a PeftModel. Layers that are not plain LoRA (DoRA, dropout while training, a quantized base)
            and models of other architectures compute as ever.
    """
    changed = []
    for module in model.modules():
        forward = _replacement(module)
        if forward is not None:
            module.forward = MethodType(forward, module)
            changed.append(module)
    try:
        with lean_attention(model.config.get_text_config()):
            yield
    finally:
        for module in changed:
            del module.forward
