"""Fertility beside the underlying library's own batch encoding of the same list, in the same run.

    python benchmarks/fertility.py [--repeats 7] [--save]

For each tokenizer both calls take turns, so that a busy machine slows both. Reported is the ratio of the
medians and of the best times: 1.00 means that counting everything costs nothing on top of encoding.
`--save` writes `results/bench_fertility.csv`; without it nothing is written.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from chinese_llama_lab import results
from chinese_llama_lab.errors import LabError
from chinese_llama_lab.paths import committed_results_dir
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.tokenization.base import Tokenizer
from chinese_llama_lab.tokenization.fast import FastTokenizer
from chinese_llama_lab.tokenization.fertility import fertility
from chinese_llama_lab.tokenization.registry import open_tokenizer
from chinese_llama_lab.tokenization.sentencepiece_model import SentencePieceTokenizer
from chinese_llama_lab.tokenization.tiktoken_file import TiktokenTokenizer

NAMES = ("llama", "mistral", "baichuan", "smollm2", "deepseek-v4", "qwen", "llama-3", "bert-base-chinese")
LIMIT = 1.10  # what the course promises


def peer(tokenizer: Tokenizer) -> tuple[str, Callable[[list[str]], Any]]:
    """The library's own way to encode a list, with its default number of threads."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return "SentencePieceProcessor.encode(list)", tokenizer.processor.encode
    if isinstance(tokenizer, FastTokenizer):
        library = tokenizer.tokenizer
        return "Tokenizer.encode_batch", lambda texts: library.encode_batch(texts, add_special_tokens=False)
    if isinstance(tokenizer, TiktokenTokenizer):
        return "Encoding.encode_ordinary_batch", tokenizer.encoding.encode_ordinary_batch
    raise LabError(f"no peer is known for {tokenizer!r}")


def seconds(call: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name: str, texts: list[str], repeats: int) -> dict[str, Any]:
    """One row: medians and best of both ways, taken in turns after one warm-up each."""
    tokenizer = open_tokenizer(name)
    label, encode = peer(tokenizer)
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(repeats + 1):
        pair = seconds(lambda: fertility(tokenizer, texts)), seconds(lambda: encode(texts))
        if turn:
            ours.append(pair[0])
            theirs.append(pair[1])
    return {
        "tokenizer": tokenizer.name,
        "peer": label,
        "characters": sum(map(len, texts)),
        "ours_s": round(statistics.median(ours), 4),
        "peer_s": round(statistics.median(theirs), 4),
        "ratio": round(statistics.median(ours) / statistics.median(theirs), 3),
        "ratio_of_best": round(min(ours) / min(theirs), 3),
    }


def main() -> int:
    """Print one line a tokenizer; exit code 1 when a ratio is above the promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write results/bench_fertility.csv")
    options = parser.parse_args()
    texts = load_corpus("peoples-daily").raw().texts()
    rows = []
    for name in NAMES:
        row = measure(name, texts, options.repeats)
        rows.append(row)
        print(
            f"{row['tokenizer']:<13} ours {row['ours_s']:.3f} s  peer {row['peer_s']:.3f} s  "
            f"ratio {row['ratio']:.2f} (best {row['ratio_of_best']:.2f})  against {row['peer']}",
            flush=True,
        )
    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        results.save("bench_fertility", rows, seed=0, repeats=options.repeats)
    return int(any(row["ratio"] > LIMIT for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
