"""Everything that must not be merged; and that nothing is left behind then."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from chinese_llama_lab.adapters import AdapterError, merge_adapters
from chinese_llama_lab.merging import adapter as adapter_module

from .conftest import RECIPE, edit, edit_json, key, save_adapter, save_base, save_with_peft, tensors_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    save_base(folder / "base")
    save_adapter(folder / "base", folder / "adapter")
    return folder


@pytest.fixture
def base(made, tmp_path):
    return shutil.copytree(made / "base", tmp_path / "base")


@pytest.fixture
def adapter(made, tmp_path):
    return shutil.copytree(made / "adapter", tmp_path / "adapter")


def refused(message, base, adapters, out, **options):
    there = {path for path in out.parent.rglob("*")} if out.parent.is_dir() else set()
    with pytest.raises(AdapterError, match=message) as caught:
        merge_adapters(base, adapters if isinstance(adapters, list) else [adapters], out, **options)
    assert caught.value.remedy and caught.value.what
    assert {path for path in out.parent.rglob("*")} == there


def rename(tensors, old, new):
    name = key(tensors, old)
    tensors[name.replace(old, new)] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(key(t, "q_proj.lora_B")), "lora_B of .*q_proj.weight is missing"),
        (lambda t: [t.pop(key(t, f"0.mlp.up_proj.lora_{p}")) for p in "AB"], "1 of 14 updates are missing"),
        (lambda t: [t.pop(n) for n in list(t) if "layers.1" in n], "7 of 14 updates are missing"),
        (lambda t: t.pop(key(t, "embed_tokens")), "new rows of embed_tokens are missing"),
        (lambda t: t.pop(key(t, "lm_head")), "new rows of lm_head are missing"),
        (
            lambda t: t[key(t, "k_proj.lora_A")].fill_(float("nan")),
            "k_proj.lora_A.weight holds NaN or infinity",
        ),
        (lambda t: t[key(t, "lm_head")][-1, -1].fill_(float("inf")), "holds NaN or infinity"),
        (lambda t: t.update({"base_model.model.odd.bias": torch.ones(2)}), "the base has no odd.bias"),
        (
            lambda t: t.update({"base_model.model.odd": torch.ones(2)}),
            "holds base_model.model.odd, and this cannot",
        ),
        (
            lambda t: t.update({key(t, "v_proj.lora_B"): torch.ones(8, 4)}),
            r"v_proj.weight has shape 16 × 32 in the base, and its update \[8, 4\]",
        ),
        (lambda t: t.update({key(t, "v_proj.lora_B"): torch.ones(4)}), r"its update \[4\]"),
        (
            lambda t: t.update({key(t, "v_proj.lora_A"): torch.tensor(1.0)}),
            "is no matrix or vector of floating",
        ),
        (
            lambda t: t.update({key(t, "v_proj.lora_A"): torch.ones(4, 32).int()}),
            "is no matrix or vector of floating",
        ),
        (lambda t: t.update({key(t, "embed_tokens"): torch.ones(32)}), r"new rows of shape \[32\]"),
        (lambda t: t.update({key(t, "embed_tokens"): torch.ones(5, 31)}), "31 wide, and the base 32"),
        (
            lambda t: t.update({key(t, "embed_tokens"): torch.ones(4, 32)}),
            r"\[4, 32\], and its config names 5",
        ),
        (lambda t: t.clear(), "it holds nothing"),
        (lambda t: rename(t, "0.mlp.up_proj.lora_A", "2.mlp.up_proj.lora_A"), "lora_. of .* is missing"),
        (
            lambda t: t.update(
                {"q_proj.lora_A.default.weight": torch.ones(4, 32), "q_proj.lora_A": torch.ones(4, 32)}
            ),
            "holds q_proj.lora_A.* and q_proj.lora_A.*, which are the same",
        ),
        (
            lambda t: t.update(
                {f"model.layers.0.self_attn.q_proj.lora_embedding_{p}": torch.ones(4, 4) for p in "AB"}
            ),
            "lora_embedding_A, and this cannot be merged",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(31)}),
            r"model.norm.weight has shape \[31\], and the base \[32\]",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.weight": torch.ones(32, 32)}),
            "both an update of .*q_proj.weight and its new values",
        ),
        (
            lambda t: t.update(
                {"model.norm.weight": torch.ones(32), "model.norm.modules_to_save.weight": torch.zeros(32)}
            ),
            "holds model.norm.weight twice, with different values",
        ),
        (
            lambda t: t.update({"model.norm.original_module.weight": torch.ones(32)}),
            "and not what was trained in its place",
        ),
        (
            lambda t: t.update(
                {
                    key(t, "0.self_attn.q_proj.lora_A").replace(
                        "lora_A.weight", "lora_magnitude_vector"
                    ): torch.ones(32)
                }
            ),
            "its config says use_dora = false",
        ),
    ],
)
def test_a_broken_adapter(base, adapter, tmp_path, change, message):
    edit(adapter, change)
    refused(message, base, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "is IA3, not LORA"),
        ({"bias": "all"}, "uses bias = 'all'"),
        ({"fan_in_fan_out": True}, "uses fan_in_fan_out"),
        ({"use_qalora": True}, "uses use_qalora"),
        ({"kasa_config": {"x": 1}}, "uses kasa_config"),
        ({"a_key_of_next_year": 3}, "uses a_key_of_next_year = 3"),
        ({"init_lora_weights": "olora"}, "started from 'olora'"),
        ({"init_lora_weights": "loftq"}, "started from 'loftq'"),
        ({"use_dora": True}, "the DoRA magnitudes of .* are missing"),
        ({"r": 8}, "has rank 4, and by its config 8"),
        ({"rank_pattern": {"v_proj": 2}}, "v_proj.weight has rank 4, and by its config 2"),
        ({"r": 0}, "r is 0; a whole number was expected"),
        ({"r": None}, "r is None; a whole number was expected"),
        ({"lora_alpha": None}, "lora_alpha is None; a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern is .*a number was expected"),
        ({"alpha_pattern": ["q_proj"]}, "a table was expected"),
        ({"alpha_pattern": {"(": 3}}, "is no regular expression"),
        ({"target_modules": "("}, "is no regular expression"),
        ({"target_modules": [1]}, "a list of names was expected"),
        ({"target_modules": ["q_proj"]}, "has 12 updates that its config does not name"),
        ({"target_modules": None}, "has 14 updates that its config does not name"),
        ({"layers_to_transform": [0]}, "has 7 updates that its config does not name"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform is"),
        ({"exclude_modules": ["q_proj"]}, "has 2 updates that its config does not name"),
        ({"modules_to_save": ["norm"]}, r"model.*norm.weight is missing \(5 of 5\)"),
        ({"trainable_token_indices": None}, r"shape \[5, 32\], and its config names 0 tokens"),
        (
            {"trainable_token_indices": [259, 260, 261, 262, 263]},
            "lm_head.weight has new rows .* names 0 tokens",
        ),
        ({"trainable_token_indices": {"embed_tokens": [1, 1, 2, 3, 4]}}, "distinct token ids was expected"),
        ({"trainable_token_indices": {"embed_tokens": [-1, 1, 2, 3, 4]}}, "distinct token ids was expected"),
        ({"trainable_token_indices": {"wte": [1]}}, "the base has no wte, whose new rows"),
        (
            {"trainable_token_indices": {"embed_tokens": [0, 1, 2, 3, 264], "lm_head": [0, 1, 2, 3, 4]}},
            "trains token 264, and the base has 264 rows",
        ),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit(base, adapter, tmp_path, values, message):
    edit_json(adapter / "adapter_config.json", **values)
    refused(message, base, adapter, tmp_path / "out")


def test_every_row_is_looked_at(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_module, "_AT_A_TIME", 3 * 4 * 4)
    edit(adapter, lambda t: t[key(t, "1.mlp.up_proj.lora_B")][-1, -1].fill_(float("nan")))
    refused("up_proj.lora_B.weight holds NaN or infinity", base, adapter, tmp_path / "out")


class TestAnotherBase:
    def test_vocabulary(self, made, tmp_path):
        small, out = save_base(tmp_path / "small", rows=259), tmp_path / "out"
        refused("trains token 263, and the base has 259 rows", small, made / "adapter", out)
        frozen, _ = save_adapter(made / "base", tmp_path / "frozen", RECIPE.replace(embeddings="frozen"))
        refused("264 tokens and the merged model 259 rows", small, frozen, out)
        (frozen / "run.json").write_text('{"rows": 264}', encoding="utf-8")
        refused("trained on a base with 264 rows, and this one has 259", small, frozen, out)

    def test_depth(self, base, adapter, tmp_path):
        deep, out = save_base(tmp_path / "deep", layers=3), tmp_path / "out"
        refused("7 of 21 updates are missing(.|\n)*names .*base", deep, adapter, out)
        third, _ = save_adapter(deep, tmp_path / "third")
        refused(r"the base has no model.layers.2", base, third, out)
        some, _, _ = save_with_peft(deep, tmp_path / "some", layers_to_transform=[0, 1])
        merge_adapters(deep, [some], out)

    def test_width(self, base, tmp_path):
        wide = save_base(tmp_path / "wide", attention_bias=True, head_dim=16)
        adapter, _ = save_adapter(wide, tmp_path / "a", RECIPE.replace(embeddings="frozen"))
        refused(
            "k_proj.weight has shape 16 × 32 in the base, and its update", base, adapter, tmp_path / "out"
        )

    def test_embedding_alone_grows(self, base, tmp_path):
        model = save_base(tmp_path / "large", rows=270)
        alone, _, _ = save_with_peft(model, tmp_path / "alone", modules_to_save=["embed_tokens"])
        refused("the embedding has 270 rows and the head 264", base, alone, tmp_path / "out")

    def test_tokenizer(self, made, base, adapter, tmp_path):
        small, out = save_base(tmp_path / "small", rows=259), tmp_path / "out"
        other = shutil.copytree(adapter, tmp_path / "other")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(small / name, other / name)
        refused("another vocabulary: it has 259 tokens, and there were 264", base, other, out)
        shutil.copy(made / "adapter" / "tokenizer.json", other / "tokenizer.json")
        table = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = table["model"]["vocab"]
        one, two = list(vocabulary)[10], list(vocabulary)[11]
        vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
        (other / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
        refused(r"another vocabulary: token '.+' has id \d+, and \d+ before", base, other, out)
        (other / "tokenizer.json").write_text("{", encoding="utf-8")
        refused("the tokenizer cannot be loaded", base, other, out)


class TestBases:
    def test_quantized(self, base, adapter, tmp_path):
        for values, message in (
            ({"quant_method": "bitsandbytes"}, r"quantized \(bitsandbytes\)(.|\n)*then quantize"),
            ({"bits": 4}, r"quantized \(unknown method\)"),
        ):
            edit_json(base / "config.json", quantization_config=values)
            refused(message, base, adapter, tmp_path / "out")
        edit_json(base / "config.json", quantization_config=None)
        name = "model.layers.0.mlp.up_proj.weight"
        whole = tensors_of(base)[name]
        for odd in (
            {name: whole.to(torch.int8), f"{name}.SCB": torch.ones(64)},
            {name: torch.zeros(1024, 1, dtype=torch.uint8), f"{name}.absmax": torch.ones(4)},
            {name: whole.to(torch.float8_e4m3fn)},
            {name: whole, f"{name}_scale_inv": torch.ones(1)},
            {name.replace("weight", "qweight"): torch.ones(8, 8, dtype=torch.int32)},
        ):
            save_file(odd, base / "model.safetensors", {"format": "pt"})
            refused("the base is quantized: it has a tensor .*up_proj", base, adapter, tmp_path / "out")

    def test_pickled_or_damaged(self, base, adapter, tmp_path):
        out = tmp_path / "out"
        (base / "model.safetensors").rename(base / "pytorch_model.bin")
        refused("pickled weights", base, adapter, out)
        (base / "pytorch_model.bin").unlink()
        refused("no model.safetensors", base, adapter, out)
        (base / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\n", encoding="utf-8"
        )
        refused("model.safetensors is damaged", base, adapter, out)
        for text, message in (("{", "config.json cannot be read"), ("[]", "holds no JSON object")):
            (base / "config.json").write_text(text, encoding="utf-8")
            refused(message, base, adapter, out)

    def test_adapters_pickled_or_damaged(self, base, adapter, tmp_path):
        path, out = adapter / "adapter_model.safetensors", tmp_path / "out"
        data = path.read_bytes()
        path.write_bytes(data[:-50])
        refused("is damaged", base, adapter, out)
        path.unlink()
        refused("no adapter_model.safetensors", base, adapter, out)
        (adapter / "adapter_model.bin").write_bytes(data)
        refused("a pickle", base, adapter, out)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop("model.norm.weight"), "lacks 1 of 21 tensors, such as model.norm.weight"),
            (lambda t: [t.pop(n) for n in list(t) if "layers.1" in n], "lacks 9 of 21 tensors"),
            (lambda t: t.pop("model.layers.0.mlp.up_proj.weight"), "lacks 1 of 21 tensors"),
            (
                lambda t: t.update({"model.embed_tokens.weight": torch.ones(270, 32)}),
                r"embed_tokens.weight has shape \[270, 32\], and by its config \[264, 32\]",
            ),
            (
                lambda t: t.update({"lm_head.weight": torch.ones(260, 32)}),
                r"lm_head.weight has shape \[260, 32\]",
            ),
            (lambda t: t["model.norm.weight"].fill_(float("nan")), "model.norm.weight holds NaN or infinity"),
            (lambda t: t["lm_head.weight"][100].fill_(float("inf")), "lm_head.weight holds NaN or infinity"),
        ],
    )
    def test_incomplete_or_not_finite(self, base, adapter, tmp_path, change, message):
        edit(base, change, "model.safetensors")
        refused(message, base, adapter, tmp_path / "out")

    def test_shards_and_index_disagree(self, adapter, tmp_path):
        base, out = save_base(tmp_path / "shards", shard="20KB"), tmp_path / "out"
        path = base / "model.safetensors.index.json"
        table = json.loads(path.read_text(encoding="utf-8"))
        map_, first = table["weight_map"], "model.layers.0.input_layernorm.weight"

        def write(**changes):
            weight_map = {k: v for k, v in (map_ | changes).items() if v is not None}
            path.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")

        for outside in ("../evil.safetensors", str(tmp_path / "evil.safetensors"), "a\\b.safetensors", 3):
            write(**{first: outside})
            refused("no plain file name", base, adapter, out)
        write(**{first: None})
        refused(f"disagree on 1 tensors, such as {first}", base, adapter, out)
        write(**{"model.odd.weight": map_[first]})
        refused("disagree on 1 tensors, such as model.odd.weight", base, adapter, out)
        path.write_text("{}", encoding="utf-8")
        refused("its index lists no tensors", base, adapter, out)
        write()
        next(base.glob("*.safetensors")).unlink()
        refused(r"lacks 1 of \d shards", base, adapter, out)

    def test_a_model_that_needs_code_of_its_own(self, base, adapter, tmp_path):
        edit_json(base / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"})
        refused("transformers cannot build what the base's config describes", base, adapter, tmp_path / "out")

    def test_a_tied_base_with_two_matrices(self, tmp_path):
        base = save_base(tmp_path / "base", tied=True)
        adapter, _ = save_adapter(base, tmp_path / "adapter")
        embedding = tensors_of(base)["model.embed_tokens.weight"]
        edit(base, lambda t: t.update({"lm_head.weight": embedding.clone()}), "model.safetensors")
        report = merge_adapters(base, [adapter], tmp_path / "out")
        assert report.tied and "lm_head.weight" not in tensors_of(report.out)
        edit(base, lambda t: t["lm_head.weight"][3, 3].add_(1), "model.safetensors")
        refused(
            "ties embedding and head, and its files hold two that differ", base, adapter, tmp_path / "out2"
        )


class TestArguments:
    def test_wrong_way_round(self, base, adapter, tmp_path):
        out = tmp_path / "out"
        refused("this is an adapter, and a base was expected", adapter, base, out)
        refused("this is a model, and an adapter was expected", base, base, out)
        shutil.move(adapter, tmp_path / "run" / "adapter")
        refused("this is an adapter, and a base was expected", tmp_path / "run", base, out)
        refused("no config.json", tmp_path / "none", adapter, out)
        refused("no adapter_config.json", base, tmp_path / "none", out)
        refused("no config.json", base / "model.safetensors", base, out)

    def test_where_to(self, base, adapter, tmp_path):
        refused("exists already", base, adapter, base)
        refused("lies inside .*base, which is merged", base, adapter, base / "merged")
        refused("lies inside .*adapter, which is merged", base, adapter, adapter / "deep" / "merged")
        refused("lies inside .*base", base, adapter, tmp_path / "x" / ".." / "base" / "merged")
        (tmp_path / "run").mkdir()
        shutil.move(adapter, tmp_path / "run" / "adapter")
        merge_adapters(base, [tmp_path / "run"], tmp_path / "run" / "merged")

    def test_the_rest(self, base, adapter, tmp_path):
        out = tmp_path / "out"
        refused("there is no adapter to merge", base, [], out)
        refused("there is no dtype 'int8'", base, adapter, out, dtype="int8")
        for one in (adapter, str(adapter)):
            with pytest.raises(AdapterError, match="adapters is one path"):
                merge_adapters(base, one, out)
