"""What is written: every dtype, index and config, what goes along; and nothing where it fails."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from training.conftest import make_tokenizer
from transformers import AutoTokenizer

from chinese_llama_lab.adapters import AdapterError, merge_adapters
from chinese_llama_lab.merging import arithmetic, shards

from .conftest import (
    RECIPE,
    edit,
    edit_json,
    key,
    load,
    save_adapter,
    save_base,
    save_with_peft,
    scores,
    tensors_of,
)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_into_every_dtype(tmp_path, dtype):
    base = save_base(tmp_path / "base", tied=True)
    edit_json(base / "config.json", torch_dtype="float32")
    adapter, expected = save_adapter(base, tmp_path / "adapter")
    merge_adapters(base, [adapter], tmp_path / "out", dtype=dtype)
    assert {t.dtype for t in tensors_of(tmp_path / "out").values()} == {getattr(torch, dtype)}
    config = read(tmp_path / "out" / "config.json")
    assert config["dtype"] == dtype and "torch_dtype" not in config
    assert torch.allclose(scores(load(tmp_path / "out", dtype=torch.float32)), expected, atol=3e-2)


def test_shards_index_and_header(tmp_path):
    """As `save_pretrained` writes them: total_size counts tensors alone, headers end on eight bytes."""
    base = save_base(tmp_path / "base", shard="20KB")
    adapter, _ = save_adapter(base, tmp_path / "adapter")
    out = merge_adapters(base, [adapter], tmp_path / "out", dtype="float32").out
    ours, theirs = (read(folder / "model.safetensors.index.json") for folder in (out, base))
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    for path in out.glob("*.safetensors"):
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
        with safe_open(path, framework="pt") as opened, safe_open(base / path.name, framework="pt") as was:
            assert opened.metadata() == {"format": "pt"} and sorted(opened.keys()) == sorted(was.keys())


@pytest.mark.parametrize("height", [1, 50])
def test_blocks_of_any_size_are_the_same(tmp_path, monkeypatch, height):
    """Some rows at a time, across the growth of the matrices, with new rows in any order."""
    base, large = save_base(tmp_path / "base", rows=259), save_base(tmp_path / "large")
    published = RECIPE.replace(embeddings="published", dora=True)
    grown, _ = save_adapter(large, tmp_path / "grown", published, tokens=())
    tokens = [2, 263, 3, 100, 1]
    table = {"embed_tokens": tokens, "lm_head": tokens}
    rows, _, _ = save_with_peft(large, tmp_path / "rows", use_dora=True, trainable_token_indices=table)
    whole = tensors_of(merge_adapters(base, [grown, rows], tmp_path / "whole", dtype="float32").out)
    monkeypatch.setattr(arithmetic, "_BLOCK_BYTES", height * 4 * 32)
    blocks = tensors_of(merge_adapters(base, [grown, rows], tmp_path / "blocks", dtype="float32").out)
    assert whole.keys() == blocks.keys()
    assert all(torch.allclose(whole[name], blocks[name], atol=1e-6) for name in whole)
    delta = tensors_of(rows)
    assert torch.equal(blocks["lm_head.weight"][tokens], delta[key(delta, "lm_head")])


def test_buffers_and_biases_stay(tmp_path):
    """Integers as they are; a base with biases; old checkpoints' `inv_freq`."""
    base = save_base(tmp_path / "base", attention_bias=True)
    extra = {"model.rotary_emb.inv_freq": torch.rand(4)}
    edit(base, lambda t: t.update(extra), "model.safetensors")
    adapter, expected = save_adapter(base, tmp_path / "adapter")
    out = merge_adapters(base, [adapter], tmp_path / "out", dtype="float32").out
    assert torch.allclose(scores(load(out)), expected, atol=1e-4)
    assert torch.equal(tensors_of(out)["model.rotary_emb.inv_freq"], extra["model.rotary_emb.inv_freq"])
    edit(
        base,
        lambda t: t.update(
            {"steps": torch.tensor([1 << 40, 2]), "mask": torch.tensor([True, False]), "c": torch.tensor(3.5)}
        ),
        "model.safetensors",
    )
    got = tensors_of(merge_adapters(base, [adapter], tmp_path / "out2").out)
    assert got["steps"].tolist() == [1 << 40, 2] and got["mask"].tolist() == [True, False]
    assert got["c"].item() == 3.5 and got["c"].dtype == torch.bfloat16


