"""The package's NF4 beside bitsandbytes', on the CPU, in one run.

    python benchmarks/nf4.py [--save]

Quantizing and dequantizing a matrix of 4096 × 4096, with and without double quantization, for three dtypes.
The two take turns, the best time of each is kept, and results must be equal to the bit. Reported is the speed
of the package over that of bitsandbytes; the promise is at least a third.

Where the result is written decides half of it: memory that is new to the process costs a page fault every
4 KiB, memory that was freed before does not, and which of the two a call gets is the allocator's luck. So
each condition has a process of its own: `new`, what a program pays that keeps what it restores, such as a
model's layers, and for which the promise holds; and `reused`, for one that drops each result before the next.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from chinese_llama_lab import results
from chinese_llama_lab.paths import committed_results_dir
from chinese_llama_lab.quantization.blockwise import Quantized, dequantize_nf4, quantize_nf4
from chinese_llama_lab.quiet import quiet_libraries

SIZE = 4096
ROUNDS = 12
PROMISE = 1 / 3
# For glibc. Where another allocator serves malloc, both are what that one does.
MEMORY = {
    "new": {"MALLOC_MMAP_THRESHOLD_": str(2**20)},
    "reused": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**28)},
}


def race(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
    """Best seconds of either, in turns."""
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for place, work in enumerate((ours, theirs)):
            start = time.perf_counter()
            work()
            best[place] = min(best[place], time.perf_counter() - start)
    return best[0], best[1]


def equal(quantized: Quantized, packed: torch.Tensor, state: Any) -> bool:
    """Whether codes and scales are bitsandbytes' to the bit."""
    ours, our_state = quantized.to_bitsandbytes()
    same = torch.equal(ours, packed) and torch.equal(our_state.absmax, state.absmax)
    if quantized.double:
        same = same and torch.equal(our_state.offset, state.offset)
        same = same and torch.equal(our_state.state2.absmax, state.state2.absmax)
    return same


def measured() -> list[dict[str, Any]]:
    """One row a case, in the memory that this process gets."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    rows = []
    torch.manual_seed(0)
    original = torch.randn(SIZE, SIZE) * 0.02
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weights = original.to(dtype)
        for double in (False, True):
            keywords = {"quant_type": "nf4", "compress_statistics": double}
            quantized = quantize_nf4(weights, double=double)
            packed, state = quantize_4bit(weights, **keywords)
            same = equal(quantized, packed, state)
            same = same and torch.equal(dequantize_nf4(quantized), dequantize_4bit(packed, state))
            races = {
                "quantize": (
                    lambda w=weights, d=double: quantize_nf4(w, double=d),
                    lambda w=weights, k=keywords: quantize_4bit(w, **k),
                ),
                "dequantize": (
                    lambda q=quantized: dequantize_nf4(q),
                    lambda p=packed, s=state: dequantize_4bit(p, s),
                ),
            }
            for step, (ours, theirs) in races.items():
                our_s, their_s = race(ours, theirs)
                rows.append(
                    {
                        "dtype": str(dtype).removeprefix("torch."),
                        "double": double,
                        "step": step,
                        "package_ms": round(our_s * 1000, 1),
                        "bitsandbytes_ms": round(their_s * 1000, 1),
                        "speed_ratio": round(their_s / our_s, 3),
                        "bit_equal": same,
                    }
                )
    return rows


def main() -> int:
    """Print one line a case; exit code 1 when one is not equal, or in new memory too slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write results/bench_nf4.csv")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.one:
        print(json.dumps(measured()))
        return 0
    rows = []
    for memory, settings in MEMORY.items():
        command = [sys.executable, __file__, "--one"]
        done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, check=True)
        for row in json.loads(done.stdout.splitlines()[-1]):
            rows.append({"memory": memory, **row})
            print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        results.save("bench_nf4", rows, seed=0, threads=torch.get_num_threads(), size=SIZE)
    slow = [row for row in rows if row["memory"] == "new" and row["speed_ratio"] < PROMISE]
    return int(bool(slow) or not all(row["bit_equal"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
