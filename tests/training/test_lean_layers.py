"""Layers that keep less compute what transformers and peft compute: values and gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from chinese_llama_lab.training.lean_layers import lean_layers
from chinese_llama_lab.training.lora import add_lora
from chinese_llama_lab.training.recipe import Recipe
from tests.training.conftest import make_model

RECIPE = Recipe(name="lean", task="pretrain", rank=4, alpha=8, dropout=0.0, embeddings="frozen")
IDS = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(3))


def adapted(recipe=RECIPE, dtype=torch.float32, **options):
    model = add_lora(make_model(**options).to(dtype), recipe)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # away from zero, so that A has a gradient
            parameter.data.normal_(generator=generator).mul_(0.2)
    return model.train()


def run(model):
    loss = model(IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    found = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return float(loss.detach()), found


def kept(model):
    """Bytes that autograd keeps for the backward pass."""
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(IDS, labels=IDS, use_cache=False).loss
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    loss.detach()
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


@pytest.mark.parametrize(
    "changes",
    [{}, {"rslora": True}, {"targets": ("q_proj", "v_proj")}, {"targets": ("gate_proj", "o_proj")}],
    ids=["all", "rslora", "q and v", "part of the MLP"],
)
def test_values_and_gradients_are_those_of_peft(changes):
    model = adapted(RECIPE.replace(**changes))
    loss, gradients = run(model)
    with lean_layers(model):
        lean_loss, lean_gradients = run(model)
    assert lean_loss == pytest.approx(loss, rel=1e-6)
    assert lean_gradients.keys() == gradients.keys() and gradients
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert torch.allclose(lean_gradients[name], gradient, rtol=1e-4, atol=1e-6), name
    assert run(model)[0] == loss  # restored


def test_gradients_to_the_embedding_pass_through():
    recipe = RECIPE.replace(embeddings="published", embedding_modules=["embed_tokens"])
    model = adapted(recipe)
    _, gradients = run(model)
    with lean_layers(model):
        _, lean = run(model)
    name = next(n for n in gradients if "embed_tokens" in n)
    assert torch.allclose(lean[name], gradients[name], rtol=1e-4, atol=1e-6)


def test_bfloat16_is_as_near_to_float32_as_an_adapter_in_bfloat16():
    exact_loss, exact = run(adapted())
    rounded_loss, rounded = run(adapted().to(torch.bfloat16))
    model = adapted(dtype=torch.bfloat16)
    with lean_layers(model):
        lean_loss, lean = run(model)
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if "lora_" in n)

    def error(found):
        away = sum(float((found[n] - g).norm()) for n, g in exact.items())
        return away / sum(float(g.norm()) for g in exact.values())

    assert abs(lean_loss - exact_loss) < abs(rounded_loss - exact_loss) + 0.02
    assert error(lean) < 1.1 * error(rounded) < 0.2


def test_less_is_kept():
    model = adapted(dtype=torch.bfloat16)
    before = kept(model)
    with lean_layers(model):
        assert kept(model) < 0.6 * before


@pytest.mark.parametrize(
    "model",
    [
        adapted(RECIPE.replace(dora=True)),
        adapted(RECIPE.replace(dropout=0.5)),
        adapted(attention_bias=True, mlp_bias=True),
        adapted(hidden_act="gelu"),
    ],
    ids=["dora", "dropout", "bias", "another activation"],
)
def test_what_is_not_plain_lora_computes_as_ever(model):
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    loss, gradients = run(model)
    with lean_layers(other):
        torch.manual_seed(0)
        lean_loss, lean = run(other)
    assert lean_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(lean[name], gradient, rtol=1e-4, atol=1e-6), name


def test_merged_disabled_and_autocast_adapters_are_respected():
    model = adapted()
    with torch.no_grad():
        expected = model(IDS).logits
        with model.disable_adapter():
            without = model(IDS).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(IDS).logits
        with lean_layers(model):
            assert torch.allclose(model(IDS).logits, expected, atol=1e-5)
            with model.disable_adapter():
                assert torch.equal(model(IDS).logits, without)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(model(IDS).logits, rounded)
            model.merge_adapter()
            assert torch.allclose(model(IDS).logits, expected, atol=1e-5)
    assert not torch.allclose(expected, without, atol=1e-3)
