"""A 4-bit model whose weights are written out again, for scoring many tokens.

A 4-bit layer restores its weights in every forward pass, or on processors with AVX512-BF16 takes a kernel
that is made for one token at a time. Restored once, the same weights are multiplied as those of any layer:
the same result in less time, with the memory of a 16-bit or 32-bit model.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.packing import unpack


class RoundedLinear(torch.nn.Linear):
    """A linear layer that computes in its weights' dtype and returns its input's, as `Linear4bit` does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """y = Wx + b, rounded to the input's dtype."""
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


def dequantized(model: Any) -> Any:
    """Put a plain linear layer in the place of every 4-bit one of bitsandbytes. The model is changed.

    Weights are what `Linear4bit` itself restores, in its compute dtype. Where it restores and multiplies
    (with `fast=False`, and on processors without AVX512-BF16) the logits are the same to the bit; on a GPU
    its kernels may round otherwise. The AVX512-BF16 kernel rounds scales, inputs and results to bfloat16
    whatever the compute dtype: on SmolLM2 in NF4 it lies 0.0003 to 0.001 nats per token (KL, 256 tokens of
    Chinese) from the plain way, where NF4 itself costs 0.17.

    8-bit layers stay as they are: they round their inputs too, and restored weights alone would be another
    model, closer to the original.

    Args:
        model: with `bitsandbytes.nn.Linear4bit` layers; others are left alone.

    Returns: the same object.

    Raises: QuantizationError: bitsandbytes itself has packed a layer for that kernel, which loses the scales'
        last digits (a model of `load_quantized` keeps them); or a layer is not quantized yet.
    """
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            if type(child).__name__ in ("Linear4bit", "LinearNF4", "LinearFP4"):
                where = f"{name}.{child_name}" if name else child_name
                setattr(module, child_name, _plain(child, where))
    return model


def _plain(layer: Any, name: str) -> RoundedLinear:
    weight = restored(layer, name)
    weight = weight.to(layer.compute_dtype or weight.dtype)
    plain = RoundedLinear(
        layer.in_features, layer.out_features, layer.bias is not None, device="meta", dtype=weight.dtype
    )
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = torch.nn.Parameter(layer.bias.detach().to(weight.dtype), requires_grad=False)
    return plain.train(layer.training)


def restored(layer: Any, name: str = "layer") -> torch.Tensor:
    """The weights [outputs, inputs] of a `Linear4bit`, in the dtype that they were quantized from.

    Raises: QuantizationError: as `dequantized`.
    """
    from bitsandbytes.functional import dequantize_4bit

    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        raise QuantizationError(
            f"{name} is a 4-bit layer that was not quantized", where=name, remedy="move it to a device first"
        )
    unpack(layer, name)
    state = layer.weight.quant_state
    # As one long row: the AVX-512 kernel counts blocks from the start of each row (see `check_rows`).
    flat = copy.copy(state)
    flat.shape = torch.Size([state.shape.numel()])
    values: torch.Tensor = dequantize_4bit(layer.weight.detach().reshape(-1, 1), flat)
    return values.reshape(state.shape)
