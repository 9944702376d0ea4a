"""The file: keys, tensors bit by bit, what is refused, and that it is whole or absent."""

from __future__ import annotations

import argparse
import errno
import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from chinese_llama_lab.cli import build_parser
from chinese_llama_lab.inference import gguf_tensors
from chinese_llama_lab.inference.gguf import GgufError, export_gguf
from chinese_llama_lab.inference.gguf_commands import add_commands
from chinese_llama_lab.inference.gguf_tensors import gguf_name, interleaved
from tests.inference.gguf_models import CHAT, FAMILIES, fields, make, tensors
from tests.threads import one_thread  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("byte") / "model")


@pytest.fixture(scope="module", params=FAMILIES)
def either(request, tmp_path_factory):
    return make(tmp_path_factory.mktemp("family") / "model", request.param)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config), encoding="utf-8")


def load(path, **options):
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options).eval()


def refused(folder, out, match, **options):
    with pytest.raises(GgufError, match=match) as caught:
        export_gguf(folder, out, **options)
    assert caught.value.remedy
    assert list(out.parent.glob(f"*{out.name}*")) == []


def test_rows_of_a_head_are_interleaved():
    assert interleaved(8, 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert interleaved(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_names_are_those_of_the_gguf_package():
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj"]
    parts += ["mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    names = ["model.embed_tokens", "model.norm", "lm_head", *(f"model.layers.2.{part}" for part in parts)]
    for name in names:
        assert gguf_name(f"{name}.weight") == f"{table.get_name(name)}.weight"
    assert gguf_name("model.layers.0.self_attn.rotary_emb.inv_freq") is None


def test_keys(either, tmp_path):
    report = export_gguf(either, tmp_path / "m.gguf")
    said = fields(report.out)
    expected = {
        "general.architecture": "llama",
        "general.file_type": 1,
        "llama.block_count": 2,
        "llama.context_length": 256,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 5000.0,
        "llama.vocab_size": report.tokens,
    }
    assert {key: said[key] for key in expected} == expected
    assert said["llama.attention.layer_norm_rms_epsilon"] == np.float32(1e-5)
    assert len(said["tokenizer.ggml.tokens"]) == len(said["tokenizer.ggml.token_type"]) == report.tokens
    if report.tokenizer == "SentencePiece":
        assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("llama", "default")
        assert said["tokenizer.ggml.add_bos_token"] and said["tokenizer.ggml.add_space_prefix"]
        assert [said[f"tokenizer.ggml.{n}_token_id"] for n in ("unknown", "bos", "eos")] == [0, 1, 2]
        assert said["tokenizer.ggml.token_type"][:5] == [2, 3, 3, 6, 6]
    else:
        assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
        assert not said["tokenizer.ggml.add_bos_token"] and not said["tokenizer.ggml.add_eos_token"]
        pad = said["tokenizer.ggml.padding_token_id"]
        assert said["tokenizer.ggml.tokens"][pad] == "<pad>" and said["tokenizer.ggml.token_type"][pad] == 3
        assert said["tokenizer.chat_template"] == CHAT
    assert report.bytes == report.out.stat().st_size
    assert str(report.tokens) in str(report) and "MiB" in str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_weights_come_back_bit_by_bit(tmp_path, kind, dtype):
    folder = make(tmp_path / "model", dtype=dtype)
    out = export_gguf(folder, tmp_path / "m.gguf", kind=kind).out
    own, back = load_file(folder / "model.safetensors"), load(out, dtype=torch.float32).state_dict()
    cast = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
    assert own.keys() == back.keys()
    for name, weight in own.items():
        kept = weight if weight.dim() == 1 else weight.to(cast)
        assert torch.equal(back[name], kept.float()), name


def test_q8_0_is_what_the_gguf_package_quantizes(folder, tmp_path):
    out = export_gguf(folder, tmp_path / "m.gguf", kind="q8_0").out
    own, written = load_file(folder / "model.safetensors"), tensors(out)
    back = load(out, dtype=torch.float32).state_dict()
    for name, weight in own.items():
        kind, data = written[gguf_name(name)]
        values = weight.numpy()
        if weight.dim() == 1:
            assert kind == "F32" and np.array_equal(data, values)
            continue
        quantized = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        order = np.arange(len(values)) if heads is None else interleaved(len(values), heads)
        assert kind == "Q8_0" and np.array_equal(data, quantized[order]), name
        expected = gguf.dequantize(quantized, gguf.GGMLQuantizationType.Q8_0)
        assert np.array_equal(back[name].numpy(), expected), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_same_greedy_tokens(tmp_path, kind, tied):
    folder = make(tmp_path / "model", tie_word_embeddings=tied)
    report = export_gguf(folder, tmp_path / "m.gguf", kind=kind)
    assert report.tied == tied and ("output.weight" in tensors(report.out)) != tied
    own, back = AutoModelForCausalLM.from_pretrained(folder).eval(), load(report.out, dtype=torch.float32)
    if kind == "f16":
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.copy_(parameter.half().float() if parameter.dim() == 2 else parameter)
    ids = torch.arange(20, 40)[None]
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        assert torch.equal(own(ids).logits, back(ids).logits)
        assert own.generate(ids, **options).tolist() == back.generate(ids, **options).tolist()


def test_matrices_that_q8_0_cannot_cut_stay_float16(tmp_path):
    folder = make(tmp_path / "model", hidden_size=48, intermediate_size=64)
    report = export_gguf(folder, tmp_path / "m.gguf", kind="q8_0")
    kinds = {name: kind for name, (kind, _) in tensors(report.out).items()}
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0" and kinds["blk.0.ffn_up.weight"] == "F16"
    assert report.tensors == {"f16": 14, "f32": 5, "q8_0": 2}
    assert len(report.not_quantized) == 14 and "left in float16" in str(report)
    own, back = load_file(folder / "model.safetensors"), load(report.out, dtype=torch.float32).state_dict()
    name = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(back[name], own[name].half().float())


def test_shards_and_blocks_make_the_same_tensors(folder, tmp_path, monkeypatch):
    sharded = make(tmp_path / "model", shard="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    whole = tensors(export_gguf(folder, tmp_path / "a.gguf", kind="q8_0").out)
    monkeypatch.setattr(gguf_tensors, "_AT_A_TIME", 500)
    pieces = tensors(export_gguf(sharded, tmp_path / "b.gguf", kind="q8_0").out)
    assert whole.keys() == pieces.keys()
    for name, (kind, data) in whole.items():
        assert kind == pieces[name][0] and np.array_equal(data, pieces[name][1]), name


def test_rows_without_a_token(tmp_path):
    folder = make(tmp_path / "model", spare=5)
    report = export_gguf(folder, tmp_path / "m.gguf")
    said = fields(report.out)
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert tokens[-5:] == [f"[PAD{n}]" for n in range(report.tokens - 5, report.tokens)]
    assert types[-5:] == [5] * 5 and types.count(5) == 5
    assert any("5 rows" in note for note in report.notes) and "note: 5 rows" in str(report)
    assert load(report.out).get_input_embeddings().weight.shape[0] == report.tokens


def test_linear_scaling_of_positions(tmp_path):
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
    out = export_gguf(make(tmp_path / "model", rope_parameters=rope), tmp_path / "m.gguf").out
    said = fields(out)
    assert (said["llama.rope.scaling.type"], said["llama.rope.scaling.factor"]) == ("linear", 4.0)


def test_rotary_factors_of_llama_3(tmp_path):
    """High frequencies stay, low ones are divided by the factor; between them 1/f goes over linearly."""
    rope = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    out = export_gguf(make(tmp_path / "model", rope_parameters=rope), tmp_path / "m.gguf").out
    kind, factors = tensors(out)["rope_freqs.weight"]
    expected = []
    for pair in range(8):
        wave = 2 * np.pi * 5000.0 ** (pair / 8)
        share = np.clip((128 / wave - 1) / (4 - 1), 0, 1)
        expected.append(1 / ((1 - share) / 8 + share))
    assert kind == "F32" and factors == pytest.approx(expected, rel=1e-5)
    assert factors[0] == 1 and factors[-1] == pytest.approx(8) and 1 < factors[2] < 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_weight_that_is_no_number(copy, tmp_path, kind, bad):
    path = copy / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][70, 3] = bad
    save_file(weights, path, {"format": "pt"})
    refused(copy, tmp_path / "m.gguf", "NaN or infinite", kind=kind)


def test_a_weight_too_large_for_float16(copy, tmp_path):
    path = copy / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] = 1e6  # norms stay float32
    weights["lm_head.weight"][3, 3] = 70000.0
    save_file(weights, path, {"format": "pt"})
    refused(copy, tmp_path / "m.gguf", "does not fit f16")
    for kind in ("bf16", "q8_0"):
        export_gguf(copy, tmp_path / f"{kind}.gguf", kind=kind)
    weights["lm_head.weight"][3, 3] = 9e6
    save_file(weights, path, {"format": "pt"})
    refused(copy, tmp_path / "m.gguf", "does not fit q8_0", kind="q8_0")


def test_a_full_disk_leaves_nothing(folder, tmp_path, monkeypatch):
    written = []

    def full(writer, tensor):
        written.append(tensor)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    refused(folder, tmp_path / "m.gguf", "No space left")


def test_arguments_that_are_refused(folder, tmp_path):
    refused(folder, tmp_path / "m.gguf", "no kind 'q4_0'", kind="q4_0")
    refused(folder, tmp_path / "m.bin", "does not end in .gguf")
    refused(tmp_path / "nothing", tmp_path / "m.gguf", "no such folder")
    there = tmp_path / "there.gguf"
    there.write_bytes(b"mine")
    with pytest.raises(GgufError, match="exists"):
        export_gguf(folder, there)
    assert there.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
            "Qwen2ForCausalLM.*LlamaForCausalLM",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "yarn"),
        ({"vocab_size": 300}, "has shape"),
    ],
)
def test_models_that_are_refused(copy, tmp_path, changes, match):
    edit(copy, **changes)
    refused(copy, tmp_path / "m.gguf", match)


