"""LoRA by hand against peft; and what a recipe makes peft train."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.lora import add_lora, lean_rows, new_token_ids, what_trains
from chinese_llama_lab.training.lora_by_hand import LoraLinear
from chinese_llama_lab.training.recipe import MODULES, Recipe

from .conftest import make_model, make_tokenizer

RECIPE = Recipe(name="test", task="pretrain", rank=4, alpha=8, dropout=0.0)


@pytest.mark.parametrize("rslora", [False, True])
def test_by_hand_equals_peft_in_forward_gradients_and_merge(rslora):
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 16, bias=False), torch.randn(3, 5, 24)
    hand = LoraLinear(copy.deepcopy(linear), 4, 8, rslora=rslora)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"], use_rslora=rslora)
    reference = get_peft_model(nn.Sequential(copy.deepcopy(linear)), config)
    layer = reference.base_model.model[0]
    nn.init.normal_(hand.B)
    layer.lora_A["default"].weight.data.copy_(hand.A.data)
    layer.lora_B["default"].weight.data.copy_(hand.B.data)
    ours, theirs = hand(x), reference(x)
    assert torch.allclose(ours, theirs, atol=1e-6)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    assert torch.allclose(hand.A.grad, layer.lora_A["default"].weight.grad, rtol=1e-5)
    assert torch.allclose(hand.B.grad, layer.lora_B["default"].weight.grad, rtol=1e-5)
    assert hand.base.weight.grad is None
    merged, merged_theirs = hand.merge(), reference.merge_and_unload()[0]
    assert torch.allclose(merged.weight, merged_theirs.weight, atol=1e-6)
    assert torch.allclose(merged(x), ours, atol=1e-5) and not torch.allclose(merged.weight, linear.weight)


def test_by_hand_starts_as_the_base_and_drops_out_only_in_training():
    linear, x = nn.Linear(8, 8), torch.randn(2, 8)
    hand = LoraLinear(linear, 2, 4, dropout=0.5)
    assert torch.equal(hand(x), linear(x))
    nn.init.ones_(hand.B)
    hand.eval()
    assert torch.equal(hand(x), hand(x))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("embeddings", ["frozen", "new-rows", "published"])
def test_what_a_recipe_trains(tied, embeddings):
    model = make_model(269, tied=tied)
    before = model(torch.arange(259, 269)[None]).logits
    adapted = add_lora(model, RECIPE.replace(embeddings=embeddings), range(259, 269))
    assert torch.allclose(adapted(torch.arange(259, 269)[None]).logits, before, atol=1e-6)
    counted = what_trains(adapted)
    lora = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    matrices = 1 if tied else 2
    rows = {"frozen": 0, "new-rows": 10 * 32 * matrices, "published": 0}[embeddings]
    whole = 269 * 32 * matrices if embeddings == "published" else 0
    assert counted.by_kind == {"lora": lora, "magnitudes": 0, "new rows": rows, "whole matrices": whole}
    assert counted.trainable == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert counted.parameters == sum(p.numel() for p in make_model(269, tied=tied).parameters()) + lora


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_new_rows_move_and_a_tied_pair_stays_tied(tied):
    model = make_model(269, tied=tied)
    old = model.get_input_embeddings().weight.detach().clone()
    old_head = model.get_output_embeddings().weight.detach().clone()
    adapted = add_lora(model, RECIPE, range(259, 269))
    step(adapted)
    merged = adapted.merge_and_unload()
    embedding, head = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert torch.equal(embedding[:259], old[:259]) and not torch.equal(embedding[259:], old[259:])
    assert torch.equal(head[:259], old_head[:259]) and not torch.equal(head[259:], old_head[259:])
    assert (embedding is head) or tied == torch.equal(embedding, head)


def step(adapted):
    ids = torch.tensor([[1, 259, 2, 268, 3, 262, 261, 5]])
    adapted.train()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    loss = adapted(ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
    return float(loss)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("where", ["last", "scattered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lean_rows_are_the_same_rows(tied, where, dtype):
    tokens = list(range(259, 269)) if where == "last" else [3, 259, 262]
    plain, lean = (add_lora(make_model(269, tied=tied).to(dtype), RECIPE, tokens) for _ in range(2))
    lean_rows(lean)
    close = {"atol": 1e-6} if dtype == torch.float32 else {"atol": 2e-2}
    for _ in range(2):
        assert step(lean) == pytest.approx(step(plain), abs=1e-6 if dtype == torch.float32 else 1e-2)
    for (name, one), (other, two) in zip(plain.named_parameters(), lean.named_parameters(), strict=True):
        assert name == other and torch.allclose(one, two, **close), name
        if one.grad is not None and "tokens_delta" in name:
            assert torch.allclose(one.grad.float(), two.grad.float(), rtol=1e-4, **close), name


def test_variants():
    adapted = add_lora(make_model(), RECIPE.replace(rslora=True, dora=True))
    config = adapted.peft_config["default"]
    assert config.use_rslora and config.use_dora and config.target_modules == set(MODULES)
    assert what_trains(adapted).by_kind["magnitudes"] == 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)


def test_embeddings_alone():
    recipe = RECIPE.replace(rank=0, embeddings="published", embedding_modules=["embed_tokens"])
    adapted = add_lora(make_model(), recipe)
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == {
        "base_model.model.model.embed_tokens.modules_to_save.default.weight"
    }


def test_deterministic_by_seed_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = add_lora(make_model(seed=5), RECIPE.replace(seed=3))
    torch.manual_seed(5)
    other = add_lora(make_model(seed=5), RECIPE.replace(seed=3))
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), expected)
    for (_, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b)


def test_new_token_ids():
    recipe = RECIPE.replace(
        architecture={
            "vocab_size": 259,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
        }
    )
    assert new_token_ids(recipe, make_tokenizer(3)) == [259, 260, 261]
    assert new_token_ids(RECIPE, make_tokenizer(3)) == []


def test_bad_input(model):
    with pytest.raises(TrainingError, match=r"no module 'query'(.|\n)*q_proj"):
        add_lora(model, RECIPE.replace(targets=["query"]))
    with pytest.raises(TrainingError, match="259 has no row"):
        add_lora(model, RECIPE, [259])
    with pytest.raises(TrainingError, match="nothing is trained"):
        add_lora(model, RECIPE.replace(rank=0))
    with pytest.raises(TrainingError, match="has an adapter already"):
        add_lora(add_lora(model, RECIPE), RECIPE)
