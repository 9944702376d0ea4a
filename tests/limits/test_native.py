"""Published facts of models: tables are read strictly, configs as their families mean them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from chinese_llama_lab.limits.architecture import attention_kind, describe, published_configs
from chinese_llama_lab.limits.errors import NativeError
from chinese_llama_lab.limits.native import licence_table, load_models, load_scores, scores
from chinese_llama_lab.paths import data_dir

LLAMA = {
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 100,
}


@pytest.mark.parametrize(("heads", "kv", "kind"), [(8, 8, "MHA"), (8, 2, "GQA"), (8, 1, "MQA")])
def test_attention_goes_by_the_heads_of_keys_and_values(heads: int, kv: int, kind: str) -> None:
    assert attention_kind(heads, kv) == kind
    assert describe(LLAMA | {"num_key_value_heads": kv}).attention == kind


@pytest.mark.parametrize(("heads", "kv"), [(8, 3), (8, 0), (2, 4)])
def test_heads_that_cannot_be_shared(heads: int, kv: int) -> None:
    with pytest.raises(NativeError, match="cannot share"):
        attention_kind(heads, kv)


def test_a_config_by_hand() -> None:
    found = describe(LLAMA | {"num_key_value_heads": 2, "max_position_embeddings": 512, "rope_theta": 1e4})
    assert (found.mlp, found.position, found.rope_theta, found.context) == ("SwiGLU", "RoPE", 1e4, 512)
    # 2 (keys, values) x 2 layers x 2 heads x 8 wide x 2 bytes
    assert found.cache_bytes_per_token == 128


def test_a_transformers_config_says_what_its_mapping_says() -> None:
    config = LlamaConfig(**{key: value for key, value in LLAMA.items() if key != "model_type"})
    assert describe(config) == describe(config.to_dict())
    assert describe(config).attention == "MHA"


def test_traps_of_the_families() -> None:
    old = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert describe(old).attention == "MHA"  # from before GQA
    assert describe(old | {"model_type": "qwen"}).inner == 64  # two matrices counted together
    glm = old | {"model_type": "chatglm", "multi_query_attention": True, "multi_query_group_num": 2}
    assert describe(glm).attention == "GQA"


@pytest.mark.parametrize(
    ("change", "said"),
    [({"model_type": "gpt2"}, "gpt2"), ({"vocab_size": None}, "vocab_size"), ({"hidden_size": "64"}, "'64'")],
)
def test_configs_that_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(NativeError, match=said):
        describe(LLAMA | change)


def test_the_table_agrees_with_the_configs_that_were_read() -> None:
    models = {model.model: model for model in load_models()}
    configs = published_configs()
    assert configs
    for name, config in configs.items():
        found, row = describe(config), models[name]
        assert (found.attention, found.kv_heads, found.mlp) == (row.attention, row.kv_heads, row.mlp), name
        assert found.vocabulary == row.vocabulary, name


def test_every_score_is_of_a_known_model_of_that_kind() -> None:
    kinds = {model.model: model.kind for model in load_models()}
    assert all(kinds[score.model] == score.kind for score in load_scores())
    assert {row["model"] for row in licence_table()} == set(kinds)


def test_scores_are_chosen_and_in_order() -> None:
    native = scores(5, kinds=("native",))
    assert {(s.kind, s.shots) for s in native} == {("native", 5)}
    best = [max(s.score for s in native if s.model == one.model) for one in native]
    assert best == sorted(best, reverse=True)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("native_models.csv", "MHA,32", "GQA,32x", "kv_heads"),
        ("native_models.csv", "MHA,32", "MQA,32", "MQA with 32"),
        ("native_models.csv", ",2023-08,", ",August 2023,", "release"),
        ("native_models.csv", ",source read,", ",trust me,", "checked"),
        ("native_models.csv", "model,kind", "model,sort", "missing: 'kind'"),
        ("native_scores.csv", ",63.5,", ",163.5,", "score is 163.5"),
        ("native_scores.csv", ",63.5,", ",many,", "'many'"),
        ("native_scores.csv", ",63.5,", ",63.5,,", "cells"),
        ("native_scores.csv", "Qwen-7B,native,test,5,59.6", "Qwen-7B,native,valid,5,59.6", "stands twice"),
    ],
)
def test_damage_is_named_with_file_and_row(tmp_path: Path, name: str, old: str, new: str, said: str) -> None:
    text = (data_dir() / name).read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / name
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(NativeError, match=said) as caught:
        (load_models if "models" in name else load_scores)(path)
    assert f"{path}, row" in str(caught.value)
