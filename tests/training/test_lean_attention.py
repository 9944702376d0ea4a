"""Attention one key head at a time: values and gradients are those of attention."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from chinese_llama_lab.training.lean_attention import NAME, _attend, _Attention, lean_attention
from chinese_llama_lab.training.lean_layers import lean_layers
from tests.training.conftest import make_model
from tests.training.test_lean_layers import IDS, adapted, run

MODULE = SimpleNamespace(num_key_value_groups=3, is_causal=True)


def values(length, dtype, *, batch=2, heads=6, shared=3, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def some(count):
        x = torch.randn(batch, length, count, width, generator=generator, dtype=torch.float64)
        return x.transpose(1, 2).to(dtype).requires_grad_()  # not contiguous, as after q_proj

    return some(heads), some(heads // shared), some(heads // shared)


def packed(batch, length, seed=0):
    """A mask of documents that do not see each other, as for packed blocks."""
    starts = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.2
    document = starts.cumsum(-1)
    same = document[:, :, None] == document[:, None, :]
    return (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]


def reference(q, k, v, mask):
    shared = q.shape[1] // k.shape[1]
    return functional.scaled_dot_product_attention(
        q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1), attn_mask=mask
    )


@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("heads, shared", [(6, 3), (4, 1), (4, 4)], ids=["GQA", "MHA", "MQA"])
def test_gradients_are_those_of_differences(length, heads, shared):
    q, k, v = values(length, torch.float64, heads=heads, shared=shared, width=4)
    mask = packed(2, length)
    assert torch.autograd.gradcheck(lambda *x: _Attention.apply(*x, mask, 0.5), (q, k, v))


@pytest.mark.parametrize("mask", ["causal", "packed", "added"])
def test_values_and_gradients_are_those_of_torch(mask):
    q, k, v = values(40, torch.float64)
    seen = packed(2, 40) if mask != "causal" else torch.ones(2, 1, 40, 40, dtype=torch.bool).tril()
    given = {"causal": None, "packed": seen, "added": torch.zeros(seen.shape).masked_fill(~seen, -1e30)}[mask]
    out = _Attention.apply(q, k, v, given, 8**-0.5)
    expected = reference(q, k, v, seen)
    assert torch.allclose(out, expected, atol=1e-12)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for found, right in zip(
        torch.autograd.grad(out, (q, k, v), g), torch.autograd.grad(expected, (q, k, v), g), strict=True
    ):
        assert torch.allclose(found, right, atol=1e-12)


@pytest.mark.parametrize("length", [1, 33, 257])
def test_bfloat16_is_as_near_to_exact_as_torchs_own(length):
    exact = values(length, torch.float64, width=64)
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    mask = packed(2, length)
    g = torch.randn(2, 6, length, 64, generator=torch.Generator().manual_seed(9))

    def error(out, inputs):
        right = reference(*exact, mask)
        pairs = [(out, right)]
        pairs += zip(
            torch.autograd.grad(out, inputs, g.to(out.dtype)),
            torch.autograd.grad(right, exact, g.double()),
            strict=True,
        )
        return [
            float((a.detach().double() - b.detach()).norm() / b.detach().norm()) if b.norm() else 0.0
            for a, b in pairs
        ]

    lean, _ = _attend(MODULE, *rounded, mask, scaling=64**-0.5)
    ours = error(lean.transpose(1, 2), rounded)
    theirs = error(reference(*rounded, mask), rounded)
    assert all(a < 2 * b + 1e-3 for a, b in zip(ours, theirs, strict=True)), (ours, theirs)
    assert max(ours) < 0.01


def test_scores_of_any_size_do_not_become_infinite():
    q, k, v = (x.detach().mul(1e18) for x in values(5, torch.bfloat16))
    out, _ = _attend(MODULE, q, k, v, packed(2, 5), scaling=1.0)
    assert torch.isfinite(out).all()


def test_what_it_is_not_for_goes_to_transformers():
    q, k, v = values(6, torch.float32)
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    for changed in ({}, {"dropout": 0.0}, {"is_causal": False}):
        assert torch.equal(
            _attend(MODULE, q, k, v, packed(2, 6), **changed)[0],
            sdpa_attention_forward(MODULE, q, k, v, packed(2, 6), **changed)[0],
        )
    q, k, v = (x.bfloat16() for x in (q, k, v))
    one = q[:, :, -1:]  # decoding: one query, six keys
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    assert torch.equal(
        _attend(MODULE, one, k, v, mask)[0], sdpa_attention_forward(MODULE, one, k, v, mask)[0]
    )


def test_within_lean_layers_and_nowhere_else():
    model = adapted(dtype=torch.bfloat16)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0]] * 2)

    def logits(model):
        with torch.no_grad():
            return model(IDS, position_ids=positions, use_cache=False).logits.float()

    before = logits(model)
    with lean_layers(model):
        assert model.config._attn_implementation == NAME
        lean = logits(model)
        _, gradients = run(model)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(model), before)
    assert (lean - before).norm() < 0.02 * before.norm()
    # One document sees nothing of the one before it: other tokens there change nothing.
    other = IDS.clone()
    other[:, :3] = (other[:, :3] + 1) % 256
    with lean_layers(model), torch.no_grad():
        changed = model(other, position_ids=positions, use_cache=False).logits.float()
    assert torch.equal(changed[:, 3:], lean[:, 3:]) and not torch.equal(changed[:, :3], lean[:, :3])
    assert all(g.abs().max() > 0 for n, g in gradients.items() if "v_proj" in n)


def test_another_attention_stays():
    model = make_model(attn_implementation="eager")
    with lean_attention(model.config):
        assert model.config._attn_implementation == "eager"
