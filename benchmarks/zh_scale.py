"""What smollm2-zh is with more or less of its LoRA: Chinese gained against English lost.

    python benchmarks/zh_scale.py [--characters N] [--save]

The LoRA of the shipped adapter, which already holds a fitted scale for each block (`zh_fit_scales.py`), is
scaled once more: all layers alike, or one third of them, counted from the bottom. Its new rows are left as
they are; each text stands behind the end of a line, as in `zh_model.py`. Between a model and what it was
tuned to lie models that keep more of both (arXiv 2109.01903). Three minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import re
from typing import Any

from zh_model import START, counts_of, pieces_of

from chinese_llama_lab import results
from chinese_llama_lab.paths import committed_results_dir, data_dir
from chinese_llama_lab.quiet import quiet_libraries

TEXTS = ("peoples-daily", "c4-en")
THIRD = 10  # of SmolLM2's 30 layers
# Which layers → what their LoRA is multiplied with; all others keep theirs.
TRIED = (
    *(("all", scale) for scale in (1.3, 1.15, 1.0, 0.85, 0.7)),
    *((part, 0.6) for part in ("lowest", "middle", "highest")),
)


def scale_lora(adapted: Any, layers: str, scale: float, alpha_over_rank: float) -> None:
    """Set the scale of the LoRA in some layers, and the trained one in the others."""
    at = {"lowest": 0, "middle": 1, "highest": 2}
    for name, module in adapted.named_modules():
        found = re.search(r"\.layers\.(\d+)\.", name)
        if found and isinstance(getattr(module, "scaling", None), dict):
            chosen = layers == "all" or int(found[1]) // THIRD == at[layers]
            module.scaling = dict.fromkeys(module.scaling, alpha_over_rank * (scale if chosen else 1.0))


def main() -> int:
    """Score, print, and write if asked."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    from chinese_llama_lab.sources.models import load_base
    from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--characters", type=int, default=5_000, help="of each text (default: 5,000)")
    parser.add_argument("--save", action="store_true", help="write results/zh_scale.csv")
    options = parser.parse_args()
    quiet_libraries()
    texts = {name: pieces_of(name, options.characters) for name in TEXTS}
    folder = data_dir() / "adapters" / "smollm2-zh"
    model, words = load_base("smollm2", dtype="bfloat16")
    rows: list[dict[str, Any]] = []

    def add(layers: str, scale: float, tokenizer: Any) -> None:
        row: dict[str, Any] = {"layers": layers, "scale": scale}
        for name, documents in texts.items():
            bits, _, characters = counts_of(model, tokenizer, documents).sum(axis=0)
            row[name] = round(bits / characters, 4)
        rows.append(row)
        print(" ".join(map(str, rows[-1].values())), flush=True)

    add("SmolLM2", 0.0, words)
    longer = AutoTokenizer.from_pretrained(folder)
    extend_embeddings(model, words, longer)
    adapted = PeftModel.from_pretrained(model, str(folder))
    lora = adapted.peft_config["default"]
    for layers, scale in TRIED:
        scale_lora(adapted, layers, scale, lora.lora_alpha / lora.r)
        add(layers, scale, longer)
    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        results.save("zh_scale", rows, seed=0, model="smollm2-zh", start=START, characters=options.characters)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
