"""Several adapters, in the order they were trained in; and whether each was trained on what is before it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from training.conftest import make_model, make_tokenizer
from transformers import AutoTokenizer

from chinese_llama_lab.adapters import AdapterError, merge_adapters, weight_samples
from chinese_llama_lab.merging.samples import places

from .conftest import (
    RECIPE,
    edit,
    edit_json,
    load,
    save_adapter,
    save_base,
    save_with_peft,
    scores,
    tensors_of,
)


def note(adapter, model, **values):
    """What a run of `pretrain` would keep in its run.json."""
    about = {"rows": model.get_input_embeddings().weight.shape[0], "samples": weight_samples(model)}
    (adapter / "run.json").write_text(json.dumps(about | values, indent=1), encoding="utf-8")
    return adapter


@pytest.mark.parametrize("tied", [False, True])
def test_in_order(tmp_path, tied):
    """Three adapters, DoRA among them, each trained on those before: the last unmerged model's logits."""
    base, chain, middle = save_base(tmp_path / "base", tied=tied), [], tmp_path / "base"
    for n, changes in enumerate([{"dora": True}, {"rslora": True, "rank": 2}, {"dora": True, "alpha": 3}]):
        adapter, expected = save_adapter(middle, tmp_path / str(n), RECIPE.replace(**changes), seed=n)
        chain.append(note(adapter, load(middle)))
        report = merge_adapters(base, chain, tmp_path / f"until {n}", dtype="float32")
        middle = report.out
        assert torch.allclose(scores(load(middle)), expected, atol=1e-4)
    assert report.changed == ((15,) * 3 if tied else (16,) * 3) and len(report.made_of["adapters"]) == 3
    for wrong in ([1, 0, 2], [0, 2, 1], [1, 2], [0, 2]):
        with pytest.raises(AdapterError, match=r"trained on another base: .* sampled weights differ"):
            merge_adapters(base, [chain[n] for n in wrong], tmp_path / "wrong")
    for adapter in chain:
        (adapter / "run.json").unlink()
    backwards = merge_adapters(base, chain[::-1], tmp_path / "backwards", dtype="float32")
    assert not torch.allclose(scores(load(backwards.out)), expected, atol=1e-4)


def test_llama_to_chinese_llama_to_alpaca_grows(tmp_path):
    """Whole matrices with more rows than the base, then one row more: as 32,000 → 49,953 → 49,954."""
    base = save_base(tmp_path / "base", rows=259)
    published = RECIPE.replace(embeddings="published")

    def grow(folder, rows, out):
        model = load(folder)
        model.resize_token_embeddings(rows)
        model.save_pretrained(out)
        make_tokenizer(rows - 259).save_pretrained(out)
        return out

    grown = grow(base, 263, tmp_path / "grown")
    first, _ = save_adapter(grown, tmp_path / "first", published, tokens=())
    note(first, load(grown))
    middle = merge_adapters(base, [first], tmp_path / "middle", dtype="float32").out
    assert load(middle).config.vocab_size == 263
    again = grow(middle, 264, tmp_path / "again")
    second, expected = save_adapter(again, tmp_path / "second", published, tokens=(), seed=2)
    note(second, load(again))
    report = merge_adapters(base, [first, second], tmp_path / "out", dtype="float32")
    assert report.rows == 264 and torch.allclose(scores(load(report.out)), expected, atol=1e-4)
    assert len(AutoTokenizer.from_pretrained(report.out)) == 264
    assert report.unchanged == () and report.changed == (16, 16)
    with pytest.raises(AdapterError, match="trained on another base"):
        merge_adapters(base, [second], tmp_path / "wrong")
    with pytest.raises(AdapterError, match=r"has shape \[263, 32\], and the base \[264, 32\]"):
        merge_adapters(base, [second, first], tmp_path / "wrong")


