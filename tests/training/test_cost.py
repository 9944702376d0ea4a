"""Hours, prices and operations against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.inference.shapes import Shape, shape_of
from chinese_llama_lab.training.cost import (
    flops_per_token,
    tokenization_time,
    training_cost,
    training_time,
    utilization,
)
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.plan import plan_training
from chinese_llama_lab.training.recipe import load_recipe

# width 4, inner 8, one layer: 4·4·4 + 3·4·8 = 160 linear weights; head 10·4 = 40.
TINY = Shape("tiny", 10, 4, 8, 1, 2, 2, 2)


def test_time_and_cost_by_hand():
    assert training_time(3_600_000, 1000) == 1.0
    assert training_time(3_600_000, 1000, devices=4, efficiency=0.5) == 0.5
    assert training_cost(2.5, 3.0, devices=4) == 30.0
    assert tokenization_time(36, 5, cores=2) == 1.0


def test_operations_by_hand():
    assert (TINY.linear, TINY.matrix) == (160, 40)
    assert flops_per_token(TINY) == 6 * 200
    assert flops_per_token(TINY, checkpointing=True) == 6 * 200 + 2 * 160  # the head is not computed again
    # Scores: 2 products of 4 wide over 5 of 10 tokens, 2 operations each, forward and twice backward.
    assert flops_per_token(TINY, block=10) == 6 * 200 + 3 * (2 * 2 * 4 * 5)
    # LoRA of rank 1 on q_proj: 4 + 4 weights, trained; the frozen ones have no gradient of their own.
    lora = flops_per_token(TINY, lora=1, targets=("q_proj",))
    assert lora == 4 * 200 + 6 * 8
    assert flops_per_token(TINY, lora=1, targets=("q_proj",), embeddings="published") == lora + 2 * 40
    assert flops_per_token(1e9) == 6e9 and flops_per_token(10**9, lora=8, checkpointing=True) == 6e9


def test_the_rule_of_six_for_a_7b():
    """6 N of arXiv 2001.08361, N without the embedding that is only looked up."""
    shape = shape_of("llama-7b")
    multiplied = shape.parameters - shape.matrix - shape.small
    assert flops_per_token("llama-7b") == 6 * multiplied
    assert flops_per_token("llama-7b", lora=8) < 0.68 * flops_per_token("llama-7b")


def test_utilization():
    assert utilization(1000, 6e9, 1e14) == pytest.approx(0.06)
    assert utilization(1000, 6e9, 1e14, devices=2) == pytest.approx(0.03)
    with pytest.raises(TrainingError, match=r"would be 60\.00 of the peak"):  # tera forgotten
        utilization(1000, 6e9, 1e11)


@given(
    tokens=st.integers(1, 10**12),
    rate=st.floats(1e-3, 1e9),
    devices=st.integers(1, 4096),
    price=st.floats(0.01, 100),
)
def test_devices_that_lose_nothing_cost_nothing_more(tokens, rate, devices, price):
    alone, together = training_time(tokens, rate), training_time(tokens, rate, devices)
    assert together * devices == pytest.approx(alone)
    assert training_cost(together, price, devices) == pytest.approx(training_cost(alone, price))


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, True, "3"])
def test_what_is_not_positive_is_refused_by_name(wrong):
    calls = {
        "tokens": lambda: training_time(wrong, 1),
        "tokens_per_second": lambda: training_time(1, wrong),
        "devices": lambda: training_time(1, 1, wrong if wrong is not math.inf else 1.5),
        "efficiency": lambda: training_time(1, 1, 1, wrong),
        "hours": lambda: training_cost(wrong, 1),
        "price_per_hour": lambda: training_cost(1, wrong),
        "gigabytes": lambda: tokenization_time(wrong, 1),
        "cores": lambda: tokenization_time(1, 1, wrong if wrong is not math.inf else 1.5),
        "peak_flops": lambda: utilization(1, 1, wrong),
    }
    for name, call in calls.items():
        with pytest.raises(TrainingError, match=rf"^{name} is "):
            call()


def test_other_bad_input():
    with pytest.raises(TrainingError, match=r"efficiency is 1\.5"):
        training_time(1, 1, 2, 1.5)
    with pytest.raises(TrainingError, match="parameters is 0"):
        flops_per_token(0)
    with pytest.raises(TrainingError, match="does not tell attention"):
        flops_per_token(7e9, block=512)
    for wrong in ({"lora": -1}, {"lora": True}, {"block": 1.5}):
        with pytest.raises(TrainingError, match=next(iter(wrong))):
            flops_per_token(TINY, **wrong)


def test_a_plan_is_the_sum_of_its_parts():
    recipe = load_recipe("chinese-llama-7b:lora")
    plan = plan_training(
        "llama-7b", recipe, tokens_per_second=2000, devices=8, price_per_hour=1.5, efficiency=0.9
    )
    assert plan.tokens == 6000 * 1024 * 512
    assert plan.hours == training_time(plan.tokens, 2000, 8, 0.9)
    assert plan.cost == training_cost(plan.hours, 1.5, 8) and plan.device_hours == plan.hours * 8
    shape = shape_of("llama-7b").with_vocabulary(49953)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    options = {"targets": targets, "embeddings": "published", "block": 512}
    whole = flops_per_token(shape, lora=8, checkpointing=True, **options)
    assert plan.flops == whole * plan.tokens
    held = {"vocabulary": 49953, "rank": 8, "dropout": 0.05, "dtype": "float16", "loss": "lean"}
    memory = estimate("llama-7b", "lora", gradient_checkpointing=True, **held, **options)
    assert plan.memory.total == memory.total
    shown = repr(plan)
    for part in ("3,145,728,000", f"{plan.hours:,.1f} hours", f"{plan.cost:,.2f}", f"{memory.gib:.1f} GiB"):
        assert part in shown
    assert "peak" not in shown
    used = plan_training("llama-7b", recipe, tokens_per_second=2000, peak_flops=312e12)
    assert used.used == utilization(2000, whole, 312e12) and "of the peak" in repr(used)
    assert used.cost is None and "no price" in repr(used)


def test_plans_that_cannot_be():
    recipe = load_recipe("smollm2-zh")
    with pytest.raises(TrainingError, match="no number of steps"):
        plan_training("smollm2", recipe, tokens_per_second=100)
    assert plan_training("smollm2", recipe, tokens=10**6, tokens_per_second=100).memory.gib < 3
    with pytest.raises(TrainingError, match="embedding alone"):
        plan_training("llama-7b", load_recipe("chinese-llama-7b:embeddings"), tokens_per_second=1)


def test_new_rows_and_nf4_reach_the_estimate():
    recipe = load_recipe("chinese-llama-7b:lora")
    plain = plan_training("llama-7b", recipe, tokens_per_second=1)
    rows = plan_training("llama-7b", recipe.replace(embeddings="new-rows"), tokens_per_second=1)
    nf4 = plan_training(
        "llama-7b", recipe.replace(embeddings="new-rows", quantization="nf4-double"), tokens_per_second=1
    )
    assert nf4.memory.gib < rows.memory.gib < plain.memory.gib
    assert rows.memory.components["new rows"] == (49953 - 32000) * 4096 * 2 * 4
