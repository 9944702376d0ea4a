"""Learning rates that break a run and what mends it, on models of two layers."""

from __future__ import annotations

import math

import pytest
import torch

from chinese_llama_lab.training.batches import BlockSequences, run_order
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.instability import Setting, short_run, sweep, untrained_losses, verdicts
from chinese_llama_lab.training.lora import add_lora
from chinese_llama_lab.training.packing import pack
from chinese_llama_lab.training.pretrain import pretrain
from chinese_llama_lab.training.recipe import Recipe

from .conftest import CHINESE, make_model, make_tokenizer

RECIPE = Recipe(name="t", task="pretrain", rank=4, alpha=8, dropout=0.0, block=16, micro_batch=1, batch=1)


def batches(count, length=16):
    """The same bytes again and again, which a model of two layers can learn."""
    ids = list("中国的首都是北京。".encode()) * (count * length)
    return [torch.tensor([ids[n * length : (n + 1) * length]]) for n in range(count)]


@pytest.fixture
def adapted():
    return add_lora(make_model(), RECIPE)


def trained_weights(model):
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def test_a_high_rate_diverges_and_a_lower_one_or_warm_up_cures(adapted):
    high = 30.0
    settings = [
        Setting("high", high),
        Setting("lower", 0.02),
        Setting("warm-up", high, warmup=1000),
    ]
    found = {row["run"]: row for row in verdicts(sweep(adapted, batches(12), settings))}
    assert found["high"]["verdict"] in ("diverged", "stopped")
    assert found["lower"]["verdict"] == "learns" and found["lower"]["end"] < 0
    assert found["warm-up"]["verdict"] == "learns"


def test_clipping_keeps_one_wild_batch_out_of_the_optimizers_memory(adapted):
    wild = {"loss_factors": [1.0, 1e4]}
    rows = sweep(
        adapted, batches(16), [Setting("none", 0.01), Setting("clipped", 0.01, max_grad_norm=0.1)], **wild
    )
    found = {row["run"]: row for row in verdicts(rows)}
    assert found["none"]["largest gradient"] > 1000  # before clipping, in both
    assert found["clipped"]["largest gradient"] > 1000
    assert found["clipped"]["end"] < found["none"]["end"] - 0.01


def test_every_run_starts_from_the_same_weights_and_leaves_them(adapted):
    before = trained_weights(adapted)
    adapted.eval()
    one = short_run(adapted, batches(4), Setting("a", 0.01))
    two = short_run(adapted, batches(4), Setting("a", 0.01))
    assert one == two and not adapted.training
    assert all(torch.equal(a, b) for a, b in zip(before, trained_weights(adapted), strict=True))
    assert all(p.grad is None for p in adapted.parameters())


def test_the_loop_is_that_of_pretrain(tmp_path):
    """The same losses as a real run of the same recipe over the same blocks."""
    recipe = RECIPE.replace(
        steps=6,
        learning_rate=0.02,
        warmup_ratio=0.0,
        schedule="constant",
        log_every=1,
        max_grad_norm=0.3,
        separate_documents=False,
    )
    report = pretrain(
        make_model(), make_tokenizer(), CHINESE * 4, recipe, tmp_path / "r", new_tokens=(), progress=False
    )
    blocks = pack(CHINESE * 4, make_tokenizer(), 16, seed=recipe.seed, separate=False, tokens=6 * 16)
    order = run_order(BlockSequences(blocks), epochs=1, steps=6, batch=1, micro=1, seed=recipe.seed)
    text = [torch.tensor([blocks.block_ids(n)]) for n in order]
    model = add_lora(make_model(), recipe)
    rows = short_run(model, text, Setting("same", 0.02, max_grad_norm=0.3))
    assert [row["loss"] for row in rows] == pytest.approx(report.losses, rel=1e-5)


def test_warm_up_rises_linearly():
    setting = Setting("w", 0.8, warmup=3)
    assert [setting.rate(step) for step in range(1, 7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert Setting("none", 0.8).rate(1) == 0.8


def test_above_is_against_the_untrained_model_on_the_same_batch(adapted):
    text = batches(3)
    rows = sweep(adapted, text, [Setting("a", 0.01)])
    untrained = untrained_losses(adapted, text)
    assert rows[0]["above"] == pytest.approx(0.0, abs=1e-5)
    for row, loss in zip(rows, untrained, strict=True):
        assert row["above"] == pytest.approx(row["loss"] - loss)
    expected = adapted(text[1], labels=text[1], use_cache=False).loss
    assert untrained[1] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_loss_that_is_no_number_ends_the_run_with_a_note(adapted):
    with torch.no_grad():
        adapted.get_input_embeddings().weight[7] = float("nan")
    text = [*batches(2), torch.tensor([[7, 8, 9]]), *batches(2)]
    rows = sweep(adapted, text, [Setting("a", 0.01)])
    assert len(rows) == 3 and rows[-1]["loss"] == "" and rows[-1]["above"] == ""
    assert rows[-1]["note"] == "stopped at step 3: the loss is nan"
    assert verdicts(rows)[0]["verdict"] == "stopped"


def test_a_gradient_that_is_no_number_ends_the_run(adapted):
    rows = short_run(adapted, batches(3), Setting("a", 0.01), loss_factors=[1.0, math.inf])
    assert len(rows) == 2 and "gradient's norm is" in rows[-1]["note"] and rows[-1]["loss"] != ""


def test_nothing_to_run_is_an_error(adapted):
    with pytest.raises(TrainingError, match="there is no batch"):
        short_run(adapted, [], Setting("a", 0.01))
    with pytest.raises(TrainingError, match="trains nothing"):
        short_run(make_model().requires_grad_(False), batches(1), Setting("a", 0.01))


def test_verdicts_by_hand():
    def rows(name, above, note=""):
        return [
            {"run": name, "step": n, "above": v, "gradient": 1.0, "note": ""} for n, v in enumerate(above)
        ][: len(above) - bool(note)] + (
            [{"run": name, "above": "", "gradient": "", "note": note}] if note else []
        )

    found = verdicts(
        rows("l", [0, -0.2, -0.3])
        + rows("s", [0, 0.6, -0.1, -0.1, -0.1])
        + rows("d", [0, -0.5, 0.1, 0.1, 0.2])
        + rows("n", [0, -0.5, 0], "stopped at step 3: the loss is nan")
    )
    assert [row["verdict"] for row in found] == ["learns", "spiked", "diverged", "stopped"]
    assert found[2]["end"] == pytest.approx(0.133) and found[1]["worst"] == 0.6
