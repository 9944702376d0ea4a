"""Errors by kind of layer, outliers by block size, and 4-bit layers written out."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from chinese_llama_lab.quantization.agreement import logit_divergence
from chinese_llama_lab.quantization.blockwise import dequantize, quantize
from chinese_llama_lab.quantization.dequantized import dequantized, restored
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.kinds import LOADABLE
from chinese_llama_lab.quantization.layer_errors import (
    errors_by_layer_kind,
    int8_by_row,
    outlier_sweep,
    plant_outliers,
)
from chinese_llama_lab.quantization.measures import outlier_share, weight_error
from tests.quantization.conftest import assert_same_bits
from tests.quantization.quality_models import saved, tiny

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"]


def four_bit(folder, kind="nf4", dtype="float32", compute=torch.float32, *, double=False):
    """As bitsandbytes quantizes it when transformers loads it; the plain path in eval mode."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_use_double_quant=double,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), quantization_config=config
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"))


def test_all_kinds_of_layers(folder):
    model = tiny()
    rows = errors_by_layer_kind(model)
    assert [(row["layer"], row["kind"]) for row in rows] == [
        (layer, kind) for layer in [*LAYERS, "lm_head"] for kind in LOADABLE
    ]
    assert errors_by_layer_kind(folder) == errors_by_layer_kind(str(folder)) == rows
    by = {(row["layer"], row["kind"]): row for row in rows}
    weights = torch.stack([layer.mlp.up_proj.weight.detach() for layer in model.model.layers])
    for kind, exact in (
        ("nf4-double", [dequantize(quantize(w, "nf4", 64, True)) for w in weights]),
        ("bf16", weights.to(torch.bfloat16)),
        ("int8", [codes * (scales / 127).unsqueeze(1) for codes, scales in map(int8_by_row, weights)]),
    ):
        error = torch.stack(list(exact)).double() - weights.double()
        row = by["up_proj", kind]
        assert row["rms"] == pytest.approx(float(error.norm() / weights.double().norm()), rel=1e-5)
        assert (row["tensors"], row["weights"]) == (2, weights.numel())
        singles = [float(e.norm() / w.double().norm()) for e, w in zip(error, weights, strict=True)]
        assert row["worst_rms"] == pytest.approx(max(singles), rel=1e-5)
        assert row["worst_tensor"] == f"model.layers.{singles.index(max(singles))}.mlp.up_proj.weight"
    row = by["up_proj", "nf4"]
    assert row["bits_per_weight"] == 4.5
    assert row["outliers"] == pytest.approx(sum(map(outlier_share, weights)) / 2)
    assert by["up_proj", "fp32"]["rms"] == 0
    order = [by["q_proj", kind]["rms"] for kind in ("fp16", "bf16", "int8", "nf4", "fp4")]
    assert order == sorted(order)


def test_a_tied_pair_is_measured_once(tmp_path):
    rows = errors_by_layer_kind(saved(tmp_path / "tied", tied=True), ["nf4"])
    assert [row["layer"] for row in rows] == LAYERS
    assert rows == errors_by_layer_kind(tiny(tied=True), "nf4")


def test_int8_is_that_of_bitsandbytes():
    from bitsandbytes.nn import Linear8bitLt

    weights = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    weights[3, 5], weights[7] = 60, 0
    layer = Linear8bitLt(64, 48, bias=False, has_fp16_weights=False)
    layer.weight.data.copy_(weights)
    layer = layer.to("cpu")
    if layer.weight.CB is None:  # `to` quantizes only on a change of device in some versions
        layer.weight._quantize("cpu")
    codes, scales = int8_by_row(weights)
    assert_same_bits(codes, layer.weight.CB)
    assert_same_bits(scales, layer.weight.SCB)


