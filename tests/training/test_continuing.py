"""A run that goes on from an adapter."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.pretrain import pretrain
from chinese_llama_lab.training.recipe import Recipe

from .conftest import CHINESE, make_model, make_tokenizer

RECIPE = Recipe(
    name="test",
    task="pretrain",
    rank=4,
    alpha=8,
    dropout=0.0,
    block=32,
    micro_batch=2,
    batch=2,
    steps=6,
    learning_rate=1e-2,
    log_every=1,
    save_every=2,
)


def run(out, recipe=RECIPE, **options):
    model = make_model(264, seed=options.pop("model_seed", 0))
    return pretrain(
        model,
        make_tokenizer(5),
        CHINESE * 10,
        recipe,
        out,
        new_tokens=range(259, 264),
        held_out={"zh": CHINESE[:3]},
        progress=False,
        **options,
    )


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return run(tmp_path_factory.mktemp("first") / "run")


def bits(report):
    return [row["zh_bits"] for row in report.rows if "zh_bits" in row]


@pytest.mark.parametrize("inner", ["", "adapter"])
def test_it_starts_where_the_first_run_ended(first, tmp_path, inner):
    second = run(tmp_path / "run", RECIPE.replace(seed=1), start_from=first.out / inner)
    assert bits(second)[0] == pytest.approx(bits(first)[-1], rel=1e-6)
    assert bits(second)[-1] < bits(second)[0]
    old, new = weights(first.adapter), weights(second.adapter)
    assert old.keys() == new.keys() and not all(torch.equal(old[key], new[key]) for key in old)
    about = json.loads((second.adapter / "run.json").read_text())
    assert len(about["starts_from"]) == 64


def test_a_rate_of_almost_nothing_leaves_it_almost_as_it_was(first, tmp_path):
    second = run(tmp_path / "run", RECIPE.replace(learning_rate=1e-12, steps=1), start_from=first.out)
    for key, value in weights(first.adapter).items():
        assert torch.allclose(weights(second.adapter)[key], value, atol=1e-9), key


def test_stopped_and_resumed_it_is_the_same(first, tmp_path):
    whole = run(tmp_path / "whole", start_from=first.out)
    part = tmp_path / "part"

    def stop(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(part, start_from=first.out, watch=stop)
    again = run(part, start_from=first.out, resume=True)
    assert again.resumed_from == 2
    one, two = weights(whole.adapter), weights(again.adapter)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_same_folder_with_another_start_is_another_run(first, tmp_path):
    run(tmp_path / "run", start_from=first.out)
    for other in (tmp_path / "run" / "adapter", None):
        with pytest.raises(TrainingError, match="starts_from"):
            run(tmp_path / "run", start_from=other, resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"rank": 8}, "r is 4"), ({"alpha": 16}, "alpha"), ({"targets": ("q_proj",)}, "missing")],
)
def test_an_adapter_of_another_shape_is_refused(first, tmp_path, change, said):
    with pytest.raises(TrainingError, match=said) as caught:
        run(tmp_path / "run", RECIPE.replace(**change), start_from=first.out)
    assert "rank" in caught.value.remedy


def test_an_adapter_of_another_model_is_refused(first, tmp_path):
    with pytest.raises(TrainingError, match="another model"):
        run(tmp_path / "run", start_from=first.out, model_seed=1)
    assert not (tmp_path / "run").exists()
