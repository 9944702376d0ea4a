"""`benchmarks/zh_average.py`: means and scales by hand, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "zh_average.py"
LAYER = "base_model.model.model.layers.0.mlp.up_proj"


def adapter(folder: Path, value: float, rank: int = 2) -> Path:
    folder.mkdir()
    tensors = {
        f"{LAYER}.lora_A.weight": torch.full((rank, 3), value),
        f"{LAYER}.lora_B.weight": torch.full((3, rank), value),
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.full((4, 3), value),
    }
    save_file(
        {name: t.to(torch.bfloat16) for name, t in tensors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_mean_and_the_scale_of_a_block_by_hand(tmp_path):
    one, other = adapter(tmp_path / "one", 1.0), adapter(tmp_path / "other", 4.0)
    scales = tmp_path / "scales.json"
    scales.write_text(json.dumps({"0.mlp": 0.5}), encoding="utf-8")
    done = run(one, other, "--scales", scales, "--out", tmp_path / "mean")
    assert done.returncode == 0, done.stderr
    found = {
        name.split(".")[-2]: value
        for name, value in load_file(tmp_path / "mean/adapter_model.safetensors").items()
    }
    # Only B is scaled: it is what LoRA adds that is to be halved, and new rows are no part of LoRA.
    assert {name: value.unique().tolist() for name, value in found.items()} == {
        "lora_A": [2.5],
        "lora_B": [1.25],
        "token_adapter": [2.5],
    }
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert json.loads((tmp_path / "mean/scales.json").read_text(encoding="utf-8")) == {"0.mlp": 0.5}


@pytest.mark.parametrize(
    ("rank", "scales", "said"),
    [(3, None, "other matrices than"), (2, {"0.mlp": 1.0, "1.mlp": 1.0}, "no LoRA has the scales of 1.mlp")],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, rank, scales, said):
    one, other = adapter(tmp_path / "one", 1.0), adapter(tmp_path / "other", 4.0, rank)
    given = []
    if scales:
        (tmp_path / "scales.json").write_text(json.dumps(scales), encoding="utf-8")
        given = ["--scales", tmp_path / "scales.json"]
    done = run(one, other, *given, "--out", tmp_path / "mean")
    assert done.returncode != 0 and said in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"one", "other", "scales.json"}
