"""Which adapter to ship: several of them, their means and their scales, on text that no table reports.

    python benchmarks/zh_candidates.py NAME=ADAPTER … [--save]

NAME is what the row is called; ADAPTER a folder of a run or of `zh_average.py`. Scored in bfloat16 like
`zh_model.py`, each text behind the end of a line, but on the texts that `zh_fit_scales.py` fits on: what is
chosen by them must not be reported by them. Half a minute an adapter on two cores.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from zh_fit_scales import CHINESE, ENGLISH, unreported
from zh_model import START, counts_of

from chinese_llama_lab import results
from chinese_llama_lab.paths import committed_results_dir, data_dir
from chinese_llama_lab.quiet import quiet_libraries


def main() -> int:
    """Score, print, and write if asked."""
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from chinese_llama_lab.sources.models import load_base
    from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("adapters", nargs="+", metavar="NAME=ADAPTER")
    parser.add_argument("--save", action="store_true", help="write results/zh_candidates.csv")
    options = parser.parse_args()
    given = [(name, Path(folder)) for name, _, folder in (text.partition("=") for text in options.adapters)]
    for name, folder in given:
        if not (folder / "adapter_config.json").is_file():
            raise SystemExit(f"{name}: {folder} holds no adapter; give NAME=FOLDER")
    quiet_libraries()
    wanted = {**CHINESE, **ENGLISH}
    texts = {name: unreported({name: characters}) for name, characters in wanted.items()}
    model, words = load_base("smollm2", dtype="bfloat16")
    rows: list[dict[str, Any]] = []

    def add(name: str, model: Any, tokenizer: Any) -> None:
        row: dict[str, Any] = {"adapter": name}
        for text, pieces in texts.items():
            bits, _, characters = counts_of(model, tokenizer, [pieces]).sum(axis=0)
            row[text] = round(bits / characters, 4)
        rows.append(row)
        print(" ".join(map(str, row.values())), flush=True)

    add("SmolLM2", model, words)
    longer = AutoTokenizer.from_pretrained(data_dir() / "adapters" / "smollm2-zh")
    extend_embeddings(model, words, longer)
    adapted: Any = PeftModel.from_pretrained(model, str(given[0][1]))
    for name, folder in given:
        set_peft_model_state_dict(adapted, load_file(folder / "adapter_model.safetensors"))
        add(name, adapted, longer)
    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        results.save("zh_candidates", rows, seed=0, model="smollm2-zh", start=START, characters=wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
