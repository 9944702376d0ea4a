"""One more stage of `smollm2-zh`: continued pre-training from the adapter that is shipped.

    python benchmarks/zh_stage.py --steps N [--rate R] [--share S] [--target text|base] [--processes P]
                                  [--start-from ADAPTER] [--stage N] [--folder DIR] [--print]

Makes what it needs first: the longer tokenizer, the extended base (the two commands of the model card), and
two files of held-out text; then runs, or with --print only shows, the `pretrain` command. Stopped (Ctrl-C or
SIGTERM), it saves a checkpoint, and the same line goes on from it. `benchmarks/ship.py` then ships it:

    python benchmarks/ship.py smollm2-zh "DIR/stage-N=peoples-daily,…|c4-en,…" --go-on

A step is 1,024 tokens; 512 took 0.9 s on two cores that are fast at bfloat16, 4.4 s on two that are not.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from chinese_llama_lab.paths import atomic_file, data_dir

SHIPPED = data_dir() / "adapters" / "smollm2-zh"
CORPORA = (*["peoples-daily"] * 4, "reviews", "modern")  # a text named twice is read twice
REPLAY = ("c4-en", "c4-en", "wikipedia-en", "python-docs")
HELD_OUT = {"zh": ("peoples-daily", 60, 400), "en": ("c4-en", 17, 500)}  # text, documents, characters of each
BEFORE = ("continue-bpe", "smollm2", "--corpus", "peoples-daily", "--corpus", "reviews", "--tokens", "5000")


def lab(*arguments: str, processes: int = 1) -> list[str]:
    """The command line of the package in this environment, on several processes if asked."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes), "-m"]
    return [*start, "chinese_llama_lab", *arguments]


def prepare(folder: Path) -> None:
    """Tokenizer, extended base and held-out files, where they are missing."""
    from chinese_llama_lab.sources.corpora import load_corpus

    longer, base = folder / "longer5000", folder / "base5000"
    if not longer.is_dir():
        subprocess.run(lab(*BEFORE, "--out", str(longer)), check=True)
    if not base.is_dir():
        subprocess.run(lab("extend", "smollm2", str(longer), "--out", str(base)), check=True)
    for language, (name, documents, longest) in HELD_OUT.items():
        held = load_corpus(name).chinese_punctuation().split("held-out").sample(documents)
        lines = [text[:longest].replace("\n", " ") for text in held.texts()]
        with atomic_file(folder / f"{language}.txt") as path:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def command(folder: Path, stage: int, options: argparse.Namespace) -> list[str]:
    """The `pretrain` command of a stage."""
    settings = {
        "steps": options.steps,
        "seed": stage,
        "rank": 16,
        "alpha": 32,
        "replay_share": options.share,
        "replay_target": f'"{options.target}"',
        "bos": "true",
        "schedule": '"linear"',
        "learning_rate": options.rate,
        "warmup_ratio": 0.01,
        "evaluate_every": 300,
        "save_every": 300,
        "log_every": 50,
        "micro_batch": 4,
        "batch": 4 * options.processes,
    }
    out = folder / f"stage-{stage}"
    return lab(
        *("pretrain", "--model", str(folder / "base5000")),
        *("--start-from", str(options.start_from), "--out", str(out)),
        *(part for name in CORPORA for part in ("--corpus", name)),
        *(part for name in REPLAY for part in ("--replay-corpus", name)),
        *(
            part
            for language in HELD_OUT
            for part in (f"--held-out-{language}", str(folder / f"{language}.txt"))
        ),
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
        *(["--resume"] if (out / "run.json").is_file() else []),
        processes=options.processes,
    )


def main() -> int:
    """Run the stage, or show its command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rate", type=float, default=7e-4, help="learning rate (default: 7e-4)")
    parser.add_argument("--share", type=float, default=0.2, help="of English (default: 0.2)")
    parser.add_argument(
        "--target", choices=("text", "base"), default="text", help="of the English (default: text)"
    )
    parser.add_argument("--processes", type=int, default=1, help="each of 1,024 tokens a step")
    parser.add_argument("--start-from", type=Path, default=SHIPPED, help="default: the shipped adapter")
    parser.add_argument("--stage", type=int, help="its number and seed (default: the next)")
    parser.add_argument("--folder", type=Path, default=Path("build/zh"), help="default: build/zh")
    parser.add_argument("--print", action="store_true", help="only show the command")
    options = parser.parse_args()
    stages = json.loads((SHIPPED / "stages.json").read_text(encoding="utf-8"))
    line = command(options.folder, options.stage or len(stages) + 1, options)
    print(shlex.join(line), flush=True)
    if options.print:
        return 0
    prepare(options.folder)
    return subprocess.run(line, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
