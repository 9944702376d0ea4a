"""Which arithmetic a run uses."""

from __future__ import annotations

import pytest
import torch

from chinese_llama_lab import machine
from chinese_llama_lab.training import precision
from chinese_llama_lab.training.precision import precision_of, weights_dtype
from chinese_llama_lab.training.recipe import Recipe
from chinese_llama_lab.training.trainer import training_arguments

RECIPE = Recipe(name="precise", task="pretrain", precision="auto")


@pytest.mark.parametrize(("fast", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_asks_the_machine(monkeypatch, fast, expected):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: fast)
    assert precision_of(RECIPE) == expected
    assert weights_dtype(RECIPE) == {"bf16": "bfloat16", "fp32": "float32"}[expected]
    assert precision_of(RECIPE.replace(precision="fp16")) == "fp16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU answers before the processor is asked")
def test_a_processor_without_the_instructions(monkeypatch):
    monkeypatch.setattr(machine, "processor_flags", lambda: frozenset({"avx2", "fma"}))
    assert not machine.computes_bfloat16()
    monkeypatch.setattr(machine, "processor_flags", lambda: frozenset({"avx512f", "avx512_bf16"}))
    assert machine.computes_bfloat16()


def test_autocast_is_for_float32_weights_alone(tmp_path):
    recipe = RECIPE.replace(precision="bf16")
    for dtype, autocast in ((torch.float32, True), (torch.bfloat16, False)):
        assert training_arguments(recipe, dtype, tmp_path, 1, 1, 1).bf16 is autocast
