"""Tokenizing and packing beside the plain way: `datasets.map` twice, as scripts for pre-training do it.

    python benchmarks/shards.py [--megabytes 20] [--repeats 3] [--workers 1 2] [--save]

The plain way tokenizes with one `map`, then joins the ids of every thousand documents and cuts them into
blocks with another; what is left of every thousand fills no block and is dropped. It is written here from
that description. Both ways read the same documents, end each in EOS, and write blocks to disk; they take
turns, so that a busy machine slows both. A worker is one core. The time is all of it: processes start, files
are written. `lost` counts tokens that are in no block. `--save` writes `results/bench_shards.csv`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, cycle
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.utils.logging import disable_progress_bar

from chinese_llama_lab import results
from chinese_llama_lab.errors import LabError
from chinese_llama_lab.paths import committed_results_dir
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.training.shard_commands import _tokenizer
from chinese_llama_lab.training.shards import write_shards

CORPORA = ("peoples-daily", "modern", "reviews")
BLOCK = 512


def documents(megabytes: float) -> list[str]:
    """Course texts, read again from the beginning until there is so much of them."""
    texts = [text for name in CORPORA for text in load_corpus(name).chinese_punctuation().texts()]
    found, size = [], 0
    for text in cycle(texts):
        if size >= megabytes * 1e6:
            return found
        found.append(text)
        size += len(text.encode("utf-8"))
    raise LabError("the course's corpora hold no text")


def ours(texts: list[str], tokenizer: Any, folder: Path, workers: int) -> dict[str, Any]:
    """`seconds`, `tokens` in blocks and those `lost`, of `write_shards`."""
    start = time.perf_counter()
    index = write_shards(texts, tokenizer, folder, block=BLOCK, workers=workers, progress=False)
    return {"seconds": time.perf_counter() - start, "tokens": index.tokens, "lost": index.tail}


def plain(texts: list[str], tokenizer: Any, folder: Path, workers: int) -> dict[str, Any]:
    """The same of two maps; documents are a data set on disk before the clock starts."""
    end = tokenizer.eos_token_id
    counts = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}

    def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[*ids, end] for ids in tokenizer(rows["text"], **counts)["input_ids"]]}

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        flat = list(chain.from_iterable(rows["input_ids"]))
        used = len(flat) // BLOCK * BLOCK
        return {"input_ids": [flat[at : at + BLOCK] for at in range(0, used, BLOCK)]}

    Dataset.from_generator(lambda: _rows(texts), cache_dir=str(folder / "cache")).save_to_disk(
        folder / "text"
    )
    data = Dataset.load_from_disk(str(folder / "text"))
    start = time.perf_counter()
    processes = workers if workers > 1 else None
    options: dict[str, Any] = {"batched": True, "batch_size": 1000, "num_proc": processes}
    cut = data.map(tokenize, remove_columns=["text"], cache_file_name=str(folder / "ids.arrow"), **options)
    blocks = cut.map(group, cache_file_name=str(folder / "blocks.arrow"), **options)
    seconds = time.perf_counter() - start
    total = sum(map(len, cut["input_ids"]))
    return {"seconds": seconds, "tokens": len(blocks) * BLOCK, "lost": total - len(blocks) * BLOCK}


def _rows(texts: list[str]) -> Iterator[dict[str, str]]:
    for text in texts:
        yield {"text": text}


def measure(texts: list[str], tokenizer: Any, workers: int, repeats: int) -> list[dict[str, Any]]:
    """One row a way: the medians of `repeats` turns."""
    ways = {"write_shards": ours, "two maps": plain}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    size = sum(len(text.encode("utf-8")) for text in texts)
    for _ in range(repeats):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(way(texts, tokenizer, Path(folder), workers))
    rows = []
    for name, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        tokens = runs[0]["tokens"] + runs[0]["lost"]
        rows.append(
            {
                "way": name,
                "workers": workers,
                "megabytes": round(size / 1e6, 2),
                "tokens": tokens,
                "lost": runs[0]["lost"],
                "seconds": round(seconds, 2),
                "megabytes_per_second": round(size / 1e6 / seconds, 3),
                "megabytes_per_second_per_core": round(size / 1e6 / seconds / workers, 3),
                "tokens_per_second": round(tokens / seconds),
            }
        )
    return rows


def main() -> int:
    """Print one line a way and number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=20.0, help="of UTF-8 (default: 20)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokenizer", default="smollm2")
    parser.add_argument("--save", action="store_true", help="write results/bench_shards.csv")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker is one core, for both ways
    disable_progress_bar()
    tokenizer = _tokenizer(options.tokenizer)
    texts = documents(options.megabytes)
    rows = []
    for workers in options.workers:
        for row in measure(texts, tokenizer, workers, options.repeats):
            rows.append(row)
            print(
                f"{row['way']:<13} {workers} workers  {row['seconds']:7.2f} s  "
                f"{row['megabytes_per_second']:.2f} MB/s  {row['tokens_per_second']:,} tokens/s  "
                f"{row['lost']:,} of {row['tokens']:,} tokens lost",
                flush=True,
            )
    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        about = {"corpora": " ".join(CORPORA), "block": BLOCK, "tokenizer": options.tokenizer}
        results.save("bench_shards", rows, seed=0, repeats=options.repeats, **about)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
