"""What `smollm2-zh` is made of, by short runs: one setting changed at a time, and the gain split into parts.

    python benchmarks/zh_search.py [--steps N] [--only NAME …] [--save]

Every run but two reads the same number of tokens (steps × 512, news and reviews with English replay) from
SmolLM2, in bfloat16 where the machine is fast at it, and is scored in bits per character on held-out news and
English web text, each behind the end of a line (SmolLM2 never saw its own BOS before text). `search` changes
one setting of the shipped recipe; `parts` takes something away: training, the start of the new rows, LoRA,
the vocabulary; and reads two and four times the text. What still more gives is in the shipped run's log.

A run that was stopped goes on, and one that is finished is not repeated, nor one whose row is in `results/`
with as many steps; with --save the rows that are there are written. Two minutes a run on two cores that are
fast at bfloat16, seven on others; there, two processes with one thread each do 1.4 times as much.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from zh_model import START

WHOLE = "course's recipe"
# Changed settings: of the recipe, or `new_tokens` (how many), `start` (of their rows) and `times` (the text).
SEARCH: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "2,500 new tokens": {"new_tokens": 2500},
    "10,000 new tokens": {"new_tokens": 10_000},
    "rank 4": {"rank": 4, "alpha": 8},
    "rank 64": {"rank": 64, "alpha": 128},
    "rate 5e-4": {"learning_rate": 5e-4},
    "rate 1e-3": {"learning_rate": 1e-3},
    "rate 4e-3": {"learning_rate": 4e-3},
    "rows at 3 times the rate": {"new_rows_ratio": 3.0},
    "rows at a tenth of the rate": {"new_rows_ratio": 0.1},
    "LoRA+, B at 4 times the rate": {"lora_plus_ratio": 4.0},
    "second moments of Adam over 50 steps": {"adam_beta2": 0.98},
    "no replay": {"replay_share": 0.0},
    "replay 0.3": {"replay_share": 0.3},
    "replay towards the base": {"replay_target": "base"},
    "rows from their English glosses": {"start": "gloss"},
    "batch of 1,024 tokens": {"batch": 4},
}
PARTS: dict[str, dict[str, Any]] = {
    "SmolLM2 as it came": {"new_tokens": 0, "times": 0},
    "vocabulary alone, random rows": {"start": "random", "times": 0},
    "vocabulary alone, rows from their parts": {"times": 0},
    "LoRA without new tokens": {"new_tokens": 0},
    "new rows without LoRA": {"rank": 0},
    "LoRA and new rows, random start": {"start": "random"},
    WHOLE: {},
    "course's recipe, twice the text": {"times": 2},
    "course's recipe, four times the text": {"times": 4},
}
SHIPPED: dict[str, Any] = {"new_tokens": 5000, "start": "subtoken-mean", "times": 1, "replay_share": 0.12}
KEPT = (
    *("rank", "learning_rate", "lora_plus_ratio", "new_rows_ratio", "adam_beta2"),
    *("replay_share", "replay_target", "batch"),
)


def texts() -> dict[str, Any]:
    """Text to train on and to score."""
    from chinese_llama_lab.sources.corpora import load_corpus

    def part(name: str, which: str) -> Any:
        return load_corpus(name).chinese_punctuation().split(which)

    return {
        "train": [*part("peoples-daily", "train").texts(), *part("reviews", "train").texts()],
        "replay": part("c4-en", "train").texts(),
        "zh": [text[:400] for text in part("peoples-daily", "held-out").sample(60).texts()],
        "en": [text[:600] for text in part("c4-en", "held-out").sample(10).texts()],
    }


def run(name: str, changed: dict[str, Any], steps: int, data: dict[str, Any], runs: Path) -> dict[str, Any]:
    """Train (or only extend) one model and score it."""
    from chinese_llama_lab.sources.corpora import glosses
    from chinese_llama_lab.sources.models import load_base
    from chinese_llama_lab.training.metrics import bits_per_character
    from chinese_llama_lab.training.precision import weights_dtype
    from chinese_llama_lab.training.pretrain import pretrain
    from chinese_llama_lab.training.recipe import load_recipe
    from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
    from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

    settings = {**SHIPPED, **changed}
    tokens, start, times = (settings.pop(key) for key in ("new_tokens", "start", "times"))
    recipe = load_recipe("smollm2-zh").replace(**{"evaluate_every": 0, **settings})
    # The same number of tokens, whatever a step takes.
    recipe = recipe.replace(steps=steps * times * 512 // (recipe.batch * recipe.block))
    model, words = load_base("smollm2", dtype=weights_dtype(recipe))
    if tokens:
        longer = continue_bpe(words, data["train"], tokens).tokenizer
        first = {word: found[0] for word, found in glosses().items()} if start == "gloss" else None
        extend_embeddings(model, words, longer, start, seed=0, glosses=first)
        words = longer
    if times:
        out = runs / name.replace(" ", "-")
        resume = (out / "run.json").is_file()
        report = pretrain(model, words, data["train"], recipe, out, replay=data["replay"], resume=resume)
        model = report.model
    scored = {part: bits_per_character(model, words, data[part], start=START) for part in ("zh", "en")}
    return {
        "run": name,
        "new_tokens": tokens,
        "start": start if tokens else "",
        **{key: getattr(recipe, key) for key in KEPT},
        "dtype": weights_dtype(recipe),
        "tokens_read": times * steps * 512,
        "tokens_per_character": round(scored["zh"].tokens / scored["zh"].characters, 4),
        "zh_bits": round(scored["zh"].bits_per_character, 4),
        "en_bits": round(scored["en"].bits_per_character, 4),
    }


def finished(table: str, steps: int) -> dict[str, dict[str, Any]]:
    """Rows of a committed table of as many steps, scored as here, by the name of the run."""
    from chinese_llama_lab.paths import committed_results_dir
    from chinese_llama_lab.results import read_table

    path = committed_results_dir() / f"{table}.csv"
    if path.is_file():
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if (about["steps"], about.get("start")) == (steps, START):
            return {row["run"]: row for row in read_table(path).rows}
    return {}


def main() -> int:
    """Run what is missing; print each row as it comes."""
    from chinese_llama_lab import results
    from chinese_llama_lab.paths import committed_results_dir, write_json
    from chinese_llama_lab.quiet import quiet_libraries

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of runs")
    parser.add_argument("--runs", type=Path, default=Path("build/zh_search"), help="folder of the runs")
    parser.add_argument("--save", action="store_true", help="write results/zh_search.csv and zh_parts.csv")
    options = parser.parse_args()
    quiet_libraries()
    data = texts()
    for table, chosen in (("zh_parts", PARTS), ("zh_search", SEARCH)):
        rows = []
        known = finished(table, options.steps)
        for name, changed in chosen.items():
            path = options.runs / f"rows-{options.steps}" / f"{name}.json"
            if path.is_file():
                row = json.loads(path.read_text(encoding="utf-8"))
            elif name in known:
                row = known[name]
            elif options.only is not None and name not in options.only:
                continue
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                row = run(name, changed, options.steps, data, options.runs / str(options.steps))
                write_json(path, row)
            rows.append(row)
            print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if options.save and rows:
            os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
            results.save(table, rows, seed=0, model="SmolLM2-135M-Instruct", steps=options.steps, start=START)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
