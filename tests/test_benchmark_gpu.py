"""benchmarks/gpu.py: at toy shapes on the CPU, and what it says without a GPU."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder, *arguments):
    environment = {**os.environ, "LAB_RESULTS_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    done = run(folder, "--toy", "--repeats", "2")
    assert done.returncode == 0, done.stderr
    with (folder / "bench_gpu.csv").open(encoding="utf-8", newline="") as stream:
        return done.stdout, list(csv.DictReader(stream))


def test_every_case_has_a_row(toy):
    _, rows = toy
    assert [(row["kind"], row["work"]) for row in rows] == [
        ("bf16", "inference"),
        ("bf16", "lora"),
        ("nf4", "inference"),
        ("nf4", "qlora"),
    ]
    assert all(row["error"] == "" for row in rows), [row["error"] for row in rows]


def test_figures_hardware_versions_and_date_are_there(toy):
    printed, rows = toy
    for row in rows:
        named = ["step"] if "lora" in row["work"] else ["prefill", "decode"]
        for what in ("prefill", "decode", "step"):
            filled = [row[f"{what}_{end}"] for end in ("tokens_per_second", "seconds")]
            assert all(filled) if what in named else not any(filled)
            if what in named:
                low, middle, high = (float(row[f"{what}_seconds{e}"]) for e in ("_min", "", "_max"))
                assert 0 < low <= middle <= high
        for column in ("device", "torch", "transformers", "bitsandbytes", "peft", "python", "date"):
            assert row[column], column
        assert "toy" in row["device"] and float(row["peak_gb"]) > 0 and float(row["estimate_gb"]) > 0
    assert "GB" in printed and "GiB" in printed


def test_tokens_a_second_are_tokens_over_seconds(toy):
    for row in toy[1]:
        for what, tokens in (("prefill", "prompt_tokens"), ("decode", "new_tokens"), ("step", "block")):
            if row[f"{what}_seconds"]:
                rate = int(row[tokens]) / float(row[f"{what}_seconds"])
                assert float(row[f"{what}_tokens_per_second"]) == pytest.approx(rate, rel=0.05)


def test_without_a_gpu_nothing_is_written(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert "no CUDA GPU" in done.stderr and "--toy" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments,named",
    [
        (("--toy", "--save"), "leave out --save"),
        (("--toy", "--repeats", "0"), "1 or more"),
        (("--kinds", "int3"), "int3"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arguments, named):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2 and named in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["bf16", "nf4"])
def test_a_random_model_has_the_true_shape(gpu, kind):
    """Every weight is there, on the device, of its dtype, and the bytes are those of the estimate."""
    import torch

    from chinese_llama_lab.inference.settings import settings
    from chinese_llama_lab.inference.weights import weight_bytes

    model = gpu.random_model(gpu.TOY, kind, "cpu")
    found = 0
    for parameter in model.parameters():
        assert parameter.device.type == "cpu"
        found += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            assert state.quant_type == "nf4" and not state.nested and state.blocksize == 64
            found += state.absmax.numel() * state.absmax.element_size()
    options = settings("inference", quantization="none" if kind == "bf16" else kind)
    assert found == sum(weight_bytes(gpu.TOY, options).values())
    out = model(torch.arange(8)[None]).logits
    assert out.shape == (1, 8, gpu.TOY.vocabulary) and torch.isfinite(out).all()


def test_positions_matter(gpu):
    """The rotary table is made anew, not left as the meta device leaves it."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model = gpu.random_model(gpu.TOY, "bf16", "cpu")
    fresh = LlamaRotaryEmbedding(model.config)
    assert (model.model.rotary_emb.inv_freq == fresh.inv_freq).all()


def test_running_out_of_memory_is_a_row(gpu, monkeypatch):
    def full(*arguments):
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 86.00 MiB.\nmore")

    monkeypatch.setattr(gpu, "random_model", full)
    case = {"model": "toy", "kind": "bf16", "work": "inference", "toy": True, "repeats": 1}
    found = gpu.run_case(case)
    assert found == {"error": "out of memory: CUDA out of memory. Tried to allocate 86.00 MiB."}
    row = gpu.row_of(case, found, {"date": "today"})
    assert row["error"].startswith("out of memory") and row["peak_gb"] == "" and row["estimate_gb"] > 0
    whole = gpu.row_of(case, {"peak_gb": 2 * gpu.estimated(case).gb}, {"date": "today"})
    assert list(whole) == list(row) and whole["estimate_over_peak"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("code,message", [(3, "exit code 3: it broke"), (-9, "memory ran out")])
def test_a_process_that_ends_badly_is_a_row(gpu, monkeypatch, code, message):
    done = subprocess.CompletedProcess([], code, "", "Traceback\nit broke\n")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *a, **k: done)
    assert message in gpu.in_process({}, 1)["error"]


def test_true_shapes_are_estimated(gpu):
    """7B: 13.5 GB of weights in bf16, 4.2 in NF4; on a GPU the same code asks for these."""
    gb = {}
    for kind in gpu.KINDS:
        case = {"model": "llama-7b", "kind": kind, "work": "training", "toy": False, "repeats": 1}
        gb[kind] = gpu.estimated(case).gb
        json.dumps(case)
    assert 13.5 < gb["bf16"] < 15 and 4.2 < gb["nf4"] < 5.5
