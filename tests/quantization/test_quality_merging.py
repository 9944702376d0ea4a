"""Merging into 4 bits, against merging first."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from chinese_llama_lab.adapters import AdapterError, merge_adapters
from chinese_llama_lab.quantization.agreement import logit_divergence
from chinese_llama_lab.quantization.blockwise import dequantize, quantize
from chinese_llama_lab.quantization.dequantized import dequantized, restored
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.merging_loss import (
    BESIDE,
    MERGE_FIRST,
    MERGE_INTO,
    MERGED,
    NO_ADAPTER,
    WAYS,
    merge_into_quantized,
    merging_loss,
)
from chinese_llama_lab.quantization.texts import blocks_of
from chinese_llama_lab.sources.models import load_base
from tests.quantization.conftest import assert_same_bits
from tests.quantization.quality_models import saved
from tests.quantization.test_quality_layers import four_bit

TEXTS = {"zh": ["今天天气很好,我们去公园散步。", "他昨天买了三本书。"], "en": ["We walk in the park."]}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(folder, out, size=0.02, **options):
    """A folder with an adapter whose update is small beside the weights."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, **options}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(**options))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * size)
    model.save_pretrained(out, save_embedding_layers=False)
    return out


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merging")
    base = saved(folder / "base")
    return base, adapted(base, folder / "adapter")


@pytest.fixture(scope="module")
def rows(pair):
    return merging_loss(*pair, TEXTS, ways=(*WAYS, NO_ADAPTER), block=64)


@pytest.mark.parametrize("kind", ["nf4", "nf4-double", "fp4"])
def test_equals_peft_in_one_layer(pair, kind):
    base, adapter = pair
    code, double = kind.removesuffix("-double"), kind.endswith("-double")
    model = PeftModel.from_pretrained(four_bit(base, code, double=double), adapter)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    update = layer.get_delta_weight("default").detach()
    before = restored(layer.base_layer)
    original = load_base(str(base)).model.model.layers[1].mlp.up_proj.weight
    quantized = quantize(original, code, 64, double)
    assert_same_bits(before + 0.0, dequantize(quantized) + 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer.merge()
    after = restored(layer.base_layer)
    merged = merge_into_quantized(quantized, update)
    assert (merged.kind, merged.double) == (code, double)
    assert_same_bits(after + 0.0, dequantize(merged) + 0.0)
    assert not torch.equal(after, before)


def test_each_way_is_the_model_it_names(pair, rows, tmp_path):
    """The same four models, made by peft, bitsandbytes and `merge_adapters` themselves."""
    base, adapter = pair
    merge_adapters(base, [adapter], tmp_path / "merged", dtype="float32")
    reference, tokenizer = load_base(str(tmp_path / "merged"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        into = PeftModel.from_pretrained(four_bit(base), adapter).merge_and_unload()
    beside = PeftModel.from_pretrained(four_bit(base), adapter).eval().base_model.model
    models = {
        MERGE_FIRST: dequantized(four_bit(tmp_path / "merged")),
        MERGE_INTO: dequantized(into),
        BESIDE: beside,
        NO_ADAPTER: load_base(str(base)).model,
    }
    assert [row["way"] for row in rows] == [MERGED, *models]
    for row in rows[1:]:
        for language, texts in TEXTS.items():
            blocks = list(blocks_of(tokenizer, texts, 64))
            found = logit_divergence(reference, models[row["way"]], blocks)
            assert row[f"{language}_kl"] == pytest.approx(found.mean, rel=1e-3)
            assert row[f"{language}_kl_99"] == pytest.approx(found.percentile_99, rel=1e-3)
            assert row[f"{language}_same"] == found.same_first_choice


def test_figures(rows):
    by = {row["way"]: row for row in rows}
    merged, none = by[MERGED], by[NO_ADAPTER]
    assert (merged["rms"], merged["update_kept"], merged["zh_kl"], merged["zh_same"]) == (0, 1, 0, 1)
    # Without the update, the error is the update.
    assert none["error_over_update"] == pytest.approx(1, rel=1e-4)
    assert none["update_kept"] == 0
    assert by[BESIDE]["update_kept"] == pytest.approx(1, rel=1e-4)
    # Merging first and leaving it beside round once, merging into rounded weights twice.
    assert by[MERGE_FIRST]["rms"] == pytest.approx(by[BESIDE]["rms"], rel=0.05)
    assert by[MERGE_INTO]["rms"] > 1.05 * by[MERGE_FIRST]["rms"]
    assert by[MERGE_FIRST]["update_kept"] == pytest.approx(1, abs=0.2)
    for row in rows[1:]:
        assert row["rms"] / row["error_over_update"] == pytest.approx(none["rms"], rel=1e-3)


def test_an_update_below_half_a_step_is_lost(tmp_path):
    base = saved(tmp_path / "base")
    tiny_update = adapted(base, tmp_path / "tiny", size=1e-5)
    by = {row["way"]: row for row in merging_loss(base, tiny_update, {"en": TEXTS["en"]}, block=64)}
    assert by[MERGE_INTO]["update_kept"] < 0.5
    assert by[BESIDE]["update_kept"] == pytest.approx(1, abs=0.05)


def test_embedding_and_head_are_the_merged_models(tmp_path):
    base = saved(tmp_path / "base")
    folder = adapted(
        base, tmp_path / "rows", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    seen = []
    found = merging_loss(base, folder, {"en": TEXTS["en"]}, ways=(BESIDE, NO_ADAPTER), watch=seen.append)
    assert seen == found and [row["way"] for row in found] == [MERGED, BESIDE, NO_ADAPTER]
    # Only q_proj has an update; the other layers' rounding errors count all the same.
    assert 0.08 < found[1]["rms"] < 0.1 and found[2]["rms"] < 0.02


def test_bad_input(pair, tmp_path):
    base, adapter = pair
    quantized = quantize(torch.randn(64, 64))
    with pytest.raises(QuantizationError, match=r"update has shape \[64, 32\]"):
        merge_into_quantized(quantized, torch.zeros(64, 32))
    with pytest.raises(QuantizationError, match="merged weights holds nan"):
        merge_into_quantized(quantized, torch.full((64, 64), torch.nan))
    with pytest.raises(QuantizationError, match="no 4-bit kind 'int8'"):
        merging_loss(base, adapter, TEXTS, kind="int8")
    with pytest.raises(QuantizationError, match="no way 'magic'"):
        merging_loss(base, adapter, TEXTS, ways=["magic"])
    dora = adapted(base, tmp_path / "dora", use_dora=True)
    with pytest.raises(QuantizationError, match="uses DoRA"):
        merging_loss(base, dora, TEXTS)
    four_bit(base).save_pretrained(tmp_path / "four")
    with pytest.raises(AdapterError, match="the base is quantized"):
        merging_loss(tmp_path / "four", adapter, TEXTS)
