from __future__ import annotations

import copy

import pytest
import torch

from chinese_llama_lab.training.head_blocks import HeadPasses, MatrixPasses, passes_of
from chinese_llama_lab.training.lora import add_lora, lean_rows
from chinese_llama_lab.training.loss import lean_loss, summed_loss
from chinese_llama_lab.training.metrics import bits_per_character
from chinese_llama_lab.training.recipe import Recipe
from chinese_llama_lab.training.sharded import bits_through_forward

from .conftest import make_model

IDS = torch.tensor([[1, 259, 2, 268, 3, 262], [4, 5, 6, 7, 260, 9]])
LABELS = torch.tensor([[-100, -100, 2, 268, 3, 262], [-100, 5, 6, -100, 260, 9]])


@pytest.mark.parametrize("embeddings", ["frozen", "new-rows", "published"])
@pytest.mark.parametrize("tied", [False, True])
def test_loss_and_gradients_are_those_of_the_model(embeddings, tied):
    recipe = Recipe(name="t", task="pretrain", rank=4, dropout=0.0, embeddings=embeddings)
    plain, lean = (add_lora(make_model(269, tied=tied), recipe, range(259, 269)) for _ in range(2))
    for model in (plain, lean):  # B away from zero, so that A has a gradient
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.manual_seed(1)
                torch.nn.init.normal_(parameter)
    lean_rows(lean)
    expected = plain(IDS, labels=LABELS, use_cache=False).loss
    expected.backward()
    with lean_loss(lean.get_base_model()):
        got = lean(IDS, labels=LABELS).loss
        got.backward()
        weighted = lean(IDS, labels=LABELS, num_items_in_batch=4).loss
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(weighted.detach()) == pytest.approx(float(expected.detach()) * 8 / 4, rel=1e-6)
    for (name, one), (_, two) in zip(plain.named_parameters(), lean.named_parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None:
            # float32, summed in another order: the error goes with the largest gradient, not with each one
            error = float((one.grad - two.grad).abs().max())
            assert error <= 1e-4 * float(one.grad.abs().max()), name
    assert lean(IDS).logits.shape == (2, 6, 269)  # restored


def test_pieces_give_the_whole(model):
    hidden = torch.randn(37, 32, requires_grad=True)
    targets = torch.randint(0, 259, (37,))
    head = copy.deepcopy(model.lm_head)
    reference = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    (expected,) = torch.autograd.grad(reference, hidden)
    expected_head = torch.autograd.grad(
        torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum"), head.weight
    )[0]
    for rows in (1, 8, 37, 64):
        head.zero_grad()
        loss = summed_loss(head, hidden, targets, rows=rows)
        (loss * 3).backward()
        assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-6)
        assert torch.allclose(hidden.grad, expected * 3, rtol=1e-4, atol=1e-6)
        assert torch.allclose(head.weight.grad, expected_head * 3, rtol=1e-4, atol=1e-6)
        hidden.grad = None
    with torch.no_grad():
        assert float(summed_loss(head, hidden, targets, rows=8)) == pytest.approx(float(reference.detach()))


@pytest.mark.parametrize("embeddings", ["frozen", "new-rows", "published"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_matrix_gives_what_the_head_gives(embeddings, tied, dtype):
    recipe = Recipe(name="t", task="pretrain", rank=4, embeddings=embeddings)
    head = add_lora(make_model(269, tied=tied).to(dtype), recipe, range(259, 269)).get_base_model().lm_head
    scale = 1024.0 if dtype == torch.float16 else 1.0
    by_matrix, by_call = passes_of(head, scale), HeadPasses(head, scale)
    assert type(by_matrix) is MatrixPasses
    assert [id(p) for p in by_matrix.parameters] == [id(p) for p in by_call.parameters]
    hidden, back = torch.randn(7, 32).to(dtype), torch.randn(7, 269) / 100
    found = []
    for passes in (by_call, by_matrix):
        to_hidden = torch.empty_like(hidden)
        sums = [torch.zeros(p.shape) for p in passes.parameters]
        for rows in (slice(4), slice(4, 7)):  # the second piece is shorter: a part of the buffer
            logits = passes.logits(hidden[rows])
            kept = logits.clone()
            passes.gradients(logits.copy_(back[rows]), to_hidden[rows], sums)
        found.append([kept, to_hidden.float(), *sums])
    near = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= near * float(one.abs().max())


def test_a_head_that_is_more_than_a_matrix_is_called(model):
    head = copy.deepcopy(model.lm_head)
    assert type(passes_of(head)) is MatrixPasses
    with torch.autocast("cpu", torch.bfloat16):
        assert type(passes_of(head)) is HeadPasses
    head.register_forward_hook(lambda module, given, logits: logits * 2)
    assert type(passes_of(head)) is HeadPasses
    recipe = Recipe(name="t", task="pretrain", rank=4, embeddings="new-rows")
    adapted = add_lora(make_model(269), recipe, [3, 260])  # rows that are not the last ones
    assert type(passes_of(adapted.get_base_model().lm_head)) is HeadPasses
    assert type(passes_of(torch.nn.Linear(4, 9, bias=True))) is HeadPasses


def test_no_label_at_all_costs_nothing(model):
    with lean_loss(model):
        loss = model(IDS[:, :1].repeat(1, 2), labels=torch.full((2, 2), -100), num_items_in_batch=1).loss
    assert float(loss.detach()) == 0.0


@pytest.mark.parametrize("start", [None, "\n", "中国"])
def test_bits_through_the_forward_are_bits_per_character(model, tokenizer, start):
    texts = ["中国的首都是北京。" * 3, "", "ab"]
    expected = bits_per_character(model, tokenizer, texts, window=16, start=start)
    with lean_loss(model):
        got = bits_through_forward(model, tokenizer, texts, window=16, start=start)
    assert got.bits_per_character == pytest.approx(expected.bits_per_character, rel=1e-6)
    assert (got.tokens, got.characters) == (expected.tokens, expected.characters)
