"""LLaMA-7B and 13B at their true shapes with random weights, on the GPU that is there: speed and memory.

    python benchmarks/gpu.py [--save] [--models NAME …] [--kinds bf16 nf4] [--repeats N]
    python benchmarks/gpu.py --toy

Nothing is downloaded: speed and memory depend on shapes, not on what the weights say. Matrices are made on
the GPU one by one, and for NF4 each is quantized as it is made, so that no larger copy ever exists. Measured,
each in a process of its own, so that running out of memory is one row with its message: reading a prompt
(prefill) and writing tokens one by one (decode), batch 1; and an optimizer step of LoRA (over NF4: QLoRA) at
512 tokens with gradient checkpointing, as this package trains. Beside each peak stands the estimate of
`chinese_llama_lab.inference.estimate`. One CSV, `bench_gpu.csv`, with hardware, versions and date in each
row; it is written after every case. `--toy` runs the same code at tiny shapes on the CPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from chinese_llama_lab.errors import LabError
from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.inference.memory import GB, GIB
from chinese_llama_lab.inference.shapes import Shape, shape_of

MODELS = ("llama-7b", "llama-13b")
KINDS = ("bf16", "nf4")
WORKS = ("inference", "training")
TOY = Shape("toy", 512, 64, 128, 2, 4, 4, 16)
NO_GPU = 2
PROMPT, NEW, BLOCK, RANK = 512, 128, 512, 8
TOY_PROMPT, TOY_NEW, TOY_BLOCK = 24, 4, 32
PACKAGES = ("torch", "transformers", "bitsandbytes", "peft")
FIGURES = (
    *("prefill_tokens_per_second", "prefill_seconds", "prefill_seconds_min", "prefill_seconds_max"),
    *("decode_tokens_per_second", "decode_seconds", "decode_seconds_min", "decode_seconds_max"),
    *("step_tokens_per_second", "step_seconds", "step_seconds_min", "step_seconds_max"),
    *("loaded_gb", "peak_gb", "peak_gib", "peak_reserved_gb", "memory_of"),
)


def sizes(toy: bool) -> dict[str, int]:
    """Tokens of prompt, answer and training block."""
    prompt, new, block = (TOY_PROMPT, TOY_NEW, TOY_BLOCK) if toy else (PROMPT, NEW, BLOCK)
    return {"prompt": prompt, "new": new, "block": block}


def random_model(shape: Shape, kind: str, device: str, seed: int = 0) -> Any:
    """A LLaMA with random weights, made on `device` matrix by matrix.

    Args:
        shape: its sizes. kind: `bf16`, or `nf4` for its linear layers; embedding, head and norms stay bf16.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=2048,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    torch.manual_seed(seed)
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, torch.nn.Linear) and module is not head and kind == "nf4":
                setattr(parent, name, _random_4bit(module, device))
            elif isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                module.weight = _fixed(_random(tuple(module.weight.shape), device))
            elif type(module).__name__ == "LlamaRMSNorm":
                module.weight = _fixed(torch.ones(shape.width, dtype=torch.bfloat16, device=device))
            elif isinstance(module, LlamaRotaryEmbedding):
                with torch.device(device):
                    setattr(parent, name, LlamaRotaryEmbedding(config))
    if shape.tied:
        model.tie_weights()
    # What peft looks at to wrap Linear4bit rather than Linear.
    model.is_loaded_in_4bit = kind == "nf4"
    left = [name for name, p in model.named_parameters() if p.device.type == "meta"]
    assert not left, left
    return model.eval()


def _random(size: tuple[int, ...], device: str) -> Any:
    import torch

    return torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0, 0.02)


def _fixed(weight: Any) -> Any:
    import torch

    return torch.nn.Parameter(weight, requires_grad=False)


def _random_4bit(module: Any, device: str) -> Any:
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    with torch.device("meta"):
        layer = Linear4bit(
            module.in_features,
            module.out_features,
            bias=False,
            compute_dtype=torch.bfloat16,
            compress_statistics=False,
            quant_type="nf4",
        )
    made = Params4bit(
        _random((module.out_features, module.in_features), device),
        requires_grad=False,
        compress_statistics=False,
        quant_type="nf4",
        module=layer,
    ).to(device)
    layer.weight, layer.quant_state = made, made.quant_state
    # Its packed weights for one kind of processor have no backward.
    layer.support_avx512bf16_for_cpu = False
    return layer


