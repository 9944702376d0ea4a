"""A config's `quantization_config` becomes options of `estimate`, unless they are given."""

from __future__ import annotations

import json

import pytest

from chinese_llama_lab.inference.errors import EstimateError
from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.inference.fits import fits, knobs
from chinese_llama_lab.inference.settings import MODULES
from chinese_llama_lab.inference.shapes import SHAPES
from chinese_llama_lab.inference.stored import with_stored

CONFIG = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
INT8 = {"load_in_8bit": True, "quant_method": "bitsandbytes"}


def four_bit(book="nf4", double=False, **rest):
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": book,
        "bnb_4bit_use_double_quant": double,
        "quant_method": "bitsandbytes",
        **rest,
    }


def quantized(said):
    return {**CONFIG, "quantization_config": said}


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (four_bit(), "nf4"),
        (four_bit(double=True), "nf4-double"),
        (four_bit("fp4"), "fp4"),
        (four_bit("fp4", double=True), "fp4-double"),
        (INT8, "int8"),
    ],
)
def test_a_config_says_its_quantization(said, kind):
    found = estimate(quantized(said))
    assert found == estimate(CONFIG, quantization=kind)
    assert found.components["linear weights"] < 0.51 * estimate(CONFIG).components["linear weights"]
    nested = {"model_type": "vision", "text_config": CONFIG, "quantization_config": said}
    assert estimate(nested).components == found.components
    assert estimate({"model_type": "vision", "text_config": quantized(said)}).components == found.components


def test_what_the_caller_gives_counts():
    config = quantized(four_bit())
    assert estimate(config, quantization="int8") == estimate(CONFIG, quantization="int8")
    assert estimate(config, quantization="none") == estimate(CONFIG)
    assert with_stored(config, {"quantize_head": True}) == {"quantization": "nf4", "quantize_head": True}
    assert with_stored(CONFIG, {"block": 7}) == {"block": 7}
    for known in ("smollm2", SHAPES["smollm2"]):
        assert with_stored(known, {}) == {}


def test_layers_that_were_left_out():
    def left(*names):
        return with_stored(quantized(four_bit(llm_int8_skip_modules=list(names))), {})

    rest = tuple(name for name in MODULES if name != "down_proj")
    assert left("lm_head") == {"quantization": "nf4", "quantize_head": False}
    assert left() == {"quantization": "nf4", "quantize_head": True}
    expected = {"quantization": "nf4", "quantize_head": False, "quantized": rest}
    assert left("lm_head", "mlp.down_proj") == left("lm_head", "down_proj") == expected
    assert left("lm_head", "vision_tower", "model.norm") == left("lm_head")
    with pytest.raises(EstimateError, match=r"leaves out model\.layers\.0,"):
        left("lm_head", "model.layers.0")


@pytest.mark.parametrize("method", ["gptq", "awq", "mxfp4"])
def test_another_librarys_quantization_is_refused_by_name(method):
    config = quantized({"quant_method": method, "bits": 4})
    with pytest.raises(EstimateError, match=f"quantized as {method}.*"):
        estimate(config)
    assert estimate(config, quantization="nf4") == estimate(CONFIG, quantization="nf4")


def test_training_over_quantized_weights():
    config = quantized(four_bit())
    assert estimate(config, "qlora") == estimate(CONFIG, "qlora", quantization="nf4")
    with pytest.raises(EstimateError, match="quantized weights have no gradient"):
        estimate(config, "full")
    with pytest.raises(EstimateError, match="int8"):
        estimate(quantized(INT8), "qlora")


def test_tables_of_a_quantized_model_say_what_their_rows_are():
    assert repr(fits(quantized(four_bit()))) == repr(fits(CONFIG))
    changes = {knob.change for knob in knobs(quantized(four_bit()))}
    assert "quantization = nf4-double" in changes
    assert not changes & {"quantization = nf4", "quantization = int8"}


def test_a_folder_of_quantize(tmp_path):
    """Linear weights, constants and head take the bytes of the tensors in the file."""
    pytest.importorskip("bitsandbytes", reason="an optional dependency")
    from safetensors import safe_open
    from transformers import LlamaConfig, LlamaForCausalLM

    from chinese_llama_lab.quantization.load import load_quantized, save_quantized
    from tests.training.conftest import make_tokenizer

    LlamaForCausalLM(LlamaConfig(**CONFIG, tie_word_embeddings=True)).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    base = load_quantized(
        tmp_path / "base", "nf4", compute_dtype="bfloat16", fast=False, quantize_head=True, skip=["o_proj"]
    )
    folder = save_quantized(base, tmp_path / "out")
    with safe_open(folder / "model.safetensors", "pt") as file:
        held = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118 - not a dict
    linear = sum(size for name, size in held.items() if name.endswith("_proj.weight"))
    parts = estimate(folder).components
    assert parts["linear weights"] == linear
    assert parts["head"] == held["lm_head.weight"] == 1000 * 256 / 2
    assert parts["quantization constants"] == sum(n for name, n in held.items() if name.endswith("absmax"))
    assert estimate(str(folder / "config.json")).components == parts
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    assert estimate(folder).components["linear weights"] > 3 * linear