def test_outliers_and_block_size():
    weights = torch.randn(128, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    planted = plant_outliers(weights, 1e-3, 20)
    changed = planted != weights
    assert int(changed.sum()) == round(1e-3 * weights.numel())
    assert planted[changed].abs().unique().tolist() == pytest.approx([20 * float(weights.std())], rel=1e-3)
    assert len(planted[changed].unique()) == 2  # of both signs
    assert torch.equal(planted, plant_outliers(weights, 1e-3, 20))
    assert not torch.equal(planted, plant_outliers(weights, 1e-3, 20, seed=1))
    assert torch.equal(plant_outliers(weights, 0), weights)

    rows = outlier_sweep(weights, (0, 1e-3), block_sizes=(64, 1024), name="w")
    assert [(r["tensor"], r["planted"], r["block_size"]) for r in rows] == [
        ("w", 0, 64), ("w", 0, 1024), ("w", 1e-3, 64), ("w", 1e-3, 1024)
    ]  # fmt: skip
    for row in rows:
        exact = plant_outliers(weights, row["planted"])
        assert row["rms"] == weight_error(exact, "nf4", row["block_size"]).rms
        restored_weights = dequantize(quantize(exact, "nf4", row["block_size"]))
        error = float((restored_weights - exact).double().norm() / weights.double().norm())
        assert row["rms_before"] == pytest.approx(error, rel=1e-5)
    # A large block spoils more neighbours of an outlier.
    plain = rows[1]["rms_before"] / rows[0]["rms_before"]
    assert rows[3]["rms_before"] / rows[2]["rms_before"] > 1.5 * plain


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_dequantized_is_the_same_model(folder, kind, double):
    for dtype, compute in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = four_bit(folder, kind, dtype, compute, double=double)
        name = "model.layers.1.mlp.up_proj"
        original = tiny().get_submodule(name).weight.detach().to(getattr(torch, dtype))
        expected = dequantize(quantize(original, kind, 64, double))
        assert_same_bits(restored(model.get_submodule(name)) + 0.0, expected + 0.0)
        block = torch.arange(100).view(1, -1)
        with torch.inference_mode():
            before = model(block).logits
            assert dequantized(model) is model
            after = model(block).logits
        assert not any(type(m).__name__ == "Linear4bit" for m in model.modules())
        assert_same_bits(before, after)
    # Another compute dtype than the model's: products in it, results in the model's.
    rounded = four_bit(folder, kind, "float32", torch.bfloat16, double=double)
    with torch.inference_mode():
        before, after = rounded(block).logits, dequantized(rounded)(block).logits
    assert rounded.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert after.dtype == torch.float32
    assert_same_bits(before, after)


def test_the_fast_kernel_gives_nearly_the_same(folder):
    from bitsandbytes.nn.modules import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("the kernel needs a processor with AVX512-BF16")
    fast, plain = four_bit(folder), dequantized(four_bit(folder))
    for module in fast.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    blocks = [list(range(200))]
    apart = logit_divergence(plain, fast, blocks).mean
    assert 0 < apart < 0.02 * logit_divergence(tiny(), plain, blocks).mean
    with pytest.raises(QuantizationError, match=r"packed the weights of model\.layers\.0\.self_attn\.q_proj"):
        dequantized(fast)


def test_bad_input(folder, tmp_path):
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(QuantizationError, match="the share is"):
            plant_outliers(torch.ones(64), share)
    with pytest.raises(QuantizationError, match="is empty"):
        outlier_sweep(torch.ones(0))
    with pytest.raises(QuantizationError, match="no kind 'nf5'"):
        errors_by_layer_kind(folder, ["nf4", "nf5"])
    with pytest.raises(QuantizationError, match="no safetensors"):
        errors_by_layer_kind(tmp_path)
    with pytest.raises(QuantizationError, match="no matrices"):
        errors_by_layer_kind(torch.nn.LayerNorm(3))
    broken = tiny()
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(QuantizationError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        errors_by_layer_kind(broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = four_bit(folder)
    with pytest.raises(QuantizationError, match=r"q_proj\.weight holds torch\.uint8"):
        errors_by_layer_kind(quantized)
    quantized.save_pretrained(tmp_path / "four")
    with pytest.raises(QuantizationError, match=r"weight holds torch\.uint8"):
        errors_by_layer_kind(tmp_path / "four")
    from bitsandbytes.nn import Linear4bit

    with pytest.raises(QuantizationError, match="was not quantized"):
        dequantized(torch.nn.Sequential(Linear4bit(64, 64)))
