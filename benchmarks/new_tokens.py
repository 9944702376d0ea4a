"""How long must a run be before new tokens pay? SmolLM2 on Chinese news with 0, 1,000 and 4,000 of them.

    python benchmarks/new_tokens.py [--steps N] [--save]

The recipe is the course's, but with half its rate, constant after the warm-up (a cosine's mean), so that each
point of a curve is what a run of that length would roughly reach. All three read the same number of tokens a
step. Half an hour on two cores; each evaluation is written as it comes, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

SIZES = (0, 1000, 4000)


def main() -> int:
    """Train, print and save."""
    from chinese_llama_lab import results
    from chinese_llama_lab.paths import committed_results_dir
    from chinese_llama_lab.sources.corpora import load_corpus
    from chinese_llama_lab.sources.models import load_base
    from chinese_llama_lab.training.pretrain import pretrain
    from chinese_llama_lab.training.recipe import load_recipe
    from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
    from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=640)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of new tokens")
    parser.add_argument("--runs", type=Path, default=Path("build/new_tokens"), help="folder of the runs")
    parser.add_argument("--save", action="store_true", help="write results/bench_new_tokens.csv")
    options = parser.parse_args()
    news = load_corpus("peoples-daily").chinese_punctuation()
    train = news.split("train").texts()
    english = load_corpus("c4-en").split("train").texts()
    held_out = {
        "zh": [text[:400] for text in news.split("held-out").sample(24).texts()],
        "en": [text[:600] for text in load_corpus("c4-en").split("held-out").sample(5).texts()],
    }
    _, tokenizer = load_base("smollm2")
    largest = continue_bpe(tokenizer, train, max(options.sizes))
    recipe = load_recipe("smollm2-zh").replace(
        schedule="constant",
        learning_rate=1e-3,
        steps=options.steps,
        evaluate_every=max(1, options.steps // 8),
        save_every=40,
    )
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        model, words = load_base("smollm2", dtype="bfloat16")
        if size:
            extension = largest.first(size)
            extend_embeddings(model, words, extension.tokenizer)
            words = extension.tokenizer
        out = options.runs / str(size)
        report = pretrain(
            model,
            words,
            train,
            recipe,
            out,
            replay=english,
            held_out=held_out,
            resume=(out / "run.json").is_file(),
        )
        characters = report.characters / report.tokens
        for row in report.rows:
            if "zh_bits" in row:
                tokens = row["step"] * recipe.batch * recipe.block
                rows.append(
                    {
                        "new_tokens": size,
                        "step": row["step"],
                        "tokens": tokens,
                        "characters": round(tokens * characters),
                        "zh_bits": row["zh_bits"],
                        "en_bits": row["en_bits"],
                    }
                )
                print(rows[-1])
    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        results.save("bench_new_tokens", rows, seed=0, model="SmolLM2-135M-Instruct, bfloat16")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
