"""Counts equal those of the models that transformers builds."""

from __future__ import annotations

import json

import pytest
import torch

from chinese_llama_lab.inference.errors import EstimateError
from chinese_llama_lab.inference.shapes import SHAPES, shape_of

CONFIG = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def config_of(shape):
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    kind = Qwen3Config if shape.head_norms else Qwen2Config if shape.biased else LlamaConfig
    return kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        tie_word_embeddings=shape.tied,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_a_built_in_shape_has_the_parameters_of_transformers_model(name):
    from transformers import AutoModelForCausalLM

    shape = SHAPES[name]
    config = config_of(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == model.num_parameters()
    linear = [p.numel() for n, p in model.named_parameters() if "proj.weight" in n]
    assert shape.linear == sum(linear)
    assert shape_of(config).parameters == shape.parameters  # read back from the config


@pytest.mark.parametrize(
    ("name", "parameters"),  # as their publishers count them
    [
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("llama-33b", 32_528_943_616),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3.2-3b", 3_212_749_824),
        ("tinyllama", 1_100_048_384),
        ("qwen-7b", 7_721_324_544),
        ("smollm2", 134_515_008),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
    ],
)
def test_known_counts(name, parameters):
    assert shape_of(name).parameters == parameters


def test_biases_of_a_llama_config_are_counted():
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        **{k: v for k, v in CONFIG.items() if k != "model_type"}, attention_bias=True, mlp_bias=True
    )
    assert shape_of(config).parameters == AutoModelForCausalLM.from_config(config).num_parameters()


def test_a_folder_a_file_a_mapping_and_a_nested_config(tmp_path):
    place = tmp_path / "config.json"
    place.write_text(json.dumps(CONFIG), encoding="utf-8")
    expected = shape_of(CONFIG).parameters
    assert shape_of(tmp_path).parameters == shape_of(str(place)).parameters == expected
    assert shape_of({"model_type": "vision-and-text", "text_config": CONFIG}).parameters == expected


def test_a_config_with_fields_missing_says_which():
    rest = {k: v for k, v in CONFIG.items() if k not in ("hidden_size", "vocab_size")}
    with pytest.raises(EstimateError, match="lacks vocab_size, hidden_size"):
        shape_of(rest)
    with pytest.raises(EstimateError, match="lacks num_hidden_layers"):
        shape_of({**CONFIG, "num_hidden_layers": None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"hidden_size": "4096"}, "is not a size"),
        ({"num_hidden_layers": True}, "is not a size"),
        ({"vocab_size": -1}, "vocab_size = -1"),
        ({"num_attention_heads": 3}, "no multiple of 3 heads"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
        ({"model_type": "mixtral"}, "mixtral"),
        ({"model_type": "gpt2"}, "gpt2"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(EstimateError, match=message):
        shape_of({**CONFIG, **change})


@pytest.mark.parametrize("source", ["llama-8t", "no/such-model", "./nowhere", 7, None])
def test_what_is_no_model_is_refused(source):
    with pytest.raises(EstimateError):
        shape_of(source)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_a_damaged_config_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(EstimateError, match="config"):
        shape_of(tmp_path)
