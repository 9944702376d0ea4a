"""The parts of a step: their arithmetic, and that products are really taken away and come back."""

from __future__ import annotations

import time

import pytest
import torch

from chinese_llama_lab.inference.bandwidth import SpeedError, StepBytes
from chinese_llama_lab.inference.engines import engine, generate
from chinese_llama_lab.inference.step_time import StepTime, operator_floor, step_time, without_products
from tests.inference.test_decode import make_model, prompts
from tests.threads import one_thread  # noqa: F401 - a fixture


def test_parts_by_hand():
    parts = StepTime("fast", 0.010, 0.003, StepBytes(4_000_000, 1_000_000, 1), 1e9, 500, 2e-6)
    assert parts.memory == pytest.approx(0.005)
    assert parts.products == pytest.approx(0.002)
    assert parts.operators == pytest.approx(0.001)
    assert parts.python == pytest.approx(0.002)
    assert parts.memory + parts.products + parts.operators + parts.python == pytest.approx(parts.total)
    assert parts.share == pytest.approx(0.5)
    assert parts.row()["share_of_limit"] == 0.5 and parts.row()["step_ms"] == 10
    assert "50% of the limit" in repr(parts)


@pytest.mark.parametrize("name", ["forward", "static", "fast"])
def test_measured_parts_add_up(name):
    parts = step_time(make_model(), prompts(2), bytes_per_second=1e10, name=name, steps=4)
    whole = parts.memory + parts.products + parts.operators + parts.python
    assert whole == pytest.approx(parts.total)
    assert parts.read.batch == 2 and parts.read.cache == 2 * (9 + 2) * 3 * 2 * 2 * 16 * 4
    assert parts.without_products > 0 and 0 < parts.operator_floor < 1e-3


def test_fast_decoding_calls_fewer_operators():
    """Not a matter of the clock: calls are counted, without products and so without the linear layers."""
    counts = {
        name: step_time(make_model(), prompts(), bytes_per_second=1e10, name=name, steps=2).operator_calls
        for name in ("forward", "fast")
    }
    assert 3 * 20 < counts["fast"] < 0.75 * counts["forward"]


def test_the_time_of_products_goes_to_products(monkeypatch):
    """Each of the 22 linear layers sleeps 2 ms: products grow by that, and the rest does not."""
    model = make_model()
    plain = step_time(model, prompts(), bytes_per_second=1e10, name="forward", steps=4)
    for layer in (m for m in model.modules() if isinstance(m, torch.nn.Linear)):
        layer.register_forward_pre_hook(lambda module, given: None)  # the fast engine then calls the module
        monkeypatch.setattr(
            layer, "forward", lambda x, own=layer.forward: (time.sleep(0.002), own(x))[1], raising=False
        )
    for name in ("forward", "fast"):
        slow = step_time(model, prompts(), bytes_per_second=1e10, name=name, steps=4)
        assert slow.products - plain.products > 22 * 0.002 * 0.9
        assert slow.without_products < 22 * 0.002


@pytest.mark.parametrize("name", ["generate", "fast"])
def test_products_come_back(name):
    model, ids = make_model(), prompts()
    before = generate(model, ids, 8, name)
    with without_products(model) as layers:
        assert layers == 3 * 7 + 1
        assert generate(model, ids, 8, name)[0, 9:].tolist() == [0] * 8  # all logits are zero
    assert torch.equal(generate(model, ids, 8, name), before)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_products_come_back_after_an_error():
    model = make_model()
    with pytest.raises(KeyError), without_products(model):
        raise KeyError
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_another_family():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=211, n_embd=8, n_layer=2, n_head=2, n_positions=32)).eval()
    with without_products(model) as layers:
        assert layers == 2 * 4 + 1
        assert engine(model, "forward").start(prompts(2), 2).tolist() == [0, 0]


def test_the_floor_is_of_one_call():
    assert 1e-8 < operator_floor(64, torch.float32, "cpu") < 1e-3


def test_bad_input():
    model, ids = make_model(), prompts()
    with pytest.raises(SpeedError, match="no linear layers"), without_products(torch.nn.Embedding(3, 4)):
        pass
    for options in ({"steps": 1, "bytes_per_second": 1.0}, {"bytes_per_second": 0.0}):
        with pytest.raises(SpeedError, match="steps is"):
            step_time(model, ids, **options)
    with pytest.raises(SpeedError, match="compiled"):
        step_time(model, ids, bytes_per_second=1.0, name="compiled")
    with pytest.raises(SpeedError, match="context of 64"):
        step_time(model, ids, bytes_per_second=1.0, steps=60)
