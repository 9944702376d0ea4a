"""SmolLM2 in llama.cpp beside this package: tokens and characters per second, on the same prompt.

    python benchmarks/gguf_speed.py [--adapted FOLDER] [--threads N] [--quick] [--save]

llama.cpp reads the files that `export_gguf` writes (f32, f16, bf16, q8_0), each in a process of its own. It
needs llama-cpp-python, the extra `gguf`; where that is missing its rows are left out, and it is said so. Ours
are kinds of `load_quantized`, by `generate` of transformers and by this package's fast decoding. Two threads.
(Not called `gguf.py`: scripts of this folder would import it in place of the package of that name.)

`same`: how many of the greedy tokens are those of fp32 by `generate`, until the first that differs.
`repack`: whether llama.cpp laid out the weights anew for the processor; `no` where it crashed with that.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GGUF_KINDS = ("f32", "f16", "bf16", "q8_0")
OUR_KINDS = ("fp32", "bf16", "nf4")


def measure_llama_cpp(path: str, ids: list[int], new: int, threads: int, repeats: int, repack: bool) -> None:
    """What a child process does: seconds of each repeat, the tokens, and the program's version, as JSON."""
    import llama_cpp

    from chinese_llama_lab.inference.gguf_run import greedy, opened

    with opened(path, context=len(ids) + new + 8, threads=threads, repack=repack) as model:
        times = [greedy(model, ids, new) for _ in range(repeats + 1)][1:]  # the first warms up
    found = {
        "tokens": times[0][0],
        "prefill": [t[1] for t in times],
        "decode": [t[2] for t in times],
        "version": llama_cpp.__version__,
    }
    print(json.dumps(found))


def llama_cpp(path: Path, ids: list[int], options: argparse.Namespace) -> tuple[dict[str, Any] | None, str]:
    """Seconds and tokens, or None; and whether weights were laid out anew, or why there is nothing."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None, "llama-cpp-python is not installed (the extra `gguf`)"
    reason = ""
    for repack in (True, False):
        asked = json.dumps([str(path), ids, options.new, options.threads, options.repeats, repack])
        done = subprocess.run([sys.executable, __file__, "--child", asked], capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1]), "yes" if repack else "no"
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return None, reason


def rows_of(folder: Path, vocabulary: str, options: argparse.Namespace, scratch: Path, keep: Any) -> set[str]:
    """All rows of one model, ours first; each is given to `keep` as it comes.

    Returns: the versions of llama-cpp-python that made its rows, as their processes told.
    """
    import torch

    from chinese_llama_lab.inference.engines import generate
    from chinese_llama_lab.inference.gguf import export_gguf
    from chinese_llama_lab.inference.speed import (
        Times,
        characters_per_token,
        encoded,
        measure_speed,
        reference_text,
    )
    from chinese_llama_lab.quantization.load import load_quantized

    versions: set[str] = set()
    best: list[int] = []
    density, ids = 0.0, []

    def row(
        program: str, kind: str, engine: str, repack: str, size: int, times: tuple[Times, Times], same: int
    ):
        prefill, decode = times
        keep(
            {
                "vocabulary": vocabulary,
                "program": program,
                "kind": kind,
                "engine": engine,
                "repack": repack,
                "threads": options.threads,
                "weights_mb": round(size / 1e6, 1),
                "prompt_tokens": len(ids),
                "new_tokens": options.new,
                "prefill": round(prefill.rate, 2),
                "prefill_slowest": round(prefill.slowest, 2),
                "prefill_fastest": round(prefill.fastest, 2),
                "decode": round(decode.rate, 2),
                "decode_slowest": round(decode.slowest, 2),
                "decode_fastest": round(decode.fastest, 2),
                "characters_per_second": round(decode.rate * density, 2),
                "same": same,
            }
        )

    def agreeing(tokens: list[int]) -> int:
        return next((n for n, (a, b) in enumerate(zip(tokens, best, strict=True)) if a != b), len(best))

    for kind in OUR_KINDS:
        model, tokenizer = load_quantized(str(folder), kind)
        density = characters_per_token(tokenizer, reference_text())
        ids = encoded(tokenizer, reference_text())[: options.prompt]
        size = sum(p.numel() * p.element_size() for p in model.parameters())  # a tied pair counts once
        for engine in ("generate", "fast"):
            tokens = generate(model, torch.tensor([ids]), options.new, engine)[0, len(ids) :].tolist()
            best = best or tokens
            (found,) = measure_speed(
                model,
                tokenizer,
                prompt_tokens=len(ids),
                new_tokens=options.new,
                repeats=options.repeats,
                engine_name=engine,
            ).measured
            row("this package", kind, engine, "", size, (found.prefill, found.decode), agreeing(tokens))
        del model
    for kind in GGUF_KINDS:
        path = export_gguf(folder, scratch / f"{vocabulary}.{kind}.gguf", kind=kind).out
        result, said = llama_cpp(path, ids, options)
        if result is None:
            print(f"llama.cpp {kind}: no row, {said}", file=sys.stderr)
            continue
        versions.add(result["version"])
        times = (
            Times(tuple(result["prefill"]), len(ids)),
            Times(tuple(result["decode"]), options.new - 1),
        )
        row(
            "llama.cpp",
            kind,
            "llama-cpp-python",
            said,
            path.stat().st_size,
            times,
            agreeing(result["tokens"]),
        )
    return versions


def main() -> int:
    """Print rows as they come, and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--adapted", type=Path, metavar="FOLDER", help="an extended model, measured as well")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few tokens: does it run?")
    parser.add_argument("--save", action="store_true", help="write results/bench_gguf.csv")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure_llama_cpp(*json.loads(options.child))
        return 0
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    from chinese_llama_lab import results
    from chinese_llama_lab.paths import committed_results_dir
    from chinese_llama_lab.sources.models import converted_model

    torch.set_num_threads(options.threads)
    options.prompt, options.new, options.repeats = (16, 4, 1) if options.quick else (128, 64, 5)
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        versions = rows_of(converted_model("smollm2"), "base", options, Path(scratch), keep)
        if options.adapted:
            versions |= rows_of(options.adapted, "extended", options, Path(scratch), keep)
    if options.save:
        # From the processes that made the rows: a folder on the path has a module, but no package metadata.
        program = ", ".join(sorted(versions)) or "no rows of it"
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        results.save("bench_gguf", rows, model="SmolLM2-135M-Instruct", llama_cpp_python=program)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
