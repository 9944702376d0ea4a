"""Short runs that are made to fail, and what cures them: learning rate, warm-up, clipping.

The loop is written out, so that the gradient's norm before clipping can be seen and a run without clipping is
possible. Loss, adapter and optimizer are those of `pretrain`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.lean_layers import lean_layers
from chinese_llama_lab.training.loss import lean_loss

TAIL = 3  # steps at the end of a run over which its verdict takes the mean
SPIKE = 0.5  # nats a token above the untrained model


@dataclass(frozen=True)
class Setting:
    """How one run moves its weights.

    Attributes:
        name: what rows and plots call it.
        learning_rate: AdamW's, constant after warm-up.
        warmup: optimizer steps over which the rate rises linearly; the step after them has all of it.
        max_grad_norm: gradients longer than this are scaled down to it; `inf` does not clip.
        beta1, beta2: AdamW's memory of gradients and of their squares.
    """

    name: str
    learning_rate: float
    warmup: int = 0
    max_grad_norm: float = math.inf
    beta1: float = 0.9
    beta2: float = 0.999

    def rate(self, step: int) -> float:
        """The rate at a step; the first is 1."""
        return self.learning_rate * min(1.0, step / (self.warmup + 1))


def short_run(
    adapted: Any, batches: Sequence[torch.Tensor], setting: Setting, *, loss_factors: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """One optimizer step a batch; the trained weights are put back afterwards.

    Args:
        adapted: a peft model (`add_lora`). It stays as it was: every run starts from the same weights.
        batches: token ids, int64 (sequences, tokens); every token is a label.
        setting: rate, warm-up, clipping.
        loss_factors: by which the losses of the first batches are multiplied before the backward pass (those
            beyond the list by 1): a batch that pulls much harder than its neighbours.

    Returns: a row a step: `run`, `step`, `rate`, `loss` (nats a token, before the step, without its factor),
        `gradient` (Euclidean norm before clipping), `note`. A loss or gradient that is no number ends the
        run, as it ends `pretrain`; it is left empty and `note` says so.

    Raises: TrainingError: no batch, or a model that trains nothing.
    """
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    if not batches or not parameters:
        what = "there is no batch" if parameters else "the model trains nothing"
        raise TrainingError(what, where="short_run", remedy="give token ids and a model from add_lora")
    start = [p.detach().clone() for p in parameters]
    # As `pretrain`, except that the parameters need no groups here.
    optimizer = torch.optim.AdamW(parameters, betas=(setting.beta1, setting.beta2), weight_decay=0.0)
    rows: list[dict[str, Any]] = []
    was_training = adapted.training
    adapted.train()
    try:
        with ExitStack() as stack:
            stack.enter_context(lean_loss(adapted.get_base_model()))
            stack.enter_context(lean_layers(adapted))
            for step, ids in enumerate(batches, 1):
                factor = loss_factors[step - 1] if step <= len(loss_factors) else 1.0
                rows.append(_step(adapted, ids, parameters, optimizer, setting, step, factor))
                if rows[-1]["note"]:
                    break
    finally:
        adapted.train(was_training)
        with torch.no_grad():
            for p, value in zip(parameters, start, strict=True):
                p.copy_(value)
                p.grad = None
    return rows


def _step(
    adapted: Any,
    ids: torch.Tensor,
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    setting: Setting,
    step: int,
    factor: float,
) -> dict[str, Any]:
    row: dict[str, Any] = {"run": setting.name, "step": step, "rate": setting.rate(step)}
    row |= {"loss": "", "gradient": "", "note": ""}
    ids = ids.to(adapted.device)
    loss = adapted(input_ids=ids, labels=ids).loss
    if not torch.isfinite(loss):
        return row | {"note": f"stopped at step {step}: the loss is {float(loss.detach())}"}
    row["loss"] = float(loss.detach())
    optimizer.zero_grad()
    (loss * factor).backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, setting.max_grad_norm)
    if not torch.isfinite(norm):
        return row | {"note": f"stopped at step {step}: the gradient's norm is {float(norm)}"}
    row["gradient"] = float(norm)
    for group in optimizer.param_groups:
        group["lr"] = row["rate"]
    optimizer.step()
    return row


def untrained_losses(adapted: Any, batches: Iterable[torch.Tensor]) -> list[float]:
    """Loss of each batch (nats a token) under the weights as they are: what a run is to be compared with.

    Batches differ in how hard they are, so that a loss above the first one alone says nothing.
    """
    with torch.no_grad(), lean_loss(adapted.get_base_model()), lean_layers(adapted):
        return [
            float(adapted(input_ids=ids.to(adapted.device), labels=ids.to(adapted.device)).loss)
            for ids in batches
        ]


def sweep(
    adapted: Any, batches: Sequence[torch.Tensor], settings: Iterable[Setting], **options: Any
) -> list[dict[str, Any]]:
    """`short_run` with each of the settings, from the same weights over the same batches.

    Returns: all their rows, with one column more, `above`: the loss less that of the untrained model on the
        same batch, in nats a token; negative where the run has learnt.
    """
    untrained = untrained_losses(adapted, batches)
    rows = []
    for setting in settings:
        for row in short_run(adapted, batches, setting, **options):
            above = "" if row["loss"] == "" else row["loss"] - untrained[row["step"] - 1]
            rows.append(
                {**{k: v for k, v in row.items() if k != "note"}, "above": above, "note": row["note"]}
            )
    return rows


def verdicts(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What became of each run of `sweep`.

    Returns: a row a run: `run`, `steps`, `worst` and `end` (largest `above`, and its mean over the last 3
        steps, or as many as there are), `largest gradient`, `verdict`: `stopped` (a loss or a gradient was no
        number), `diverged` (it ends worse than the untrained model), `spiked` (half a nat worse on the way,
        better in the end) or `learns`.
    """
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    found = []
    for name, steps in runs.items():
        above = [row["above"] for row in steps if row["above"] != ""] or [math.inf]
        norms = [row["gradient"] for row in steps if row["gradient"] != ""] or [math.inf]
        last = above[-TAIL:]
        end = sum(last) / len(last)
        if steps[-1]["note"]:
            verdict = "stopped"
        elif end > 0:
            verdict = "diverged"
        else:
            verdict = "spiked" if max(above) > SPIKE else "learns"
        found.append(
            {
                "run": name,
                "steps": len(steps),
                "worst": round(max(above), 3),
                "end": round(end, 3),
                "largest gradient": round(max(norms), 2),
                "verdict": verdict,
            }
        )
    return found