def test_biases_in_modules_to_save(tmp_path):
    base = save_base(tmp_path / "base", attention_bias=True)
    options = {"modules_to_save": ["o_proj"], "target_modules": ["q_proj"]}
    adapter, expected, _ = save_with_peft(base, tmp_path / "adapter", **options)
    out = merge_adapters(base, [adapter], tmp_path / "out", dtype="float32").out
    assert torch.allclose(scores(load(out)), expected, atol=1e-4)
    name = "model.layers.0.self_attn.o_proj.bias"
    assert not torch.equal(tensors_of(out)[name], tensors_of(base)[name])
    edit(adapter, lambda t: t.pop(key(t, "0.self_attn.o_proj.bias")))
    with pytest.raises(
        AdapterError, match=r"modules_to_save is o_proj, and .*o_proj.bias is missing \(1 of 4\)"
    ):
        merge_adapters(base, [adapter], tmp_path / "out2")


def test_a_value_that_float16_cannot_hold(tmp_path):
    base = save_base(tmp_path / "base")
    adapter, _ = save_adapter(base, tmp_path / "adapter")
    edit(adapter, lambda t: t[key(t, "q_proj.lora_B")].fill_(1e6))
    with pytest.raises(AdapterError, match=r"q_proj.weight does not fit float16 \(rows from 0\)"):
        merge_adapters(base, [adapter], tmp_path / "out", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    merge_adapters(base, [adapter], tmp_path / "out", dtype="bfloat16")


class TestWhatGoesAlong:
    def test_of_the_base(self, tmp_path):
        base = save_base(tmp_path / "base")
        edit_json(base / "generation_config.json", temperature=0.25, do_sample=True)
        (base / "additional_chat_templates").mkdir()
        (base / "additional_chat_templates" / "tool.jinja").write_text("{{ 工具 }}", encoding="utf-8")
        adapter, _ = save_adapter(base, tmp_path / "adapter", tokenizer=False)
        out = merge_adapters(base, [adapter], tmp_path / "out").out
        assert read(out / "generation_config.json")["temperature"] == 0.25
        assert (out / "additional_chat_templates" / "tool.jinja").read_text(encoding="utf-8") == "{{ 工具 }}"
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert (out / name).read_bytes() == (base / name).read_bytes()
        was, now = read(base / "config.json"), read(out / "config.json")
        assert {k: v for k, v in now.items() if was.get(k) != v} == {"dtype": "bfloat16"}

    def test_of_the_last_adapter_with_a_tokenizer(self, tmp_path):
        base = save_base(tmp_path / "base")
        for name in ("config.json", "generation_config.json"):
            edit_json(base / name, pad_token_id=None)
        first, _ = save_adapter(base, tmp_path / "first")
        tokenizer = make_tokenizer(5)
        tokenizer.pad_token = "</s>"
        tokenizer.chat_template = "{{ messages }}"
        tokenizer.save_pretrained(first)
        second, _ = save_adapter(base, tmp_path / "second", tokenizer=False, seed=2)
        out = merge_adapters(base, [first, second], tmp_path / "out").out
        assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages }}"
        assert read(out / "config.json")["pad_token_id"] == 257
        assert read(out / "generation_config.json")["pad_token_id"] == 257

    def test_spare_rows_are_counted_again(self, tmp_path):
        """`extend_embeddings` notes rows beyond the tokenizer; a tokenizer that has grown leaves fewer."""
        base = save_base(tmp_path / "base")
        make_tokenizer(1).save_pretrained(base)
        edit_json(base / "config.json", spare_vocab_rows=4)
        adapter, _ = save_adapter(
            base, tmp_path / "adapter", tokens=(), tokenizer=False, recipe=RECIPE.replace(embeddings="frozen")
        )
        for tokens, spare in ((1, 4), (3, 2), (5, None)):
            make_tokenizer(tokens).save_pretrained(adapter)
            out = merge_adapters(base, [adapter], tmp_path / f"out{tokens}").out
            assert read(out / "config.json").get("spare_vocab_rows") == spare

    def test_no_tokenizer_anywhere(self, tmp_path):
        base = save_base(tmp_path / "base")
        adapter, _ = save_adapter(base, tmp_path / "adapter", tokenizer=False)
        for path in base.glob("*token*"):
            path.unlink()
        report = merge_adapters(base, [adapter], tmp_path / "out")
        assert not list(report.out.glob("token*")) and "tokenizer.json" not in report.made_of["tokenizer"]

    def test_what_it_was_made_of(self, tmp_path):
        base = save_base(tmp_path / "base", shard="20KB")
        adapter, _ = save_adapter(base, tmp_path / "adapter")
        report = merge_adapters(base, [adapter], tmp_path / "out", dtype="float32")
        assert read(report.out / "made_of.json") == report.made_of
        sources = [
            (base, report.made_of["base"]),
            (adapter, report.made_of["adapters"][0]),
            (adapter, report.made_of["tokenizer"]),
        ]
        for folder, hashes in sources:
            for name, digest in hashes.items():
                assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert {p.name for p in base.glob("*.safetensors")} | {
            "config.json",
            "generation_config.json",
        } == report.made_of["base"].keys()
        assert report.made_of["adapters"][0].keys() == {"adapter_config.json", "adapter_model.safetensors"}
        second, _ = save_adapter(report.out, tmp_path / "second", seed=2)
        again = merge_adapters(report.out, [second], tmp_path / "again")
        assert "made_of.json" in again.made_of["base"]

    def test_inputs_are_not_touched(self, tmp_path):
        base = save_base(tmp_path / "base", shard="20KB")
        adapter, _ = save_adapter(base, tmp_path / "adapter")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        merge_adapters(base, [adapter], tmp_path / "out")
        assert all(path.read_bytes() == data for path, data in before.items())
        assert {p for f in (base, adapter) for p in f.rglob("*")} == before.keys()


