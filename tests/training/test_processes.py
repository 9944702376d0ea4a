"""Two processes on one machine (gloo, CPU): DDP and FSDP2 train what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chinese_llama_lab.training import checkpoints as cp
from tests.training.conftest import CHINESE, make_model, make_tokenizer

ROOT = Path(__file__).parents[2]
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def start(out, processes, *flags, expect=0, **environment):
    command = [sys.executable, "-m", "tests.training.worker", str(out), *flags]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *launch, "-m", "tests.training.worker", str(out), *flags]
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))}
    plain |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, cwd=ROOT, env=plain | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode == 0) == (expect == 0), done.stdout[-2000:] + done.stderr[-4000:]
    return done


def result(out, rank=0):
    return json.loads(out.with_name(f"{out.name}.rank{rank}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    start(out, 1)
    return out


def agree(one, other):
    first, second = result(one), result(other)
    assert second["losses"] == pytest.approx(first["losses"], abs=1e-3)
    assert second["tokens"] == first["tokens"]
    assert second["zh"] == pytest.approx([pytest.approx(p, abs=1e-2) for p in first["zh"]])
    a, b = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name].float(), b[name].float(), atol=2e-3), name


@pytest.mark.slow
def test_two_processes_train_what_one_does(one, tmp_path):
    start(tmp_path / "run", 2)
    agree(one, tmp_path / "run")


@pytest.mark.slow
def test_two_processes_teach_what_one_does(tmp_path):
    for processes in (1, 2):
        start(tmp_path / f"run{processes}", processes, "towards-base")
    agree(tmp_path / "run1", tmp_path / "run2")


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_with_its_error_and_a_good_checkpoint(one, tmp_path):
    done = start(tmp_path / "run", 2, "die", expect=1)
    assert "this worker dies" in done.stderr
    assert cp.last_good(tmp_path / "run") == cp.checkpoint_path(tmp_path / "run", 4)
    start(tmp_path / "run", 2, "resume")
    assert result(tmp_path / "run")["resumed_from"] == 4
    agree(one, tmp_path / "run")


@pytest.mark.slow
def test_fsdp2_shards_and_trains_what_one_process_does(one, tmp_path):
    start(tmp_path / "run", 2, "shapes", **FSDP)
    for rank in (0, 1):
        shapes = result(tmp_path / "run", rank)["shapes"]
        whole, local = next(s for n, s in shapes.items() if "layers.0.self_attn.q_proj.base_layer" in n)
        assert whole == [32, 32] and local == [16, 32]
        assert sum(torch.Size(s[1]).numel() for s in shapes.values()) < 0.6 * sum(
            torch.Size(s[0]).numel() for s in shapes.values()
        )
    agree(one, tmp_path / "run")


@pytest.mark.slow
def test_fsdp2_resumes(one, tmp_path):
    start(tmp_path / "run", 2, "die", expect=1, **FSDP)
    start(tmp_path / "run", 2, "resume", **FSDP)
    assert result(tmp_path / "run")["resumed_from"] == 4
    agree(one, tmp_path / "run")


LAUNCHERS = {
    "DDP": ["--multi_gpu"],
    "FSDP2": [
        "--use_fsdp",
        "--fsdp_version=2",
        "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP",
        "--fsdp_transformer_layer_cls_to_wrap=LlamaDecoderLayer",
        "--fsdp_state_dict_type=FULL_STATE_DICT",
    ],
}


def called(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", LAUNCHERS)
def test_accelerate_launches_the_command_line(way, tmp_path):
    base = tmp_path / "base"
    make_model(264, tied=True).save_pretrained(base)
    make_tokenizer(5).save_pretrained(base)
    text = tmp_path / "zh.txt"
    text.write_text("\n".join(CHINESE * 10), encoding="utf-8")
    settings = ["block=32", "batch=4", "micro_batch=2", "steps=4", "precision=fp32"]
    settings += ["replay_share=0.0", "log_every=1", "save_every=2"]
    pretrain = ["-m", "chinese_llama_lab", "pretrain", "--model", str(base), "--text", str(text)]
    pretrain += ["--held-out-zh", str(text), *(f"--set={s}" for s in settings)]
    launch = ["-m", "accelerate.commands.launch", "--num_processes=2", *LAUNCHERS[way]]
    logs = []
    for name, command in (("one", pretrain), ("two", [*launch, *pretrain])):
        done = called(*command, "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.count("written:") == 1  # one process speaks
        rows = (tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        logs.append([json.loads(row) for row in rows])
    one, two = ([row["loss"] for row in log if "loss" in row] for log in logs)
    assert len(one) == 4 and two == pytest.approx(one, abs=1e-3)
    assert [row["tokens"] for row in logs[1] if "tokens" in row] == [128, 256, 384, 512]
    assert (tmp_path / "two" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_processes_that_cannot_share_a_batch_are_told(tmp_path):
    make_model(264).save_pretrained(tmp_path / "base")
    make_tokenizer(5).save_pretrained(tmp_path / "base")
    (tmp_path / "zh.txt").write_text("\n".join(CHINESE * 10), encoding="utf-8")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    pretrain = ["-m", "chinese_llama_lab", "pretrain", "--model", str(tmp_path / "base")]
    pretrain += ["--text", str(tmp_path / "zh.txt"), "--out", str(tmp_path / "run")]
    settings = ["--set=block=32", "--set=batch=2", "--set=micro_batch=2", "--set=replay_share=0.0"]
    done = called(*launch, *pretrain, *settings)
    assert done.returncode != 0 and "2 processes of 2 take 4" in done.stderr
