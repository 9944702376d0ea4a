"""Continued pre-training: this package beside the published configuration, in the same run.

    python benchmarks/training.py [--characters N] [--save]

Both train the same extended SmolLM2 on the same text, one pass, each in a process of its own. The published
configuration is that of Chinese-LLaMA-Alpaca's script as its README runs it: transformers' Trainer; peft
with LoRA of rank 8 (α 32, dropout 0.05) on all projections and `modules_to_save` for both matrices; texts
joined and cut into blocks of 512 with the remainder dropped; batch 1 × accumulation 8, rate 2e-4; with and
without its gradient checkpointing; in float32 and in bfloat16 (its fp16 needs a GPU). This package: its
recipe `smollm2-zh`, and the same in float32. Reported: tokens and characters a second, peak resident memory,
bits per character of held-out text before and after, and throughput as a share of the forward pass alone.
Figures of interest are ratios: other work on the machine slows both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

NEW_TOKENS = 4000
PEERS = ("published-fp32", "published-bf16", "published-bf16-checkpointing")
OURS = ("package-fp32", "package-bf16", "package-bf16-checkpointing")
PUBLISHED_BLOCK = 512


def prepare(folder: Path, characters: int) -> None:
    """The extended model, the text and the held-out text that all runs share."""
    from chinese_llama_lab.sources.corpora import load_corpus
    from chinese_llama_lab.sources.models import load_base
    from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
    from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

    model, tokenizer = load_base("smollm2")
    news = load_corpus("peoples-daily").chinese_punctuation()
    train = news.split("train").texts()
    extended = continue_bpe(tokenizer, train, NEW_TOKENS)
    extend_embeddings(model, tokenizer, extended.tokenizer)
    model.save_pretrained(folder / "model")
    extended.tokenizer.save_pretrained(folder / "model")
    chosen, count = [], 0
    for text in train:
        chosen.append(text)
        count += len(text)
        if count >= characters:
            break
    held_out = [text[:400] for text in news.split("held-out").sample(40).texts()]
    english = [text[:600] for text in load_corpus("c4-en").split("held-out").sample(8).texts()]
    texts = {"train": chosen, "zh": held_out, "en": english}
    (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")


def load(folder: Path, dtype: str) -> tuple[Any, Any, dict[str, list[str]]]:
    """What `prepare` wrote."""
    from chinese_llama_lab.sources.models import load_base

    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    model, tokenizer = load_base(str(folder / "model"), dtype=dtype)
    return model, tokenizer, texts


def published(folder: Path, name: str) -> dict[str, Any]:
    """The published configuration on the default Trainer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments, default_data_collator

    rounded = "bf16" in name
    model, tokenizer, texts = load(folder, "bfloat16" if rounded else "float32")
    before = score(model, tokenizer, texts)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
    )
    adapted = get_peft_model(model, config)
    checkpointing = "checkpointing" in name
    if checkpointing:
        adapted.enable_input_require_grads()
    ids = list(chain.from_iterable(tokenizer(text)["input_ids"] for text in texts["train"]))
    total = len(ids) // PUBLISHED_BLOCK * PUBLISHED_BLOCK
    blocks = [ids[at : at + PUBLISHED_BLOCK] for at in range(0, total, PUBLISHED_BLOCK)]
    arguments = TrainingArguments(
        output_dir=str(folder / name),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        learning_rate=2e-4,
        weight_decay=0.01,
        warmup_steps=math.ceil(0.05 * len(blocks) / 8),
        lr_scheduler_type="cosine",
        num_train_epochs=1,
        bf16=rounded,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        seed=0,
    )
    trainer = Trainer(
        model=adapted,
        args=arguments,
        train_dataset=[{"input_ids": b, "labels": b, "attention_mask": [1] * len(b)} for b in blocks],
        data_collator=default_data_collator,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return {
        "tokens": total,
        "characters": sum(map(len, texts["train"])),
        "seconds": seconds,
        "trained_parameters": trained,
        **before,
        **{f"{key}_after": value for key, value in peak_first(adapted, tokenizer, texts).items()},
    }


def package(folder: Path, name: str) -> dict[str, Any]:
    """This package's recipe."""
    from chinese_llama_lab.training.pretrain import pretrain
    from chinese_llama_lab.training.recipe import load_recipe

    precision = name.split("-")[1]
    recipe = load_recipe("smollm2-zh").replace(
        precision=precision,
        gradient_checkpointing="checkpointing" in name,
        replay_share=0.0,
        evaluate_every=0,
        save_every=0,
    )
    model, tokenizer, texts = load(folder, "bfloat16" if precision == "bf16" else "float32")
    before = score(model, tokenizer, texts)
    report = pretrain(model, tokenizer, texts["train"], recipe, folder / name, progress=False)
    return {
        "tokens": report.tokens,
        "characters": report.characters,
        "seconds": report.seconds,
        "trained_parameters": report.trained.trainable,
        **before,
        **{f"{key}_after": value for key, value in peak_first(report.model, tokenizer, texts).items()},
    }


def forward(folder: Path, name: str) -> dict[str, Any]:
    """The forward pass alone, logits included, on blocks of the recipe's size."""
    import torch

    from chinese_llama_lab.training.packing import pack
    from chinese_llama_lab.training.recipe import load_recipe

    recipe = load_recipe("smollm2-zh")
    model, tokenizer, texts = load(folder, "bfloat16" if "bf16" in name else "float32")
    packed = pack(texts["train"], tokenizer, recipe.block)
    size = recipe.micro_batch
    batches = [
        torch.tensor([packed.block_ids(n) for n in range(at, at + size)])
        for at in range(0, min(len(packed), 24 * size) - size + 1, size)
    ]
    best = float("inf")
    with torch.inference_mode():
        for _ in range(3):
            started = time.perf_counter()
            for batch in batches:
                model(input_ids=batch, use_cache=False)
            best = min(best, time.perf_counter() - started)
    tokens = sum(batch.numel() for batch in batches)
    return {"tokens": tokens, "seconds": best}


def score(model: Any, tokenizer: Any, texts: dict[str, list[str]]) -> dict[str, float]:
    """Bits per character of the held-out texts."""
    from chinese_llama_lab.training.metrics import bits_per_character

    return {
        key: round(bits_per_character(model, tokenizer, texts[key]).bits_per_character, 4)
        for key in ("zh", "en")
    }


def peak_first(model: Any, tokenizer: Any, texts: dict[str, list[str]]) -> dict[str, float]:
    """The peak until now in GiB, then the scores of the trained model."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"peak_gib": round(peak, 3), **score(model.get_base_model(), tokenizer, texts)}


def run(folder: Path, name: str) -> dict[str, Any]:
    """One variant in a process of its own."""
    command = [sys.executable, __file__, "--variant", name, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> int:
    """Print the comparison; exit code 1 if a promise does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--characters", type=int, default=30_000, help="of training text")
    parser.add_argument("--save", action="store_true", help="write results/bench_training.csv")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        kind = options.variant.partition("-")[0]
        work = {"published": published, "package": package, "forward": forward}[kind]
        print(json.dumps(work(options.folder, options.variant)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, options.characters)
        found = {name: run(folder, name) for name in (*PEERS, *OURS, "forward-fp32", "forward-bf16")}
    return report(found, options)


def report(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> int:
    """Print and save; 1 if the package is not 1.4 times as fast, in 0.7 of the memory, and no worse."""
    rows = []
    rate = {name: row["tokens"] / row["seconds"] for name, row in found.items()}
    for name in (*PEERS, *OURS):
        row = found[name]
        share = rate[name] / rate["forward-bf16" if "bf16" in name else "forward-fp32"]
        rows.append(
            {
                "variant": name,
                "tokens_per_second": round(rate[name], 1),
                "characters_per_second": round(row["characters"] / row["seconds"], 1),
                "share_of_forward": round(share, 3),
                "peak_gib": row["peak_gib_after"],
                "trained_parameters": row["trained_parameters"],
                "characters": row["characters"],
                "zh_before": row["zh"],
                "zh_after": row["zh_after"],
                "en_before": row["en"],
                "en_after": row["en_after"],
            }
        )
        print(
            f"{name:<30} {rate[name]:6.0f} tokens/s ({share:.0%} of forward)"
            f"  peak {row['peak_gib_after']:.2f} GiB  Chinese {row['zh']:.2f} → {row['zh_after']:.2f}"
            f"  English {row['en']:.2f} → {row['en_after']:.2f} bits per character"
        )
    print(f"forward alone: fp32 {rate['forward-fp32']:.0f}, bf16 {rate['forward-bf16']:.0f} tokens/s")
    holds = True
    for ours, peer in zip(OURS, PEERS, strict=True):
        speed = rate[ours] / rate[peer]
        memory = found[ours]["peak_gib_after"] / found[peer]["peak_gib_after"]
        better = found[ours]["zh_after"] <= found[peer]["zh_after"]
        holds &= speed >= 1.4 and memory <= 0.7 and better
        print(f"{ours} beside {peer}: {speed:.2f} × the tokens/s, {memory:.2f} × the memory")
        row = next(row for row in rows if row["variant"] == ours)
        row |= {"speed_over_published": round(speed, 3), "memory_over_published": round(memory, 3)}
    if options.save:
        from chinese_llama_lab import results
        from chinese_llama_lab.paths import committed_results_dir

        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        columns = list(dict.fromkeys(key for row in rows for key in row))
        results.save(
            "bench_training",
            [{key: row.get(key, "") for key in columns} for row in rows],
            seed=0,
            model="SmolLM2-135M-Instruct",
        )
    return int(not holds)


if __name__ == "__main__":
    raise SystemExit(main())
