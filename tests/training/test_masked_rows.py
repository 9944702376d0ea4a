"""Rows without labels and queries without keys, on models of two layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chinese_llama_lab.training.batches import BlockSequences
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.lora import add_lora
from chinese_llama_lab.training.masked_rows import PACKAGE, masked_attention, masked_rows
from chinese_llama_lab.training.packing import pack
from chinese_llama_lab.training.recipe import Recipe
from chinese_llama_lab.training.run import train

from .conftest import CHINESE, make_model, make_tokenizer

IDS = torch.tensor([[1, 250, 2, 230, 3, 240], [7, 9, 0, 44, 100, 5]])
RECIPE = Recipe(name="t", task="pretrain", rank=4, alpha=8, dropout=0.0, block=16, micro_batch=1, batch=1)


@pytest.fixture
def adapted():
    return add_lora(make_model(), RECIPE)


def trained_weights(model):
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def by_case(rows):
    return {(row["batch"], row["way"]): row for row in rows}


def test_a_row_without_labels_poisons_a_mean_by_hand_and_not_the_packages(adapted):
    before = trained_weights(adapted)
    found = by_case(masked_rows(adapted, IDS))
    assert len(found) == 9
    assert {row["loss"] for (batch, _), row in found.items() if batch == "all labels"} == {
        found["all labels", PACKAGE]["loss"]
    }
    hand, torchs = "sum / count of each row, by hand", "torch's mean of each row"
    for batch in ("one row without", "no label at all"):
        assert found[batch, hand] | {"batch": 0, "way": 0} == {
            "batch": 0, "way": 0, "loss": "nan", "gradient": "nan", "weights": "nan",
        }  # fmt: skip
        assert found[batch, torchs]["loss"] == "nan" and found[batch, torchs]["weights"] != "nan"
    good = found["one row without", PACKAGE]
    first = IDS[:1]
    expected = adapted(first, labels=first, use_cache=False).loss
    assert float(good["loss"]) == pytest.approx(float(expected.detach()), abs=1e-3)
    assert (good["gradient"], good["weights"]) == ("finite", "changed")
    assert found["no label at all", PACKAGE]["weights"] == "unchanged, stopped"
    assert all(torch.equal(a, b) for a, b in zip(before, trained_weights(adapted), strict=True))


class Blank(BlockSequences):
    """Blocks of which none has a label."""

    def item(self, index):
        return replace(super().item(index), labels=[-100] * self.lengths[index])


def test_the_trainer_takes_no_step_without_any_label(tmp_path):
    model = make_model()
    blank = Blank(pack(CHINESE * 4, make_tokenizer(), 16))
    with pytest.raises(TrainingError, match="the loss is nan at step 1; its batch held document"):
        train(model, make_tokenizer(), blank, RECIPE.replace(steps=2), tmp_path / "r", progress=False)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_query_without_keys():
    rows = {row["way"]: row for row in masked_attention()}
    assert len(rows) == 5
    assert rows["nothing masked"]["output"] == "3.000"
    assert rows["softmax by hand, -inf added"] | {"way": 0} == {
        "way": 0, "output": "nan", "gradient": "nan",
    }  # fmt: skip
    # The lowest finite number instead: no NaN, but a mean of what was to be hidden.
    assert rows["softmax by hand, -3.4e+38 added"]["output"] == "3.000"
    for way in ("torch's scaled_dot_product_attention, -inf", "the same, a mask of False"):
        assert (rows[way]["output"], rows[way]["gradient"]) == ("0.000", "finite")
