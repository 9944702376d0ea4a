"""How fast SmolLM2 decodes here, before and after 4,000 new tokens, and what closes the gap to memory.

    python benchmarks/speed.py [--quick] [--compile] [--save]

Each model in each kind (fp32, bf16, nf4) has a process of its own: the bandwidth of reading as many bytes as
a step reads, then `generate`, a bare loop, a static cache and this package's fast decoding; then larger
batches; then the parts of a step. Characters per second are of held-out Chinese news. No training is needed:
speed does not depend on what the weights say. Ten minutes on two idle cores. --compile measures one sequence
alone, with `torch.compile` too, and saves to a table of its own, `bench_speed_compile`. How many of the new
tokens are those of a first call of `generate` is in `same_as_generate`; where bfloat16 has fewer than all,
even for `generate` itself, two calls of one function rounded differently and a near tie fell the other way.

What was tried beside it (`bench_speed_tried`), each against what is kept:
- a product with one vector by `linear`, where `mv` is kept
- q, k, v and gate, up in one matrix each: fewer calls, but a second copy of the weights
- the head in two pieces, old and new rows: what a head costs whose new rows are not contiguous with the old
- the head in int8, which changes what is decoded; how often its best token is another is counted
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("fp32", "bf16", "nf4")
ENGINES = ("generate", "forward", "static", "fast")
NEW_TOKENS = 4000


def prepare(folder: Path, new_tokens: int) -> None:
    """The extended model and its tokenizer, rows as they start."""
    from chinese_llama_lab.sources.corpora import load_corpus
    from chinese_llama_lab.sources.models import load_base
    from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
    from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

    model, tokenizer = load_base("smollm2")
    train = load_corpus("peoples-daily").chinese_punctuation().split("train").texts()
    extended = continue_bpe(tokenizer, train, new_tokens)
    extend_embeddings(model, tokenizer, extended.tokenizer)
    model.save_pretrained(folder)
    extended.tokenizer.save_pretrained(folder)


def measure(place: str, vocabulary: str, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one model in one kind."""
    import torch

    from chinese_llama_lab.inference.bandwidth import memory_bandwidth, step_bytes
    from chinese_llama_lab.inference.engines import generate
    from chinese_llama_lab.inference.speed import encoded, measure_speed, reference_text
    from chinese_llama_lab.inference.step_time import step_time
    from chinese_llama_lab.quantization.load import load_quantized

    model, tokenizer = load_quantized(place, kind)
    prompt, new = (16, 8) if options.quick else (64, 48)
    read = step_bytes(model, context=prompt + new // 2)
    bandwidth = memory_bandwidth(read.total)
    ids = torch.tensor([encoded(tokenizer, reference_text())[:prompt]])
    common: dict[str, Any] = {
        "new_tokens": new,
        "prompt_tokens": prompt,
        "bandwidth": bandwidth,
        "repeats": 1 if options.quick else 4,
        "name": kind,
    }
    engines = [*ENGINES, *(["compiled"] if options.compile else [])]
    best = generate(model, ids, new, "generate")[0, prompt:]
    rows = []

    def keep(found: Any, same: int | str) -> None:
        for row in found.rows:
            own = {"vocabulary": vocabulary, "kind": row.pop("name")}
            beside = {"gb_per_second": round(bandwidth.bytes_per_second / 1e9, 2), "same_as_generate": same}
            rows.append(own | row | beside)
            print(json.dumps(rows[-1]), file=sys.stderr)

    for name in engines:
        tokens = generate(model, ids, new, name)[0, prompt:]
        same = int((tokens == best).cumprod(0).sum())  # of `new`, until the first that differs
        keep(measure_speed(model, tokenizer, engine_name=name, **common), same)
    if options.compile:
        return {"speed": rows, "parts": [], "tried": []}
    batches = (2,) if options.quick else (4, 16)
    if vocabulary == "extended" and kind != "nf4":  # nf4 is slow at many rows on a processor
        for name in ("generate", "fast"):
            common["repeats"] = 1 if options.quick else 2
            keep(measure_speed(model, tokenizer, engine_name=name, batches=batches, **common), "")
    parts = [
        {"vocabulary": vocabulary, "kind": kind}
        | step_time(
            model,
            ids,
            bytes_per_second=bandwidth.bytes_per_second,
            name=name,
            steps=6 if options.quick else 24,
        ).row()
        for name in ("forward", "static", "fast")
    ]
    return {"speed": rows, "parts": parts, "tried": tried(model, options) if kind != "nf4" else []}


def in_turns(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each; in turns, so that other work on the machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, work in variants.items():
            started = time.perf_counter()
            work()
            if turn:  # the first warms up
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(found) for name, found in times.items()}


def tried(model: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows (what, milliseconds as kept, as tried, tokens that differ) over the products of one step."""
    import torch
    from torch.nn import functional

    rounds = 3 if options.quick else 15
    head = model.lm_head.weight.detach()
    vector = torch.randn(head.shape[1]).to(head.dtype)
    blocks = [(layer.self_attn, layer.mlp) for layer in model.model.layers]
    groups = [
        [getattr(owner, name).weight.detach() for name in names]
        for attention, mlp in blocks
        for owner, names in ((attention, ("q_proj", "k_proj", "v_proj")), (mlp, ("gate_proj", "up_proj")))
    ]
    fused = [torch.cat(group) for group in groups]
    old = head.shape[0] - min(NEW_TOKENS, head.shape[0] // 4)
    pieces = (head[:old].clone(), head[old:].clone())
    scale = head.float().abs().amax(1) / 127
    small = (head.float() / scale[:, None]).round().to(torch.int8)
    narrow, narrow_scale, row = head.dtype, scale.to(torch.bfloat16), vector[None].to(torch.bfloat16)

    def int8_head() -> Any:
        return torch.ops.aten._weight_int8pack_mm(row, small, narrow_scale)

    states = torch.randn(200, head.shape[1])
    exact = functional.linear(states, head.float()).argmax(-1)
    rough = functional.linear(states, small.float() * scale[:, None]).argmax(-1)
    pairs: list[tuple[str, Callable[[], object], Callable[[], object], int | str]] = [
        (
            "linear instead of mv (head)",
            lambda: torch.mv(head, vector),
            lambda: functional.linear(vector[None], head),
            "",
        ),
        (
            "q, k, v and gate, up in one matrix each",
            lambda: [torch.mv(w, vector) for group in groups for w in group],
            lambda: [torch.mv(w, vector) for w in fused],
            "",
        ),
        (
            "head in two pieces, old and new rows",
            lambda: torch.mv(head, vector),
            lambda: torch.cat([torch.mv(piece, vector) for piece in pieces]),
            "",
        ),
        (
            "head in int8 (of 200 random states, other tokens)",
            lambda: torch.mv(head, vector),
            int8_head,
            int((exact != rough).sum()),
        ),
    ]
    rows = []
    with torch.inference_mode():
        for what, kept, other, changed in pairs:
            found = in_turns({"kept": kept, "tried": other}, rounds)
            rows.append(
                {
                    "dtype": str(narrow).removeprefix("torch."),
                    "tried": what,
                    "kept_ms": round(found["kept"], 3),
                    "tried_ms": round(found["tried"], 3),
                    "ratio": round(found["tried"] / found["kept"], 3),
                    "other_tokens": changed,
                }
            )
    return rows


def run(place: str, vocabulary: str, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model in a process of its own; its rows show as they come."""
    command = [sys.executable, __file__, "--one", place, vocabulary, kind]
    command += ["--quick"] * options.quick + ["--compile"] * options.compile
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{vocabulary} {kind} failed")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> int:
    """Print and save; exit code 1 if fast decoding is not faster, or float32 gives other tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy sizes: does it run?")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--save", action="store_true", help="write results/bench_speed.csv and its siblings")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        place, vocabulary, kind = options.one
        print(json.dumps(measure(place, vocabulary, kind, options)))
        return 0
    from chinese_llama_lab import results
    from chinese_llama_lab.paths import committed_results_dir

    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
    tables: dict[str, list[dict[str, Any]]] = {"speed": [], "parts": [], "tried": []}
    names = {"speed": "bench_speed", "parts": "bench_speed_parts", "tried": "bench_speed_tried"}
    if options.compile:
        names["speed"] = "bench_speed_compile"
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary), 200 if options.quick else NEW_TOKENS)
        for vocabulary, place in (("original", "smollm2"), ("extended", temporary)):
            for kind in KINDS:
                found = run(place, vocabulary, kind, options)
                for name, rows in found.items():
                    if name != "tried" or vocabulary == "extended":
                        tables[name] += rows
                    if options.save and tables[name]:
                        results.save(names[name], tables[name], seed=0, model="SmolLM2-135M-Instruct")
    columns = (
        "vocabulary",
        "kind",
        "engine",
        "batch",
        "prefill",
        "decode",
        "characters_per_second",
        "limit",
        "share_of_limit",
        "peak_gib",
        "same_as_generate",
    )
    print(results.table("speed", tables["speed"]).only(*columns))
    for name in ("parts", "tried"):
        print(f"\n{results.table(name, tables[name])}")
    return report(tables["speed"])


def report(rows: list[dict[str, Any]]) -> int:
    """What fast decoding and the longer vocabulary give; 1 if a promise does not hold."""
    rate = {(r["vocabulary"], r["kind"], r["engine"]): r for r in rows if r["batch"] == 1}
    holds = True
    for kind in KINDS:
        for vocabulary in ("original", "extended"):
            plain, fast = rate[vocabulary, kind, "generate"], rate[vocabulary, kind, "fast"]
            holds &= fast["decode"] > plain["decode"]
            holds &= kind != "fp32" or fast["same_as_generate"] == fast["new_tokens"]
            print(
                f"{kind}, {vocabulary}: fast decoding {fast['decode'] / plain['decode']:.2f} × generate; "
                f"{plain['share_of_limit']:.0%} → {fast['share_of_limit']:.0%} of the limit"
            )
        before, after = (rate[v, kind, "fast"] for v in ("original", "extended"))
        tokens = after["decode"] / before["decode"]
        characters = after["characters_per_second"] / before["characters_per_second"]
        print(f"{kind}: the longer vocabulary gives {tokens:.2f} × the tokens, {characters:.2f} × characters")
    return int(not holds)


if __name__ == "__main__":
    raise SystemExit(main())
