"""Rows that have nothing to learn from: what a mean over no labels does to a run, and a softmax over no keys.

A row whose labels are all -100 appears where a prompt is masked first and the row is cut afterwards. Its mean
loss is 0/0. Whether that poisons the weights, or the log alone, depends on how the mean was written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from chinese_llama_lab.training.instructions import IGNORED
from chinese_llama_lab.training.loss import lean_loss

Pair = tuple[torch.Tensor, torch.Tensor]  # ids and labels, int64 (sequences, tokens)


def _torch_mean(model: Any, batch: list[Pair]) -> torch.Tensor:
    means = []
    for ids, labels in batch:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float().flatten(0, 1)
        means.append(functional.cross_entropy(logits, labels[:, 1:].reshape(-1), ignore_index=IGNORED))
    return torch.stack(means).mean()


def _hand_mean(model: Any, batch: list[Pair]) -> torch.Tensor:
    means = []
    for ids, labels in batch:
        chances = model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        there = labels[:, 1:] != IGNORED
        costs = -chances.gather(-1, labels[:, 1:, None].clamp(min=0))[..., 0]
        means.append((costs * there).sum() / there.sum())
    return torch.stack(means).mean()


def _package(model: Any, batch: list[Pair]) -> torch.Tensor:
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    # As the Trainer does it: the labels of the whole batch, not of a micro-batch.
    items = sum(int((labels[:, 1:] != IGNORED).sum()) for _, labels in batch)
    with lean_loss(causal):
        parts = [
            model(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(items)).loss
            for ids, labels in batch
        ]
    return torch.stack(parts).sum()


PACKAGE = "this package: sum / labels of the batch"
WAYS: dict[str, Callable[[Any, list[Pair]], torch.Tensor]] = {
    "torch's mean of each row": _torch_mean,
    "sum / count of each row, by hand": _hand_mean,
    PACKAGE: _package,
}


def masked_rows(model: Any, ids: torch.Tensor, *, learning_rate: float = 1e-3) -> list[dict[str, Any]]:
    """One optimizer step on batches with rows that have no label, with the mean taken in three ways.

    Args:
        model: a causal language model, plain or peft; some of its parameters require a gradient. They are put
            back after each step.
        ids: token ids, int64 (2, tokens): two rows of a batch.
        learning_rate: of the AdamW step.

    Returns: a row for each batch (`all labels`, `one row without`, `no label at all`) and way: `batch`,
        `way`, `loss` (text, since it may be `nan`), `gradient` (`finite`, `zero` or `nan`; `none` where there
        was no backward pass), `weights` (`changed`, `unchanged` or `nan` after the step; `unchanged, stopped`
        where the run ends before it: this package's trainer takes no step on a loss that is no number).
    """
    ids = ids.to(model.device)
    none = torch.full_like(ids[:1], IGNORED)
    first, second = (ids[:1], ids[:1]), (ids[1:], ids[1:])
    batches = {
        "all labels": [first, second],
        "one row without": [first, (ids[1:], none)],
        "no label at all": [(ids[:1], none), (ids[1:], none)],
    }
    return [
        {"batch": name, "way": way, **_one_step(model, batch, way, learning_rate)}
        for name, batch in batches.items()
        for way in WAYS
    ]


def _one_step(model: Any, batch: list[Pair], way: str, rate: float) -> dict[str, str]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    try:
        loss = WAYS[way](model, batch)
        if way == PACKAGE and not torch.isfinite(loss):
            return {
                "loss": f"{float(loss.detach()):.3f}",
                "gradient": "none",
                "weights": "unchanged, stopped",
            }
        loss.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        finite = all(bool(g.isfinite().all()) for g in gradients)
        zero = finite and not any(bool(g.any()) for g in gradients)
        optimizer.step()
        whole = all(bool(p.isfinite().all()) for p in parameters)
        same = all(torch.equal(p, value) for p, value in zip(parameters, start, strict=True))
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, start, strict=True):
                p.copy_(value)
                p.grad = None
    return {
        "loss": f"{float(loss.detach()):.3f}",
        "gradient": "zero" if zero else "finite" if finite else "nan",
        "weights": ("unchanged" if same else "changed") if whole else "nan",
    }


def masked_attention() -> list[dict[str, str]]:
    """One query that may see no key, under four ways to say so: computed when called.

    Three keys whose values are 1, 2 and 6; a query with nothing masked sees their mean, 3.

    Returns: rows with `way`, `output` and `gradient` (`finite` or `nan`, of the query), as text.
    """
    low = torch.finfo(torch.float32).min
    masks = {
        "nothing masked": torch.zeros(1, 3),
        "softmax by hand, -inf added": torch.full((1, 3), -math.inf),
        f"softmax by hand, {low:.1e} added": torch.full((1, 3), low),
        "torch's scaled_dot_product_attention, -inf": torch.full((1, 3), -math.inf),
        "the same, a mask of False": torch.zeros(1, 3, dtype=torch.bool),
    }
    rows = []
    for way, mask in masks.items():
        query = torch.ones(1, 1, 1, 4, requires_grad=True)
        keys = torch.ones(1, 1, 3, 4)
        values = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1).expand(1, 1, 3, 4)
        if "by hand" in way or way == "nothing masked":
            output = (query @ keys.transpose(-1, -2) / 2 + mask).softmax(-1) @ values
        else:
            output = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        output.sum().backward()
        assert query.grad is not None
        finite = bool(query.grad.isfinite().all())
        rows.append(
            {
                "way": way,
                "output": f"{float(output.detach().flatten()[0]):.3f}",
                "gradient": "finite" if finite else "nan",
            }
        )
    return rows
