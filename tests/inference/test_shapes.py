"""Counts equal those of the models that transformers builds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from chinese_llama_lab.inference.errors import EstimateError
from chinese_llama_lab.inference.shapes import _HUB, SHAPES, known_shape, shape_of
from chinese_llama_lab.paths import data_dir

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


@pytest.mark.parametrize(
    ("name", "built_in"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("Qwen/Qwen-7B-Chat", "qwen-7b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("meta-llama/Llama-2-13b-chat-hf", "llama-2-13b"),
        ("hfl/chinese-llama-2-13b", "chinese-llama-2-13b"),
        ("hfl/chinese-alpaca-2-13b", "chinese-llama-2-13b"),
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "tinyllama"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama"),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", "smollm2-360m"),
        ("smollm2-zh-instruct", "smollm2-zh"),
    ],
)
def test_a_model_trained_further_has_its_bases_shape(name, built_in):
    assert shape_of(name) == SHAPES[built_in]


def test_every_hub_id_is_found_as_it_is_listed():
    for name, built_in in _HUB.items():
        assert known_shape(name) == known_shape(name.upper()) == SHAPES[built_in]


@pytest.mark.parametrize(
    "name",
    [
        "TinyLlama/TinyLlama-1.1B-Chat-v0.3",  # 32,003 pieces
        "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4",
        "someone/llama-7b",
        "-chat",
        "hfl/",
        "",
    ],
)
def test_a_name_that_only_looks_like_a_known_one_has_no_shape(name):
    assert known_shape(name) is None


@pytest.mark.parametrize("name", ["smollm2-zh", "smollm2-zh-instruct"])
def test_this_projects_models_have_the_rows_of_their_run(name):
    run = json.loads((data_dir() / "adapters" / name / "run.json").read_text(encoding="utf-8"))
    assert shape_of(name) == replace(SHAPES["smollm2"], name="smollm2-zh", vocabulary=run["rows"])


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


def test_an_unknown_name_is_told_the_ways_out():
    with pytest.raises(EstimateError, match=r"did you mean qwen/qwen2.5-7b.*config\.json.*a folder") as error:
        shape_of("Qwen/Qwen2.5-72B")
    assert all(name in str(error.value) for name in SHAPES)
    with pytest.raises(EstimateError) as error:
        shape_of("%%%")
    assert "did you mean" not in str(error.value) and "config.json" in str(error.value)
