"""How much of each layer's LoRA to take: 60 numbers, fitted to Chinese gained against English lost.

    python benchmarks/zh_fit_scales.py ADAPTER --out FILE [--steps N] [--english W]

One scale for the attention and one for the MLP of each layer, from 0.9 on, by Adam on bits per character of
Chinese plus W times those of English. The texts are held out, and none of them is one that `zh_model.py`
reports (where documents are few, other pieces of the same ones). FILE is for `zh_average.py --scales`. Half a
minute a step on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zh_model import CHARACTERS, START, pieces_of

from chinese_llama_lab.paths import write_json
from chinese_llama_lab.quiet import quiet_libraries

# Text → characters of it
CHINESE = {"peoples-daily": 4500, "reviews": 1500, "modern": 1500}
ENGLISH = {"c4-en": 9000, "wikipedia-en": 3000}
BATCH, RATE, FROM = 4, 0.05, 0.9


def unreported(wanted: dict[str, int]) -> list[str]:
    """Held-out pieces that `zh_model.py` does not report."""
    chosen: list[str] = []
    for name, characters in wanted.items():
        reported = {piece for document in pieces_of(name, CHARACTERS) for piece in document}
        documents = [[p for p in d if p not in reported] for d in pieces_of(name, 10 * CHARACTERS)]
        pieces = (piece for at in itertools.zip_longest(*documents) for piece in at if piece)
        taken = 0
        for piece in pieces:
            if taken >= characters:
                break
            chosen.append(piece)
            taken += len(piece)
        if taken < characters:
            raise SystemExit(f"{name} has {taken} held-out characters that are not reported: ask for fewer")
    return chosen


def batches(tokenizer: Any, texts: list[str]) -> Iterator[tuple[Any, Any]]:
    """(ids, labels) of texts of about one length, each behind START."""
    import torch

    first = tokenizer(START, add_special_tokens=False).input_ids
    rows = sorted((first + tokenizer(text, add_special_tokens=False).input_ids for text in texts), key=len)
    for at in range(0, len(rows), BATCH):
        part = rows[at : at + BATCH]
        ids = torch.zeros(len(part), max(map(len, part)), dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for number, row in enumerate(part):
            ids[number, : len(row)] = torch.tensor(row)
            labels[number, len(first) : len(row)] = torch.tensor(row[len(first) :])
        yield ids, labels


class Scales:
    """A scale for each block of each layer, in place of LoRA's alpha / rank times one."""

    def __init__(self, adapted: Any) -> None:
        import torch

        config = adapted.peft_config["default"]
        self._trained = config.lora_alpha / config.r
        self.values: dict[str, Any] = {}
        self._modules = []
        for name, module in adapted.named_modules():
            found = re.search(r"\.layers\.(\d+\.\w+)\.\w+$", name)
            if found and isinstance(getattr(module, "scaling", None), dict):
                scale = self.values.setdefault(found[1], torch.nn.Parameter(torch.tensor(FROM)))
                self._modules.append((module, scale))

    def put(self) -> None:
        """Into the layers; again before each forward pass that is to have a gradient."""
        for module, scale in self._modules:
            module.scaling = {"default": self._trained * scale}


def main() -> int:
    """Fit, print each step and write."""
    import torch
    from peft import PeftModel
    from torch.nn.functional import cross_entropy
    from transformers import AutoTokenizer

    from chinese_llama_lab.paths import data_dir
    from chinese_llama_lab.sources.models import load_base
    from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("adapter", type=Path, metavar="ADAPTER")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--english", type=float, default=2.0, help="weight of English bits (default: 2)")
    options = parser.parse_args()
    quiet_libraries()
    model, words = load_base("smollm2", dtype="bfloat16")
    longer = AutoTokenizer.from_pretrained(data_dir() / "adapters" / "smollm2-zh")
    extend_embeddings(model, words, longer)
    adapted = PeftModel.from_pretrained(model, str(options.adapter))
    adapted.requires_grad_(False)
    scales = Scales(adapted)
    optimizer = torch.optim.Adam(scales.values.values(), lr=RATE, betas=(0.8, 0.95))
    chosen = {"zh": unreported(CHINESE), "en": unreported(ENGLISH)}
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / options.steps)
        optimizer.zero_grad()
        bits = dict.fromkeys(chosen, 0.0)
        for language, weight in (("zh", 1.0), ("en", options.english)):
            characters = sum(map(len, chosen[language]))
            for ids, labels in batches(longer, chosen[language]):
                scales.put()
                logits = adapted(input_ids=ids).logits[:, :-1].float().flatten(0, 1)
                nats = cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
                loss = nats / math.log(2) / characters
                (weight * loss).backward()
                bits[language] += loss.item()
        optimizer.step()
        found = {name: round(scale.item(), 4) for name, scale in scales.values.items()}
        write_json(options.out, found)
        shown = {language: round(value, 4) for language, value in bits.items()}
        low, high, mean = min(found.values()), max(found.values()), sum(found.values()) / len(found)
        print(f"step {step + 1}: {shown}; then scales {low} to {high}, mean {mean:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
