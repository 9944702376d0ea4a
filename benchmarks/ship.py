"""Turn finished runs into what is shipped under `data/adapters/`: small, without paths, with its log.

    python benchmarks/ship.py NAME RUN=CORPUS,…|REPLAY,… … [--adapter FOLDER] [--tokenizer FOLDER]
                               [--go-on]

NAME is `smollm2-zh` or `smollm2-zh-instruct`; the runs are the stages of its training in order, each started
from the one before, with the names of what they read. What is shipped is the adapter of the last (or
--adapter, one of its checkpoints or a mean of `zh_average.py`), in bfloat16; the tokenizer, where the model
has new tokens; `run.json` of the last stage; `stages.json`, what each stage read, its recipe and how far it
went; all logs as one; and `check.json`, the bits per character that the model must have again when it is
rebuilt. The model card is written by hand. With --go-on the stages and the log that are shipped come first,
and the tokenizer stays: the first of the runs was started from the adapter that is shipped.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from chinese_llama_lab.paths import atomic_folder, data_dir, write_json
from chinese_llama_lab.shipped import SHIPPED
from chinese_llama_lab.training.checkpoints import checkpoint_step, checkpoints

WEIGHTS, SCALES = "adapter_model.safetensors", "scales.json"
BY_HAND = ("README.md",)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CHECKED: dict[str, Any] = {"corpus": "peoples-daily", "documents": 40, "cut": 400}


def log_of(run: Path, stage: int, steps: int) -> list[dict[str, Any]]:
    """Rows of a run's log up to a step, with the number of the stage."""
    rows = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [{"stage": stage, **row} for row in rows if row["step"] <= steps]


def last_step(run: Path) -> int:
    """The step of the newest checkpoint; the log's last, where the run came to its end."""
    kept = checkpoints(run)
    if (run / "adapter").is_dir() or not kept:
        return int(json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"])
    return checkpoint_step(kept[-1])


def shipped(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Stages and rows of the log of what is shipped."""
    stages = json.loads((folder / "stages.json").read_text(encoding="utf-8"))
    rows = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return stages, list(rows)


def write(
    folder: Path,
    name: str,
    runs: list[Path],
    read: list[str],
    adapter: Path,
    before: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    """All files but those that are written by hand, and but the check."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / WEIGHTS)
    save_file({key: value.to(torch.bfloat16) for key, value in tensors.items()}, folder / WEIGHTS)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = SHIPPED[name]
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(runs[-1] / "run.json", folder / "run.json")
    if (adapter / SCALES).is_file():  # what `zh_average.py` multiplied the blocks with
        shutil.copyfile(adapter / SCALES, folder / SCALES)
    steps = [last_step(run) for run in runs[:-1]]
    number = adapter.name.removeprefix("step-")
    steps.append(int(number) if number.isdigit() else last_step(runs[-1]))
    stages, rows = before
    for stage, (run, done, names) in enumerate(zip(runs, steps, read, strict=True), len(stages) + 1):
        about = json.loads((run / "run.json").read_text(encoding="utf-8"))
        own, _, replayed = names.partition("|")
        stages.append(
            {
                "stage": stage,
                "steps_done": done,
                "corpora": own.split(","),
                "replay": replayed.split(",") if replayed else [],
                **{k: about.get(k) for k in ("starts_from", "data", "recipe")},
            }
        )
        rows += log_of(run, stage, done)
    (folder / "stages.json").write_text(json.dumps(stages, indent=1) + "\n", encoding="utf-8")
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def check(name: str) -> dict[str, Any]:
    """Bits per character of some held-out news, of the model as it is rebuilt from its adapter."""
    from chinese_llama_lab.sources.corpora import load_corpus
    from chinese_llama_lab.sources.models import load_base
    from chinese_llama_lab.training.metrics import bits_per_character

    news = load_corpus(CHECKED["corpus"]).chinese_punctuation().split("held-out")
    texts = [text[: CHECKED["cut"]] for text in news.sample(CHECKED["documents"]).texts()]
    model, tokenizer = load_base(name)
    scored = bits_per_character(model, tokenizer, texts)
    return {**CHECKED, "characters": scored.characters, "bits_per_character": scored.bits_per_character}


def main() -> int:
    """Write the folder anew and print what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=list(SHIPPED))
    parser.add_argument("runs", nargs="+", metavar="RUN=CORPUS,…|REPLAY,…")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="a checkpoint of the last run")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="of the extended base")
    parser.add_argument("--go-on", action="store_true", help="after the stages that are shipped")
    options = parser.parse_args()
    target = data_dir() / "adapters" / options.name
    runs = [Path(given.partition("=")[0]) for given in options.runs]
    read = [given.partition("=")[2] for given in options.runs]
    adapter = options.adapter or runs[-1] / "adapter"
    kept = BY_HAND if options.tokenizer or not options.go_on else (*BY_HAND, *TOKENIZER)
    before = shipped(target) if options.go_on else ([], [])
    with atomic_folder(target) as folder:
        write(folder, options.name, runs, read, adapter, before)
        if options.tokenizer is not None:
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(options.tokenizer).save_pretrained(folder)
        for name in kept:
            if (target / name).is_file():
                shutil.copyfile(target / name, folder / name)
        if target.is_dir():  # only now: what is shipped stays if anything above fails
            shutil.rmtree(target)
    write_json(target / "check.json", check(options.name))
    for path in sorted(target.iterdir()):
        print(f"{path.stat().st_size / 1e6:8.3f} MB  {path.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
