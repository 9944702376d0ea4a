"""The memory estimate beside measured peak memory of SmolLM2, on the CPU.

    python benchmarks/memory.py [--save] [--quick] [--only TEXT]

Each case runs in a process of its own (`chinese_llama_lab.inference.measured` says what is measured). GB are
10^9 bytes, GiB 2^30. Exit code 1 if an estimate is off by more than 10 %.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from chinese_llama_lab.errors import LabError
from chinese_llama_lab.inference.measured import TOLERATED, measure

INFERENCE = ("fp32", "bf16", "nf4", "nf4-double")
TRAINING = ("fp32", "bf16", "nf4", "nf4-double")


def cases() -> list[dict[str, Any]]:
    """Arguments of `measure`."""
    found: list[dict[str, Any]] = []
    for kind in INFERENCE:
        found += [{"task": "inference", "kind": kind, "block": block} for block in (512, 2048)]
    for kind in TRAINING:
        for block, batch in ((256, 2), (512, 1), (512, 2)):
            for saved in (False, True):
                size = {"block": block, "batch": batch, "gradient_checkpointing": saved}
                found.append({"task": "lora", "kind": kind, **size})
    for kind in ("fp32", "bf16", "nf4"):
        for saved in (False, True):
            size = {"block": 256, "gradient_checkpointing": saved}
            found.append({"task": "lora", "kind": kind, "trainer": "plain", **size})
    return found


def main() -> int:
    """Print rows as they come; 1 if one is beyond the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write results/bench_memory.csv")
    parser.add_argument("--quick", action="store_true", help="one case a kind and task, at 64 tokens")
    parser.add_argument("--only", default="", help="cases whose line contains this text")
    options = parser.parse_args()
    chosen = cases()
    if options.quick:
        chosen = [case for case in chosen if case["block"] == 512 and case.get("batch", 1) == 1]
        chosen = [{**case, "block": 64} for case in chosen]
    rows, far = [], 0
    print(f"{'':52}{'measured':>20}{'estimate':>20}   error")
    for case in chosen:
        saved = case.get("gradient_checkpointing", False)
        trainer = case.get("trainer", "package") if case["task"] == "lora" else ""
        name = f"{case['task']:10}{case['kind']:11}{trainer:8}{case.get('batch', 1)} x {case['block']:<6}"
        name += "checkpointing" if saved else ""
        if options.only not in name:
            continue
        row = measure(**case, timeout=3600).row()
        rows.append(row)
        far += abs(row["error"]) > TOLERATED
        sizes = (f"{row[k + '_gb']:.3f} GB {row[k + '_gib']:.3f} GiB" for k in ("measured", "estimate"))
        print(f"{name:52}{'  '.join(sizes)}  {row['error']:+.1%}", flush=True)
    if not rows:
        raise LabError(f"no case contains {options.only!r}", where="--only", remedy="leave it out")
    worst = max(abs(row["error"]) for row in rows)
    print(f"largest error {worst:.1%}; {far} of {len(rows)} beyond {TOLERATED:.0%}")
    if options.save:
        from chinese_llama_lab import results
        from chinese_llama_lab.paths import committed_results_dir

        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        results.save("bench_memory", rows, seed=0, model="SmolLM2-135M-Instruct")
    return int(far > 0)


if __name__ == "__main__":
    raise SystemExit(main())
