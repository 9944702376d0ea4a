"""Learning rates by kind of weight: peft's LoRA+ groups, and rows of their own."""

from __future__ import annotations

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from chinese_llama_lab.training.lora import add_lora
from chinese_llama_lab.training.optimizer import adamw, parameter_groups
from chinese_llama_lab.training.recipe import Recipe
from tests.training.conftest import make_model

RECIPE = Recipe(name="rates", task="pretrain", rank=4, dropout=0.0, learning_rate=1e-3, weight_decay=0.1)


def settings(groups):
    """parameter -> (rate, decay)"""
    return {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize("dora", [False, True])
def test_the_groups_are_those_of_peft(dora):
    model = add_lora(make_model(), RECIPE.replace(lora_plus_ratio=8.0, dora=dora, embeddings="frozen"))
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=8.0, loraplus_weight_decay=0.1
    )
    ours = settings(parameter_groups(model, RECIPE.replace(lora_plus_ratio=8.0)))
    expected = settings(theirs.param_groups)
    assert ours.keys() == expected.keys() == {id(p) for p in model.parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate, decay = expected[id(parameter)]
            # peft decays DoRA's magnitudes; a vector is not decayed here.
            assert ours[id(parameter)] == (rate, 0.0 if parameter.ndim == 1 else decay), name


def test_new_rows_have_their_own_rate_and_the_others_stay():
    model = add_lora(make_model(264), RECIPE.replace(new_rows_ratio=3.0), range(259, 264))
    optimizer = adamw(model, RECIPE.replace(new_rows_ratio=3.0, adam_beta2=0.98))
    found = settings(optimizer.param_groups)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = 3e-3 if "trainable_tokens_delta" in name else 1e-3
            assert found[id(parameter)][0] == pytest.approx(expected), name
    assert optimizer.defaults["betas"] == (0.9, 0.98)
