"""`quantize` on a model of two layers."""

from __future__ import annotations

import argparse
import re

import pytest
import torch

from chinese_llama_lab.cli import build_parser, main
from chinese_llama_lab.errors import ModelError
from chinese_llama_lab.quantization.commands import add_commands
from chinese_llama_lab.quantization.described import described
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.layer_errors import errors_by_layer_kind
from chinese_llama_lab.quantization.load import load_quantized

from .quality_models import saved
from .test_load import scores

pytestmark = pytest.mark.filterwarnings("ignore::chinese_llama_lab.quantization.load.SlowKernelWarning")


def call(*arguments):
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    options = parser.parse_args([str(argument) for argument in arguments])
    return options.handler(options)


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "base", tied=True)


@pytest.mark.parametrize("kind", ["nf4", "nf4-double", "fp4", "fp4-double", "int8"])
def test_the_folder_and_what_is_said(folder, tmp_path, capsys, kind):
    out = tmp_path / "out"
    assert (
        call("quantize", folder, "--kind", kind, "--out", out, "--compute-dtype=bfloat16", "--compare") == 0
    )
    said = capsys.readouterr().out
    direct = load_quantized(folder, kind, compute_dtype="bfloat16")
    before, after = described(load_quantized(folder, "fp32").model), described(direct.model)
    assert f"before, as stored:\n{before}\n" in said and f"after:\n{after}\n" in said
    assert f"{after.bits_per_weight:.3f} bits a weight" in said
    assert f"{before.bytes / 1e6:.1f} MB before, {after.bytes / 1e6:.1f} MB after" in said
    for row in errors_by_layer_kind(folder, [kind]):
        line = rf"\n{row['layer']} +2 +{row['rms']:.4f} +{row['worst_rms']:.4f}\n"
        assert bool(re.search(line, said)) == (row["layer"] != "embed_tokens")
    loaded = load_quantized(out, kind, compute_dtype="bfloat16")
    assert torch.equal(scores(loaded.model), scores(direct.model))
    assert len(loaded.tokenizer) == 259


def test_options(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("quantize", folder, "--out", out, "--quantize-head", "--skip=o_proj", "--skip=q_proj") == 0
    said = capsys.readouterr().out
    assert re.search(r"\nhead +nf4 ", said) and "error" not in said
    names = described(load_quantized(out, "nf4").model).quantized
    assert "lm_head.weight" in names and not any("o_proj" in n or "q_proj" in n for n in names)


def test_the_help_is_true_of_the_commands_it_names(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # or a line may end within a name
    with pytest.raises(SystemExit):
        build_parser().parse_args(["quantize", "--help"])
    named = set(re.findall(r"`([a-z-]+)`", capsys.readouterr().out)) - {"smollm2"}
    for command in named:
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args([command, "--help"])
        assert ended.value.code == 0, command
    assert {"generate", "estimate", "speed", "ceval", "export-gguf", "merge-adapters"} <= named
    out = tmp_path / "out"
    call("quantize", folder, "--out", out, "--compute-dtype=float32")
    assert main(["generate", str(out), "a", "--template=none", "--max-new-tokens=2"]) == 0
    text = tmp_path / "text.txt"
    text.write_text("a text", encoding="utf-8")
    speed = ["speed", str(out), "--prompt-tokens=4", "--new-tokens=2", "--repeats=1", f"--text={text}"]
    capsys.readouterr()
    assert main(["estimate", str(out)]) == 0
    assert "inference, nf4;" in capsys.readouterr().out
    assert main([*speed, "--kind=nf4", "--engine=generate"]) == 0
    assert main(speed) == 1 and "quantized as nf4 already" in capsys.readouterr().err
    assert main(["export-gguf", str(out), f"--out={tmp_path / 'm.gguf'}"]) == 1
    assert main(["merge-adapters", str(out), str(folder), f"--out={tmp_path / 'merged'}"]) == 1
    assert main(["quantize", str(out), f"--out={tmp_path / 'again'}"]) == 1


def test_bad_input(folder, tmp_path):
    with pytest.raises(QuantizationError, match="no kind 'q4'"):
        call("quantize", folder, "--kind=q4", "--out", tmp_path / "out")
    with pytest.raises(QuantizationError, match="bf16 is not quantized"):
        call("quantize", folder, "--kind=bf16", "--out", tmp_path / "out")
    with pytest.raises(QuantizationError, match="something of that name"):
        call("quantize", folder, "--out", folder)
    with pytest.raises(ModelError, match="no base model called"):
        call("quantize", "smollm9", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    call("quantize", folder, "--out", tmp_path / "out")
    with pytest.raises(QuantizationError, match="quantized already"):
        call("quantize", tmp_path / "out", "--out", tmp_path / "again")
