"""Continued BPE beside the plain loop, in the same run, and at full size.

    python benchmarks/continue_bpe.py [--save]

First both ways learn the same merges from a part of the corpus: the plain loop counts every pair again after
each merge. The merges must be equal; reported is the ratio of the times. Then the package alone learns 10,000
merges from the whole corpus, in a process of its own, whose peak memory is reported in MiB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from collections import Counter
from itertools import pairwise
from typing import Any

from chinese_llama_lab import results
from chinese_llama_lab.paths import committed_results_dir
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.tokenization.fast import FastTokenizer
from chinese_llama_lab.tokenization.fertility import fertility
from chinese_llama_lab.tokenization.registry import open_tokenizer
from chinese_llama_lab.vocabulary.bpe_continue import admissible, continue_bpe, han_token_runs

SMALL_DOCUMENTS, SMALL_TOKENS = 1000, 300
FULL_TOKENS = 10_000


def plain_loop(tokenizer: Any, texts: list[str], wanted: int) -> list[tuple[str, str]]:
    """BPE as it is explained: count all pairs, join the most frequent, begin again."""
    spelling = {index: token for token, index in tokenizer.get_vocab().items()}
    runs = Counter({tuple(run): times for run, times in han_token_runs(tokenizer, texts).items()})
    merges: list[tuple[str, str]] = []
    while len(merges) < wanted:
        counts: Counter[tuple[int, int]] = Counter()
        for run, times in runs.items():
            for pair in pairwise(run):
                counts[pair] += times
        allowed = [p for p in counts if admissible(spelling[p[0]], spelling[p[1]])]
        left, right = min(allowed, key=lambda pair: (-counts[pair], pair))
        new = max(spelling) + 1
        spelling[new] = spelling[left] + spelling[right]
        merges.append((spelling[left], spelling[right]))
        after: Counter[tuple[int, ...]] = Counter()
        for run, times in runs.items():
            out: list[int] = []
            for token in run:
                if out and (out[-1], token) == (left, right):
                    out[-1] = new
                else:
                    out.append(token)
            after[tuple(out)] += times
        runs = after
    return merges


def full_size(queue: Any) -> None:
    """10,000 merges over the whole corpus, in this process."""
    corpus = load_corpus("peoples-daily").raw()
    start = time.perf_counter()
    result = continue_bpe(open_tokenizer("smollm2").tokenizer, corpus.texts(), FULL_TOKENS)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    queue.put((len(result), seconds, peak))


def main() -> int:
    """Print both comparisons; exit code 1 if the merges differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write results/bench_continue_bpe.csv")
    options = parser.parse_args()
    smollm2 = open_tokenizer("smollm2").tokenizer  # type: ignore[attr-defined]
    few = load_corpus("peoples-daily").raw().take(SMALL_DOCUMENTS).texts()

    start = time.perf_counter()
    slow = plain_loop(smollm2, few, SMALL_TOKENS)
    slow_s = time.perf_counter() - start
    start = time.perf_counter()
    fast = continue_bpe(smollm2, few, SMALL_TOKENS)
    fast_s = time.perf_counter() - start
    equal = tuple(slow) == fast.merges
    print(
        f"{SMALL_TOKENS} merges over {sum(map(len, few)):,} characters: plain loop {slow_s:.2f} s, "
        f"package {fast_s:.2f} s, ratio {fast_s / slow_s:.3f}, equal merges: {equal}"
    )

    queue = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=full_size, args=(queue,))
    process.start()
    tokens, seconds, peak = queue.get()
    process.join()
    print(f"{tokens:,} merges over the whole corpus: {seconds:.1f} s, peak {peak:,.0f} MiB")

    train, held_out = (
        load_corpus("peoples-daily").raw().split(part).texts() for part in ("train", "held-out")
    )
    learnt = continue_bpe(smollm2, train, FULL_TOKENS)
    rows = []
    for size in (0, 1000, 4000, len(learnt)):
        tokenizer = FastTokenizer(f"+{size}", learnt.first(size).tokenizer)
        value = fertility(tokenizer, held_out, reference=None, coverage=False).tokens_per_character
        print(f"+{size:,} tokens: {value:.4f} tokens per held-out character")
        rows.append({"new_tokens": size, "held_out_tokens_per_character": round(value, 4)})
    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        extra = {
            "small_ratio": round(fast_s / slow_s, 4),
            "full_seconds": round(seconds, 1),
            "peak_mib": round(peak),
        }
        results.save("bench_continue_bpe", [{**row, **extra} for row in rows], seed=0)
    return int(not equal)


if __name__ == "__main__":
    raise SystemExit(main())