def test_the_same_adapter_twice(tmp_path):
    base = save_base(tmp_path / "base")
    adapter, _ = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="are those of adapter, which is in the chain already"):
        merge_adapters(base, [adapter, shutil.copytree(adapter, tmp_path / "copy")], tmp_path / "out")


def test_a_merge_that_does_nothing_says_so(tmp_path):
    """Zero updates, and whole matrices that are what they were; the name is the run's, not `adapter`."""
    base = save_base(tmp_path / "base")
    some, _ = save_adapter(base, tmp_path / "some")
    zero, _ = save_adapter(base, tmp_path / "run" / "adapter", RECIPE.replace(embeddings="frozen"))
    edit(zero, lambda t: [t[name].zero_() for name in t if "lora_B" in name])
    copy, _ = save_adapter(base, tmp_path / "copy", RECIPE.replace(rank=0, embeddings="published"))
    wholes = tensors_of(base)
    edit(copy, lambda t: t.update({k: wholes[k.removeprefix("base_model.model.")] for k in t}))
    report = merge_adapters(base, [copy, tmp_path / "run", some], tmp_path / "out", dtype="float32")
    assert report.unchanged == ("copy", "run") and report.changed == (2, 14, 16)
    both = merge_adapters(base, [copy, zero], tmp_path / "nothing", dtype="float32")
    assert both.unchanged == ("copy", "adapter")
    assert all(torch.equal(w, wholes[name]) for name, w in tensors_of(both.out).items())


