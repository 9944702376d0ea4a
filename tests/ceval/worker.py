"""Scores in a process of its own: `python -m tests.ceval.worker FOLDER [resume] [torn=N]`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from chinese_llama_lab.ceval import runs
from chinese_llama_lab.ceval.score import score
from tests.ceval.conftest import make_model, make_tokenizer
from tests.ceval.test_score import DEV, MIXED


def main() -> None:
    """Score; with `torn=N` write N batches, then half a line, then die without a word."""
    torch.set_num_threads(1)
    out, flags = Path(sys.argv[1]), sys.argv[2:]
    left = next((int(flag[5:]) for flag in flags if flag.startswith("torn=")), None)
    write = runs.RunFolder.write

    def torn(self, rows):
        nonlocal left
        if left == 0 and self.processes.rank == self.processes.count - 1:
            half = runs._line(rows[0])[:20]
            with self._mine.open("ab") as stream:
                stream.write(half)
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        write(self, rows)

    if left is not None:
        runs.RunFolder.write = torn
    tokenizer = make_tokenizer(("Ġ A", "Ġ B", "Ġ C", "Ġ D"))
    model = make_model(len(tokenizer))
    run = score(
        model, tokenizer, MIXED, dev=DEV, shots=2, batch=2, out=out, resume="resume" in flags, progress=False
    )
    sys.stdout.write(f"scored {len(run.rows)}\n")  # at once: two processes share the pipe


if __name__ == "__main__":
    main()
