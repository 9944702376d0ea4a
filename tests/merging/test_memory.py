"""Memory: two gigabytes are merged in less than one shard of them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

MEASURE = """
import sys, threading, time, psutil
from pathlib import Path
import torch
from safetensors import safe_open
from transformers import AutoTokenizer
import chinese_llama_lab.adapters as adapters
# Files are mapped, and their pages can be dropped at any time: what the merge itself holds is not shared.
process, peak = psutil.Process(), 0
def held():
    memory = process.memory_info()
    return memory.rss - memory.shared
before = held()
def watch():
    global peak
    while True:
        peak = max(peak, held() - before)
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
folder = Path(sys.argv[1])
adapters.merge_adapters(folder / "base", [folder / "adapter"], folder / "out", dtype="bfloat16")
rss = process.memory_info().rss
print(peak, rss)
"""


def half(*shape):
    return torch.full(shape, 0.5, dtype=torch.bfloat16)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="shared pages are counted on Linux alone")
def test_memory_on_a_sharded_model_of_two_gigabytes(tmp_path):
    """2.2 GB in four shards, merged in less than one shard."""
    base, width, layers = tmp_path / "base", 2048, 16
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=16,
    )
    config.save_pretrained(base)
    weight_map, adapter = {}, {}
    for shard in range(4):
        tensors = {}
        for layer in range(shard * 4, shard * 4 + 4):
            prefix = f"model.layers.{layer}."
            for name in ("q", "k", "v", "o"):
                tensors[f"{prefix}self_attn.{name}_proj.weight"] = half(width, width)
            for name in ("up_proj", "gate_proj"):
                tensors[f"{prefix}mlp.{name}.weight"] = half(4 * width, width)
            tensors[f"{prefix}mlp.down_proj.weight"] = half(width, 4 * width)
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}{name}.weight"] = half(width)
            adapter[f"base_model.model.{prefix}mlp.up_proj.lora_A.weight"] = torch.ones(8, width)
            adapter[f"base_model.model.{prefix}mlp.up_proj.lora_B.weight"] = torch.ones(4 * width, 8)
        if shard == 3:
            tensors |= {"model.norm.weight": half(width), "lm_head.weight": half(320, width)}
            tensors["model.embed_tokens.weight"] = half(320, width)
        name = f"model-{shard + 1:05d}-of-00004.safetensors"
        save_file(tensors, base / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / "adapter").mkdir()
    save_file(adapter, tmp_path / "adapter" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    sizes = [path.stat().st_size for path in base.glob("*.safetensors")]
    assert sum(sizes) > 2e9
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak, rss = map(int, done.stdout.split())
    print(
        f"peak {peak / 2**20:.0f} MiB, rss {rss / 2**20:.0f} MiB, largest shard {max(sizes) / 2**20:.0f} MiB"
    )
    assert peak < max(sizes)
    merged = load_file(tmp_path / "out" / "model-00001-of-00004.safetensors")
    assert torch.equal(
        merged["model.layers.0.mlp.up_proj.weight"], torch.full((4 * width, width), 8.5).bfloat16()
    )
    assert float(merged["model.layers.0.mlp.gate_proj.weight"].max()) == 0.5
