"""AdamW with a learning rate for each kind of trained weight.

LoRA+ (arXiv 2402.12354): B learns faster than A. Rows of new tokens are met far less often than any matrix,
so that they may want a rate of their own as well.
"""

from __future__ import annotations

from typing import Any

import torch

from chinese_llama_lab.training.recipe import Recipe


def parameter_groups(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """The trained parameters of a peft model as AdamW's groups, in a fixed order, none of them empty.

    Rates: `learning_rate` for A and for whole matrices, × `lora_plus_ratio` for B and DoRA's magnitudes,
    × `new_rows_ratio` for new rows. Vectors are not decayed.
    """
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "trainable_tokens_delta" in name:
            kind = "rows"
        elif ".lora_B." in name or parameter.ndim == 1:
            kind = "B"
        else:
            kind = "A"
        groups.setdefault((kind, parameter.ndim > 1), []).append(parameter)
    ratios = {"A": 1.0, "B": recipe.lora_plus_ratio, "rows": recipe.new_rows_ratio}
    return [
        {
            "params": groups[kind, decayed],
            "lr": recipe.learning_rate * ratios[kind],
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for kind, decayed in sorted(groups)
    ]


def adamw(model: Any, recipe: Recipe) -> torch.optim.AdamW:
    """The optimizer of a run."""
    return torch.optim.AdamW(
        parameter_groups(model, recipe), lr=recipe.learning_rate, betas=(0.9, recipe.adam_beta2), eps=1e-8
    )