def seconds_of(work: Callable[[], Any], device: str, repeats: int) -> list[float]:
    """Seconds of each repetition, after one that does not count; a GPU has finished at either end."""
    import torch

    found = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return found[1:]


def figures(what: str, tokens: int, seconds: list[float]) -> dict[str, Any]:
    """Median, spread and rate."""
    median = statistics.median(seconds)
    return {
        f"{what}_tokens_per_second": round(tokens / median, 2),
        f"{what}_seconds": round(median, 5),
        f"{what}_seconds_min": round(min(seconds), 5),
        f"{what}_seconds_max": round(max(seconds), 5),
    }


def infer(model: Any, shape: Shape, size: dict[str, int], device: str, repeats: int) -> dict[str, Any]:
    """Prefill and decode, timed apart; what is written does not depend on an end token."""
    import torch

    ids = torch.randint(0, shape.vocabulary, (1, size["prompt"]), device=device)
    cache: list[Any] = []

    def prefill() -> None:
        cache.clear()  # before the new one is made
        out = model(ids, use_cache=True, logits_to_keep=1)
        cache[:] = [out.past_key_values, out.logits[:, -1:].argmax(-1)]

    def decode() -> None:
        for _ in range(size["new"]):
            out = model(cache[1], past_key_values=cache[0], use_cache=True, logits_to_keep=1)
            cache[:] = [out.past_key_values, out.logits[:, -1:].argmax(-1)]

    decoded = []
    with torch.inference_mode():
        first = seconds_of(prefill, device, repeats)
        for number in range(repeats + 1):
            prefill()
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            decode()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                decoded.append(time.perf_counter() - started)
    return figures("prefill", size["prompt"], first) | figures("decode", size["new"], decoded)


def train(model: Any, shape: Shape, size: dict[str, int], device: str, repeats: int) -> dict[str, Any]:
    """Whole optimizer steps: forward, backward with checkpointing, AdamW; lean layers and loss."""
    import torch

    from chinese_llama_lab.training.lean_layers import lean_layers
    from chinese_llama_lab.training.lora import add_lora
    from chinese_llama_lab.training.loss import lean_loss
    from chinese_llama_lab.training.recipe import load_recipe

    recipe = load_recipe("smollm2-zh").replace(rank=RANK, architecture={}, embeddings="frozen")
    adapted = add_lora(model, recipe).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, shape.vocabulary, (1, size["block"]), device=device)

    def step() -> None:
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with lean_loss(adapted.get_base_model()), lean_layers(adapted):
        return figures("step", size["block"], seconds_of(step, device, repeats))


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """One case in this process: its figures, or `{"error": …}` where memory ran out."""
    import torch

    from chinese_llama_lab.quiet import quiet_libraries
    from chinese_llama_lab.training.footprint import is_out_of_memory

    quiet_libraries()
    device = "cpu" if case["toy"] else "cuda"
    shape = TOY if case["toy"] else shape_of(case["model"])
    work = {"inference": infer, "training": train}[case["work"]]
    try:
        model = random_model(shape, case["kind"], device)
        loaded = torch.cuda.memory_allocated() if device == "cuda" else 0
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found = work(model, shape, sizes(case["toy"]), device, case["repeats"])
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return {"error": f"out of memory: {str(error).splitlines()[0]}"}
    return found | _memory(device, loaded)


def _memory(device: str, loaded: int) -> dict[str, Any]:
    import torch

    if device == "cuda":
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        of = "torch.cuda.max_memory_allocated"
    else:
        import psutil

        peak = reserved = psutil.Process().memory_info().rss  # the process with its libraries: a toy's figure
        of = "resident memory of the process"
    return {
        "loaded_gb": round(loaded / GB, 4),
        "peak_gb": round(peak / GB, 4),
        "peak_gib": round(peak / GIB, 4),
        "peak_reserved_gb": round(reserved / GB, 4),
        "memory_of": of,
    }


def estimated(case: dict[str, Any]) -> Any:
    """The estimate of a case, as the allocator counts: without the CUDA context."""
    size = sizes(case["toy"])
    options: dict[str, Any] = {
        "quantization": "nf4" if case["kind"] == "nf4" else "none",
        "cuda_context": 0.0,
        "block": size["prompt"] + size["new"],
    }
    task = "inference"
    if case["work"] == "training":
        task = "lora"
        lean = {"loss": "lean", "layers": "lean", "gradient_accumulation": False}
        options |= {"block": size["block"], "rank": RANK, "gradient_checkpointing": True, **lean}
    return estimate(TOY if case["toy"] else case["model"], task, **options)


