"""What smollm2-zh knows by heart: bits per character of documents that it read, beside held-out ones.

    python benchmarks/zh_by_heart.py [--characters N] [--save]

For each kind of text that it was trained on, as many characters of both parts, for SmolLM2 and for
smollm2-zh, each piece behind the end of a line as in `zh_model.py`. A part that is much cheaper to the one
and not to the other was learnt by heart: there, more passes over the same documents help no more. Two
minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from zh_model import START, TEXTS, counts_of, pieces_of

from chinese_llama_lab import results
from chinese_llama_lab.paths import committed_results_dir
from chinese_llama_lab.quiet import quiet_libraries

READ = [name for name, (_, _, trained) in TEXTS.items() if trained]


def main() -> int:
    """Score, print, and write if asked."""
    from chinese_llama_lab.sources.models import load_base

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--characters", type=int, default=5_000, help="of each part (default: 5,000)")
    parser.add_argument("--save", action="store_true", help="write results/zh_by_heart.csv")
    options = parser.parse_args()
    quiet_libraries()
    given = {
        (text, part): pieces_of(text, options.characters, part)
        for text in READ
        for part in ("train", "held-out")
    }
    rows: list[dict[str, Any]] = []
    for name in ("smollm2", "smollm2-zh"):
        model, tokenizer = load_base(name, dtype="bfloat16")
        for (text, part), documents in given.items():
            counts = counts_of(model, tokenizer, documents)
            bits, _, characters = counts.sum(axis=0)
            rows.append(
                {
                    "model": name,
                    "text": text,
                    "part": part,
                    "documents": len(counts),
                    "characters": int(characters),
                    "bits_per_character": round(bits / characters, 4),
                }
            )
            print(" ".join(map(str, rows[-1].values())), flush=True)
    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        results.save("zh_by_heart", rows, seed=0, model="smollm2-zh", start=START)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
