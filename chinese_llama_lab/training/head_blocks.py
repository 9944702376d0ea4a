"""A head piece by piece: its logits in a buffer that is kept, and the gradients that belong to them.

Of a head's time on a processor a third goes into memory that was never touched before: the logits of each
part of the matrix, their join, the zeros that a slice's gradient is written into. Where a head is nothing but
a matrix, or one with trainable rows at its end, the products are written into one buffer instead, and there
is no graph. Any other head (quantized, with hooks, under autocast) is called as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from chinese_llama_lab.training.lora import come_last


class Block(NamedTuple):
    """Rows of a head's matrix, (pieces, width), and the parameter that they train, if any."""

    weight: torch.Tensor
    parameter: torch.Tensor | None


def blocks_of(head: Any) -> list[Block] | None:
    """The matrix of `head` from its first row to its last; None where it is more than a matrix."""
    hooks = any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_hf_hook") for m in head.modules())
    device = next(head.parameters()).device.type
    if hooks or torch.is_autocast_enabled(device):
        return None
    if type(head).__name__ == "ModulesToSaveWrapper":
        active = head.active_adapters
        if head.disable_adapters or len(active) != 1 or active[0] not in head.modules_to_save:
            return None
        head = head.modules_to_save[active[0]]
    if type(head).__name__ == "TrainableTokensWrapper":
        return _with_new_rows(head.token_adapter)
    return _plain(head)


def _plain(linear: Any) -> list[Block] | None:
    if type(linear) is not nn.Linear or getattr(linear, "bias", None) is not None:
        return None
    weight = linear.weight
    return [Block(weight.detach(), weight if weight.requires_grad else None)]


def _with_new_rows(layer: Any) -> list[Block] | None:
    """peft's layer of trainable rows, where these are the last ones, as new tokens are."""
    whole = _plain(layer.base_layer)
    active = layer.active_adapters
    if whole is None or layer.merged or layer.disable_adapters or len(active) != 1:
        return None
    matrix = whole[0].weight
    delta, indices = layer.trainable_tokens_delta[active[0]], layer.token_indices[active[0]]
    if not come_last(indices, len(matrix)):
        return None
    new = Block(delta.detach().to(matrix.dtype), delta if delta.requires_grad else None)
    return [Block(matrix[: indices[0]], None), new]


class HeadPasses:
    """Forward and backward of a head for some positions at a time.

    Attributes:
        parameters: those of the head that are trained; `gradients` adds to `sums`, float32, in this order.
    """

    def __init__(self, head: Any, scale: float = 1.0) -> None:
        """`scale`: gradients are that much larger on their way through the head's dtype (for float16)."""
        self.parameters: list[torch.Tensor] = [p for p in head.parameters() if p.requires_grad]
        self._head, self._scale = head, scale
        self._wide = torch.empty(0)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 (n, pieces) of `hidden` (n, width): a buffer, overwritten by the next call."""
        self._piece = hidden.detach().requires_grad_()
        with torch.enable_grad():
            self._graph = self._head(self._piece)
        return self._buffer(len(hidden), self._graph.shape[-1], hidden.device).copy_(self._graph.detach())

    def gradients(self, wide: torch.Tensor, to_hidden: torch.Tensor, sums: Sequence[torch.Tensor]) -> None:
        """From the gradient of the last logits, float32: that of their hidden states, and of parameters."""
        wide = wide.mul_(self._scale) if self._scale != 1 else wide
        found = torch.autograd.grad(self._graph, [self._piece, *self.parameters], wide.to(self._graph.dtype))
        to_hidden.copy_(found[0] / self._scale)
        for kept, new in zip(sums, found[1:], strict=True):
            kept += new.float() / self._scale
        del self._graph

    def _buffer(self, rows: int, pieces: int, device: torch.device) -> torch.Tensor:
        if self._wide.shape[1:] != (pieces,) or len(self._wide) < rows:
            self._wide = torch.empty(rows, pieces, dtype=torch.float32, device=device)
        return self._wide[:rows]


class MatrixPasses(HeadPasses):
    """The same for a head of which `blocks_of` knows the blocks."""

    def __init__(self, blocks: Sequence[Block], scale: float = 1.0) -> None:
        self.parameters = [b.parameter for b in blocks if b.parameter is not None]
        self._blocks, self._scale = blocks, scale
        self._wide = torch.empty(0)
        self._narrow: list[torch.Tensor] = []  # of each block, where the head is not in float32

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self._piece = hidden.detach()
        weights = [block.weight for block in self._blocks]
        wide = self._buffer(len(hidden), sum(map(len, weights)), hidden.device)
        for part, own, weight in zip(self._parts(wide), self._low(wide), weights, strict=True):
            torch.mm(self._piece, weight.t(), out=own)
            if own.dtype != torch.float32:
                part.copy_(own)
        return wide

    def gradients(self, wide: torch.Tensor, to_hidden: torch.Tensor, sums: Sequence[torch.Tensor]) -> None:
        wide = wide.mul_(self._scale) if self._scale != 1 else wide
        open_sums = iter(sums)
        parts = zip(self._parts(wide), self._low(wide), self._blocks, strict=True)
        for at, (part, own, block) in enumerate(parts):
            if own.dtype != torch.float32:
                own.copy_(part)
            if at:
                to_hidden.addmm_(own, block.weight)
            else:
                torch.mm(own, block.weight, out=to_hidden)
            if block.parameter is not None:
                kept = next(open_sums)
                if own.dtype == torch.float32:
                    kept.addmm_(own.t(), self._piece, alpha=1 / self._scale)
                else:
                    kept += (own.t() @ self._piece).float() / self._scale
        if self._scale != 1:
            to_hidden /= self._scale

    def _parts(self, wide: torch.Tensor) -> list[torch.Tensor]:
        return list(wide.split([len(block.weight) for block in self._blocks], dim=1))

    def _low(self, wide: torch.Tensor) -> list[torch.Tensor]:
        """Where each block's products go: into `wide` itself, or a buffer in the head's dtype."""
        parts, dtype = self._parts(wide), self._blocks[0].weight.dtype
        if dtype == torch.float32:
            return parts
        if not self._narrow or len(self._narrow[0]) < len(wide):
            self._narrow = [torch.empty(p.shape, dtype=dtype, device=p.device) for p in parts]
        return [buffer[: len(wide)] for buffer in self._narrow]


def passes_of(head: Any, scale: float = 1.0) -> HeadPasses:
    """By its matrix where `head` is one, else by calling it."""
    blocks = blocks_of(head)
    return HeadPasses(head, scale) if blocks is None else MatrixPasses(blocks, scale)