def in_process(case: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Run one case in a process of its own; whatever ends it becomes the row's message."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {timeout:g} s"}
    if done.returncode == 0:
        try:
            found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
            return found
        except (IndexError, ValueError):
            return {"error": "printed no result"}
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    killed = " (killed: the machine's own memory ran out)" if done.returncode == -9 else ""
    return {"error": f"exit code {done.returncode}{killed}: {last}"}


def hardware(toy: bool) -> dict[str, Any]:
    """What each row says of the machine, the versions and the day."""
    import torch

    from chinese_llama_lab.machine import processor_name

    found: dict[str, Any] = {"device": f"CPU (toy shapes): {processor_name()}", "device_memory_gib": ""}
    found |= {"driver": "", "cuda": torch.version.cuda or ""}
    if not toy:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "device_memory_gib": round(properties.total_memory / GIB, 2),
            "driver": _driver(),
        }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found | {"python": platform.python_version(), "date": datetime.date.today().isoformat()}


def _driver() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "unknown"
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


def row_of(case: dict[str, Any], found: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """One line of the CSV: every case has the same columns."""
    size, memory = sizes(case["toy"]), estimated(case)
    shape = TOY if case["toy"] else shape_of(case["model"])
    training = case["work"] == "training"
    peak = found.get("peak_gb")
    return {
        "model": shape.name,
        "parameters": shape.parameters,
        "kind": case["kind"],
        "work": ("qlora" if case["kind"] == "nf4" else "lora") if training else "inference",
        "batch": 1,
        "prompt_tokens": "" if training else size["prompt"],
        "new_tokens": "" if training else size["new"],
        "block": size["block"] if training else "",
        "repeats": case["repeats"],
        **{name: found.get(name, "") for name in FIGURES},
        "estimate_gb": round(memory.gb, 4),
        "estimate_gib": round(memory.gib, 4),
        "estimate_over_peak": round(memory.gb / peak, 4) if peak else "",
        "error": found.get("error", ""),
        **machine,
    }


def main() -> int:
    """Print rows as they come and write the CSV; 2 without a GPU, 1 if no case ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--save", action="store_true", help="write into results/ of the checkout")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=1200, help="seconds a case may take")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(json.loads(options.case))))
        return 0
    import torch

    if options.toy and options.save:
        parser.error("toy figures do not belong into results/: leave out --save")
    if options.repeats < 1:
        parser.error("--repeats has to be 1 or more")
    if not options.toy and not torch.cuda.is_available():
        print(
            "torch sees no CUDA GPU here, so that there is nothing to measure; nothing was written. "
            "--toy runs the same code at tiny shapes on the CPU.",
            file=sys.stderr,
        )
        return NO_GPU
    from chinese_llama_lab import results
    from chinese_llama_lab.paths import committed_results_dir

    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
    models = ["toy"] if options.toy else options.models
    if not options.toy:
        for name in models:
            shape_of(name)  # an unknown name is refused before anything runs
    machine = hardware(options.toy)
    rows: list[dict[str, Any]] = []
    for model in models:
        for kind in options.kinds:
            for work in options.works:
                case = {"model": model, "kind": kind, "work": work}
                case |= {"toy": options.toy, "repeats": options.repeats}
                rows.append(row_of(case, in_process(case, options.timeout), machine))
                _say(rows[-1])
                results.save("bench_gpu", rows, seed=0, model=", ".join(models), device=machine["device"])
    print(f"written: {results.results_dir() / 'bench_gpu.csv'}")
    return int(all(row["error"] for row in rows))


def _say(row: dict[str, Any]) -> None:
    name = f"{row['model']:12}{row['kind']:6}{row['work']:10}"
    if row["error"]:
        print(f"{name}{row['error']} (estimate {row['estimate_gb']:.2f} GB)", flush=True)
        return
    rates = [
        f"{what} {row[what + '_tokens_per_second']:,.1f} tokens/s"
        for what in ("prefill", "decode", "step")
        if row[what + "_tokens_per_second"] != ""
    ]
    rates.append(f"peak {row['peak_gb']:.2f} GB ({row['peak_gib']:.2f} GiB)")
    rates.append(f"estimate {row['estimate_gb']:.2f} GB ({row['estimate_over_peak']:.3f} of the peak)")
    print(name + ", ".join(rates), flush=True)


if __name__ == "__main__":
    try:
        code = main()
    except LabError as error:
        print(error, file=sys.stderr)
        code = 1
    raise SystemExit(code)
