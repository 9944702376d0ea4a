"""What float16 cannot hold, on models of two layers and on single tensors."""

from __future__ import annotations

import math

import pytest
import torch

from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.half_precision import (
    LARGEST,
    SMALLEST,
    gradient_underflow,
    largest_activations,
    losses_by_dtype,
    pitfalls,
    widened,
)

from .conftest import make_model

IDS = torch.tensor([[1, 250, 2, 230, 3, 240, 7, 7, 9, 0, 44, 100]])


def test_the_limits_are_float16s():
    assert (
        LARGEST == 65504 and torch.tensor(SMALLEST).half() > 0 and torch.tensor(SMALLEST / 2.01).half() == 0
    )
    assert torch.tensor(LARGEST * 1.01).half().isinf()


def test_largest_activations_are_those_of_the_model():
    model, ids = make_model(layers=3), IDS
    rows = largest_activations(model, ids)
    assert not any(layer._forward_hooks for layer in model.model.layers)
    assert not any(layer.mlp.down_proj._forward_pre_hooks for layer in model.model.layers)
    seen = model.model(ids, output_hidden_states=True, use_cache=False).hidden_states
    assert [row["layer"] for row in rows] == [1, 2, 3]
    for row, states in zip(rows[:2], seen[1:3], strict=True):  # the last is normed
        assert row["residual"] == pytest.approx(float(states.abs().max()))
        assert row["typical"] == pytest.approx(float(states.abs().median()))
        assert row["position"] == int(states.abs().amax(-1)[0].argmax())
    mlp = model.model.layers[0].mlp
    taken = []
    hook = mlp.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    model(ids)
    hook.remove()
    inner = torch.nn.functional.silu(mlp.gate_proj(taken[0])) * mlp.up_proj(taken[0])
    assert rows[0]["inside"] == pytest.approx(float(inner.abs().max()), rel=1e-5)
    assert all(row["fits float16"] and row["of float16"] < 1e-3 for row in rows)


def test_wider_inner_values_overflow_float16_and_nothing_else():
    model, ids = make_model(), IDS
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = losses_by_dtype(model, ids)
    assert plain["float16"] == pytest.approx(plain["float32"], abs=0.01)
    inside = largest_activations(model, ids)[1]["inside"]
    factor = 2.0 ** math.ceil(math.log2(2 * LARGEST / inside))
    with widened(model, 2, factor):
        wide, row = losses_by_dtype(model, ids), largest_activations(model, ids)[1]
    assert not row["fits float16"] and row["fits bfloat16"] and row["inside"] == inside * factor
    assert math.isnan(wide["float16"])
    assert wide["float32"] == plain["float32"] and wide["bfloat16"] == plain["bfloat16"]
    after = model.state_dict()
    assert model.dtype == torch.float32
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_model_without_such_layers_is_refused():
    class Other(torch.nn.Module):
        def get_decoder(self):
            return torch.nn.Linear(2, 2)

    with pytest.raises(TrainingError, match="Other has no layers"):
        largest_activations(Other(), torch.zeros(1, 2, dtype=torch.long))


def test_every_pitfall_is_wrong_in_float16_and_cured():
    rows = pitfalls()
    assert len(rows) == 4
    for row in rows:
        right = float(row["right"])
        assert float(row["float16"]) != pytest.approx(right, rel=1e-6), row
        assert float(row["cured"]) == pytest.approx(right, rel=1e-3), row
    assert [row["float16"] for row in rows] == ["nan", "inf", "0", "1"]


def test_loss_scaling_saves_small_gradients_until_it_overflows():
    # 1,000 pieces, one of them nearly certain: the others' gradients are about 4e-9 and 1e-9.
    logits = torch.zeros(4, 1000)
    logits[:, 0] = 18.0
    targets = torch.tensor([0, 0, 0, 5])
    plain, scaled, large = gradient_underflow(logits, targets, (1.0, 65536.0, 2.0**20))
    assert plain["zero"] > 0.99 and plain["kept"] < 1.0
    assert scaled["zero"] == 0.0 and scaled["kept"] == pytest.approx(1.0, abs=1e-3)
    assert not plain["overflow"] and not scaled["overflow"] and large["overflow"]
