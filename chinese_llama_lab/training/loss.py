"""The language-model loss without the logits of a whole batch.

At 50,000 pieces the logits of 1,024 positions are 200 MB in float32, and autograd keeps two or three copies.
Here the head runs on a few hundred positions at a time, and its gradients are computed in the same pass, as
in Liger's fused loss (arXiv 2410.10989). Positions without a label (the prompt of an instruction) cost no
head at all. Value and gradients equal `model(...).loss`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch.nn import functional

from chinese_llama_lab.training.head_blocks import HeadPasses, passes_of
from chinese_llama_lab.training.instructions import IGNORED
from chinese_llama_lab.training.replay import BeforeAdapting, soft_positions

HEAD_ROWS = 128  # positions whose logits exist at the same time


class _Tokens:
    """Labels that are token ids, (n,)."""

    def __init__(self, ids: torch.Tensor) -> None:
        self._ids = ids

    def loss(self, piece: slice, logits: torch.Tensor) -> torch.Tensor:
        """Sum of the cross-entropies of float32 logits of these rows, nats."""
        return functional.cross_entropy(logits, self._ids[piece], reduction="sum")

    def into_gradient(self, piece: slice, logits: torch.Tensor) -> torch.Tensor:
        """The same sum; the logits are overwritten with its gradient: the chances, less one at the label."""
        wanted = self._ids[piece, None]
        logits.sub_(logits.amax(-1, keepdim=True))
        at_label = logits.gather(-1, wanted)
        sums = logits.exp_().sum(-1, keepdim=True)  # in place throughout: fresh memory is slow to touch
        logits.div_(sums).scatter_add_(-1, wanted, logits.new_full(wanted.shape, -1.0))
        return (sums.log() - at_label).sum()


class _Taught:
    """Labels that are what a teacher says of the next token, from its hidden states (n, width)."""

    def __init__(self, teacher: BeforeAdapting, hidden: torch.Tensor) -> None:
        self._teacher, self._hidden = teacher, hidden

    def loss(self, piece: slice, logits: torch.Tensor) -> torch.Tensor:
        """As in `_Tokens`: the divergence from the teacher, plus the teacher's own entropy."""
        return functional.cross_entropy(logits, self._teacher.chances(self._hidden[piece]), reduction="sum")

    def into_gradient(self, piece: slice, logits: torch.Tensor) -> torch.Tensor:
        """As in `_Tokens`: the gradient is the difference of the chances."""
        chances = self._teacher.chances(self._hidden[piece])
        log_sum = logits.logsumexp(-1, keepdim=True)
        total = (log_sum[:, 0] - (chances * logits).sum(-1)).sum()
        logits.sub_(log_sum).exp_().sub_(chances)
        return total


class _SummedLoss(torch.autograd.Function):
    """Sum of the cross-entropies of a head's logits against labels, in nats."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        labels: _Tokens | _Taught,
        passes: HeadPasses,
        rows: int,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        to_hidden = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
        to_parameters = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        for at in range(0, len(hidden), rows):
            piece = slice(at, at + rows)
            logits = passes.logits(hidden[piece])
            total += labels.into_gradient(piece, logits)
            passes.gradients(logits, to_hidden[piece], to_parameters)
        ctx.save_for_backward(to_hidden, *to_parameters)
        ctx.dtypes = [p.dtype for p in parameters]
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        to_hidden, *to_parameters = ctx.saved_tensors
        by = gradients[0]
        own = [(by * g).to(d) for g, d in zip(to_parameters, ctx.dtypes, strict=True)]
        return (to_hidden * by.to(to_hidden.dtype), None, None, None, *own)


def head_dtype(head: Any) -> torch.dtype:
    """The dtype of a head's first parameter."""
    first: torch.Tensor = next(head.parameters())
    return first.dtype


def summed_loss(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, *, rows: int = HEAD_ROWS
) -> torch.Tensor:
    """Sum of cross-entropies in nats, float32 scalar; differentiable in `hidden` and the head's parameters.

    Args:
        head: module from (n, width) to (n, pieces).
        hidden: (n, width). targets: (n,) token ids, none of them -100.
        rows: how many positions at a time.
    """
    return _summed(head, hidden, _Tokens(targets), rows)


def taught_loss(
    head: Any,
    hidden: torch.Tensor,
    teacher: BeforeAdapting,
    taught: torch.Tensor,
    *,
    rows: int = HEAD_ROWS,
) -> torch.Tensor:
    """As `summed_loss`, against what a teacher says of the next token instead of one token each.

    Its gradient is that of the divergence KL(teacher ‖ model); its value is that plus the teacher's entropy,
    so that it compares with a cross-entropy of text.

    Args:
        teacher: gives the chances. taught: its own hidden states at the same positions, (n, width).
    """
    return _summed(head, hidden, _Taught(teacher, taught), rows)


def _summed(head: Any, hidden: torch.Tensor, labels: _Tokens | _Taught, rows: int) -> torch.Tensor:
    if any(hasattr(p, "to_local") for p in head.parameters()):
        # A head that FSDP2 shards on its own gathers its parameters when it is called: it is called once, and
        # autograd must see it.
        return labels.loss(slice(None), head(hidden).float())
    if torch.is_grad_enabled():
        # Probabilities near 1/50,000 would vanish in float16's gradients: scale them meanwhile.
        passes = passes_of(head, 1024.0 if torch.float16 in (hidden.dtype, head_dtype(head)) else 1.0)
        if hidden.requires_grad or passes.parameters:
            value: torch.Tensor = _SummedLoss.apply(hidden, labels, passes, rows, *passes.parameters)
            return value
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for at in range(0, len(hidden), rows):
        piece = slice(at, at + rows)
        total += labels.loss(piece, head(hidden[piece]).float())
    return total


def _forward(
    self: Any,
    input_ids: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    num_items_in_batch: Any = None,
    replayed: torch.Tensor | None = None,
    teacher: BeforeAdapting | None = None,
    **others: Any,
) -> Any:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    if labels is None:
        return type(self).forward(
            self,
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            **others,
        )
    targets = labels[:, 1:]
    kept = targets != IGNORED
    count = kept.sum() if num_items_in_batch is None else num_items_in_batch
    taught = None
    if teacher is not None and input_ids is not None and position_ids is not None and replayed is not None:
        soft = soft_positions(replayed, position_ids) & kept
        if soft.any():
            taught, kept = teacher.hidden(input_ids, position_ids, replayed, soft), kept & ~soft
    # No cache: with one, transformers does not separate packed documents.
    hidden = self.get_decoder()(
        input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state[:, :-1]
    head = self.get_output_embeddings()
    total = summed_loss(head, hidden[kept], targets[kept])
    if taught is not None and teacher is not None:
        total = total + taught_loss(head, hidden[soft], teacher, taught)
    return CausalLMOutputWithPast(loss=total / count)


@contextmanager
def lean_loss(causal: Any, teacher: BeforeAdapting | None = None) -> Iterator[None]:
    """Within the block, `causal(..., labels=...)` computes its loss as above and returns no logits.

    Args:
        causal: a transformers causal language model (of a PeftModel: `get_base_model()`).
        teacher: whose distribution is the label where `replayed`, bool (sequences, tokens), is given and says
            so, from one token of a replayed document to its next.
    """
    causal.forward = MethodType(partial(_forward, teacher=teacher), causal)
    try:
        yield
    finally:
        del causal.forward
