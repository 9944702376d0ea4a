"""The repaired merge beside the published one: tokens on held-out text, in one run.

    LAB_GOLD_DIR=… python benchmarks/merge.py [--save]

With the published project's own Chinese model where it is at hand (`chinese_sp.model` in `$LAB_GOLD_DIR`),
else with one trained on the course's corpora. Reported is tokens repaired / tokens published for each kind of
text, as printed and NFKC-folded; the promise is at most 1.02.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from chinese_llama_lab import results
from chinese_llama_lab.paths import committed_results_dir
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.tokenization.registry import converted_gguf
from chinese_llama_lab.vocabulary import sp_model
from chinese_llama_lab.vocabulary.merge import merge
from chinese_llama_lab.vocabulary.reachability import reachability
from chinese_llama_lab.vocabulary.sp_train import train_sentencepiece

TEXTS = ("peoples-daily", "reviews", "modern", "three-kingdoms", "hsk-zh", "alpaca-zh")
LIMIT = 1.02


def main() -> int:
    """Print one line a text; exit code 1 when a ratio is above the promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write results/bench_merge.csv")
    options = parser.parse_args()
    given = Path(os.environ.get("LAB_GOLD_DIR", "")) / "chinese_sp.model"
    if given.is_file():
        extra, name = sp_model.load_model(given), "the published project's"
    else:
        training = [d.text for n in TEXTS[:3] for d in load_corpus(n).split("train")]
        extra, name = train_sentencepiece(training, 20_000).model, "trained on the course's corpora"
    base = converted_gguf("llama")
    merged = {policy: merge(base, extra, policy) for policy in ("published", "repaired")}  # type: ignore[arg-type]
    print(f"Chinese model: {name}")
    for policy, result in merged.items():
        print(
            f"{policy}: {len(result):,} pieces, {len(reachability(result.model).unreachable())} unreachable"
        )
    encoders = {policy: sp_model.processor(result.model) for policy, result in merged.items()}
    rows = []
    for text in TEXTS:
        for form in ("as printed", "NFKC"):
            corpus = load_corpus(text) if form == "NFKC" else load_corpus(text).raw()
            held_out = corpus.split("held-out").texts()
            characters = sum(map(len, held_out))
            tokens = {policy: sum(map(len, sp.encode(held_out))) for policy, sp in encoders.items()}
            ratio = tokens["repaired"] / tokens["published"]
            rows.append(
                {
                    "text": text,
                    "form": form,
                    "characters": characters,
                    "published": round(tokens["published"] / characters, 4),
                    "repaired": round(tokens["repaired"] / characters, 4),
                    "ratio": round(ratio, 4),
                }
            )
            print(f"{text:<15} {form:<10} {ratio:.4f}")
    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        results.save("bench_merge", rows, seed=0, chinese_model=name)
    return int(any(row["ratio"] > LIMIT for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