def test_what_a_later_matrix_replaces_is_a_change_all_the_same(tmp_path):
    base = save_base(tmp_path / "base")
    options = {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": "dummy-target-modules"}
    first, _, _ = save_with_peft(base, tmp_path / "first", **options)
    second, _, _ = save_with_peft(base, tmp_path / "second", seed=2, **options)
    report = merge_adapters(base, [first, second], tmp_path / "out")
    assert report.changed == (2, 2) and report.unchanged == ()


class TestTheBaseItWasTrainedOn:
    def test_in_any_dtype(self, tmp_path):
        base = save_base(tmp_path / "base")
        adapter, _ = save_adapter(base, tmp_path / "adapter")
        for n, there in enumerate([torch.float32, torch.bfloat16, torch.float16]):
            note(adapter, load(base, dtype=there))
            for here in (torch.float32, torch.bfloat16, torch.float16):
                given = tmp_path / f"{n}{here}"
                load(base, dtype=here).save_pretrained(given)
                merge_adapters(given, [adapter], tmp_path / f"out{n}{here}")

    @pytest.mark.parametrize("tied", [False, True])
    def test_another_one_with_the_same_shapes(self, tmp_path, tied):
        base = save_base(tmp_path / "base", tied=tied)
        other = save_base(tmp_path / "other", tied=tied, seed=1)
        adapter, _ = save_adapter(base, tmp_path / "adapter")
        note(adapter, load(other), base="smollm2")
        with pytest.raises(AdapterError, match=r"another base: \d+ of \d+ sampled(.|\n)*\(smollm2\)"):
            merge_adapters(base, [adapter], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_small_update_is_seen(self, tmp_path):
        """An adapter of a thousandth of the weights' size, left out of the chain."""
        base = save_base(tmp_path / "base")
        first, _ = save_adapter(base, tmp_path / "first", RECIPE.replace(embeddings="frozen"))
        edit(first, lambda t: [t[name].mul_(0.001) for name in t if "lora_B" in name])
        middle = merge_adapters(base, [first], tmp_path / "middle", dtype="float32").out
        moved = [
            (tensors_of(middle)[n] - w).norm() / w.norm() for n, w in tensors_of(base).items() if "proj" in n
        ]
        assert 1e-4 < max(moved) < 2e-3
        second, _ = save_adapter(middle, tmp_path / "second", seed=2)
        note(second, load(middle))
        with pytest.raises(AdapterError, match="another base"):
            merge_adapters(base, [second], tmp_path / "out")
        merge_adapters(base, [first, second], tmp_path / "out")

    def test_rows_that_are_trained_may_start_anywhere(self, tmp_path):
        base = save_base(tmp_path / "base")
        sampled = sorted({row for row, _ in places([264, 32])})
        adapter, _ = save_adapter(base, tmp_path / "adapter", tokens=[3, *sampled, 263])
        note(adapter, load(base))
        matrices = ("model.embed_tokens.weight", "lm_head.weight")
        edit(base, lambda t: [t[n][sampled[0]].mul_(9) for n in matrices], "model.safetensors")
        merge_adapters(base, [adapter], tmp_path / "out")
        fewer, _ = save_adapter(base, tmp_path / "fewer", tokens=[3, 263])
        note(fewer, load(base))
        edit(base, lambda t: t["model.embed_tokens.weight"][sampled[0]].mul_(9), "model.safetensors")
        with pytest.raises(AdapterError, match=r"4 of \d+ .* differ, as model.embed_tokens.weight"):
            merge_adapters(base, [fewer], tmp_path / "out1")
        edit(base, lambda t: t["model.norm.weight"].mul_(9), "model.safetensors")
        with pytest.raises(AdapterError, match=r"8 of \d+ .* differ, as model.norm.weight"):
            merge_adapters(base, [adapter], tmp_path / "out2")

    def test_a_quantized_base_leaves_out_what_it_rounded(self, tmp_path):
        """As bitsandbytes keeps it: packed bytes in place of the linear layers; the rest can be compared."""
        model = make_model()

        class Params4bit(torch.nn.Parameter):
            quant_state = "packed"

        for layer in model.model.layers:
            layer.mlp.up_proj.weight = Params4bit(torch.rand(1024, 1).bfloat16(), requires_grad=False)
            packed = torch.zeros(512, 1, dtype=torch.uint8)
            layer.mlp.down_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
        samples = weight_samples(model)
        assert not any("up_proj" in name or "down_proj" in name for name in samples)
        assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= samples.keys()
        assert weight_samples(make_model(tied=True)).keys() == {
            n for n, _ in make_model(tied=True).named_parameters()
        }

    def test_a_checkpoint_finds_its_run(self, tmp_path):
        base, other = save_base(tmp_path / "base"), save_base(tmp_path / "other", seed=1)
        step = tmp_path / "run" / "checkpoints" / "step-000010"
        save_adapter(base, step)
        shutil.move(note(step, load(other)) / "run.json", tmp_path / "run" / "run.json")
        with pytest.raises(AdapterError, match="trained on another base"):
            merge_adapters(base, [step], tmp_path / "out")

    def test_a_run_that_kept_no_samples(self, tmp_path):
        """Rows are compared all the same; and what is no list of numbers is refused."""
        base = save_base(tmp_path / "base")
        adapter, _ = save_adapter(base, tmp_path / "adapter")
        (adapter / "run.json").write_text('{"rows": 263}', encoding="utf-8")
        with pytest.raises(AdapterError, match="trained on a base with 263 rows, and this one has 264"):
            merge_adapters(base, [adapter], tmp_path / "out")
        for kept in ("1 2 3", "a b c d e f g h", 5):
            edit_json(adapter / "run.json", rows=264, samples={"model.norm.weight": kept})
            with pytest.raises(AdapterError, match=r"run.json says .* of model.norm.weight"):
                merge_adapters(base, [adapter], tmp_path / "out")
        edit_json(adapter / "run.json", samples={"model.layers.7.norm.weight": "1 1 1 1 1 1 1 1"})
        with pytest.raises(
            AdapterError, match=r"a base with a model.layers.7.norm.weight, and this one has none"
        ):
            merge_adapters(base, [adapter], tmp_path / "out")
        (adapter / "run.json").write_text("[]", encoding="utf-8")
        with pytest.raises(AdapterError, match="no JSON object"):
            merge_adapters(base, [adapter], tmp_path / "out")
