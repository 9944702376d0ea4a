"""LoRA in thirty lines, to be read beside the formula; peft is what the course trains with.

A frozen matrix W of shape (out, in) gains a product of two thin ones: y = Wx + α/r · B(Ax), with A of shape
(r, in) and B of shape (out, r). B starts at zero, so that nothing changes before the first step. Merging adds
α/r · BA to W. (Hu et al., arXiv 2106.09685; rsLoRA, arXiv 2312.03732, divides by √r.)
"""

from __future__ import annotations

import math

import torch
from torch import nn


class LoraLinear(nn.Module):
    """A frozen linear layer with a trainable low-rank update.

    Args:
        base: the layer; its weight is frozen, and changed only by `merge`.
        rank: r. alpha: α. dropout: of the update's input, while training. rslora: scale by α/√r.
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, *, dropout: float = 0.0, rslora: bool = False
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / (math.sqrt(rank) if rslora else rank)
        self.A = nn.Parameter(torch.empty(rank, base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as peft does
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x of shape (…, in) to (…, out)."""
        y: torch.Tensor = self.base(x)
        return y + self.scale * (self.dropout(x) @ self.A.T @ self.B.T)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """The base layer with the update added to its weight; this module is not to be used after that."""
        self.base.weight += self.scale * self.B @ self.A
        return self.base