def test_folders_that_are_refused(copy, tmp_path):
    out = tmp_path / "m.gguf"
    (copy / "adapter_config.json").write_text("{}", encoding="utf-8")
    refused(copy, out, "holds an adapter")
    (copy / "adapter_config.json").unlink()
    path = copy / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"model.layers.0.self_attn.q_norm.weight": torch.ones(4)}, path, {"format": "pt"})
    refused(copy, out, "no name for 1 of its tensors")
    del weights["model.norm.weight"]
    save_file(weights, path, {"format": "pt"})
    refused(copy, out, "lacks 1 of")
    path.write_bytes(path.read_bytes()[:1000])
    refused(copy, out, "damaged")
    path.unlink()
    refused(copy, out, "no model.safetensors")
    (copy / "config.json").unlink()
    refused(copy, out, "no config.json")
    (copy / "adapter").mkdir()
    (copy / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    refused(copy, out, "merge it into its base")


def test_the_command_that_a_remedy_names_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # or a line may end within a name
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(GgufError) as caught:
        export_gguf(tmp_path, tmp_path / "model.gguf")
    program, command = caught.value.remedy.split("`")[1].split()
    assert program == "chinese-llama-lab"
    with pytest.raises(SystemExit) as ended:  # argparse ends with 2 at a command that it does not know
        build_parser().parse_args([command, "--help"])
    assert ended.value.code == 0 and command in capsys.readouterr().out
    with pytest.raises(SystemExit):
        build_parser().parse_args(["export-gguf", "--help"])
    assert f"`{command}`" in capsys.readouterr().out


def test_the_command(folder, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    out = tmp_path / "m.gguf"
    given = parser.parse_args(["export-gguf", str(folder), "--out", str(out), "--kind", "q8_0"])
    assert given.handler(given) == 0
    printed = capsys.readouterr().out
    assert out.is_file() and "q8_0" in printed and "MB" in printed and f'-m "{out}"' in printed
    with pytest.raises(GgufError, match="exists"):
        given.handler(given)