@pytest.mark.parametrize("error", [OSError(28, os.strerror(28)), KeyboardInterrupt()], ids=repr)
def test_a_full_disk_or_ctrl_c(tmp_path, monkeypatch, error):
    """In the middle of the shards: nothing is left; and the error of the disk says so."""
    base = save_base(tmp_path / "base", shard="20KB")
    adapter, _ = save_adapter(base, tmp_path / "adapter")
    original, written = shards._bytes, []

    def full(*arguments):
        written.append(arguments)
        if len(written) == 5:
            raise error
        return original(*arguments)

    monkeypatch.setattr(shards, "_bytes", full)
    full_disk = (AdapterError, r"could not be written: No space left(.|\n)*make room")
    expected, message = full_disk if isinstance(error, OSError) else (KeyboardInterrupt, None)
    with pytest.raises(expected, match=message):
        merge_adapters(base, [adapter], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


STOP = """
import sys, time
from pathlib import Path
from chinese_llama_lab.merging import arithmetic, shards
from chinese_llama_lab.adapters import merge_adapters
original, count = shards._bytes, 0
def wait(*arguments):
    global count
    count += 1
    if count == 5:
        print("in the middle", flush=True)
        time.sleep(60)
    return original(*arguments)
shards._bytes = wait
folder = Path(sys.argv[1])
merge_adapters(folder / "base", [folder / "adapter"], folder / "out")
"""


def test_killed_in_the_middle(tmp_path):
    """No half model under the final name, and the next try succeeds."""
    base = save_base(tmp_path / "base", shard="20KB")
    adapter, _ = save_adapter(base, tmp_path / "adapter")
    process = subprocess.Popen([sys.executable, "-c", STOP, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "in the middle\n"
    process.kill()
    assert process.wait(30) != 0
    assert not (tmp_path / "out").exists()
    merge_adapters(base, [adapter], tmp_path / "out")
