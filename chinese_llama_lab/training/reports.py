"""What a run says about itself: one JSON line as it goes, one object at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from chinese_llama_lab.machine import GIB
from chinese_llama_lab.paths import atomic_file
from chinese_llama_lab.training.lora import Trained

LOG = "log.jsonl"
Watcher = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class RunReport:
    """The end of a run.

    Attributes:
        model: the trained peft model; its `get_base_model()` generates and is scored.
        adapter: folder with the adapter and the tokenizer. out: the run's folder.
        rows: what `log.jsonl` holds: rows with `loss` every few steps, rows with `zh_bits` and `en_bits`
            (bits per character) at evaluations.
        trained: what was trained. steps, tokens, characters: this run's, those before a resume included.
        seconds: of training and its logging in this process. peak_memory_gib: resident (on a GPU: allocated).
        data: one line about the data. refused: checkpoints that were damaged. resumed_from: step, or None.
    """

    model: Any
    adapter: Path
    out: Path
    rows: list[dict[str, Any]]
    trained: Trained
    steps: int
    tokens: int
    characters: int
    seconds: float
    peak_memory_gib: float
    data: str
    refused: list[str] = field(default_factory=list)
    resumed_from: int | None = None

    @property
    def losses(self) -> list[float]:
        """The logged losses (nats a token), in order."""
        return [row["loss"] for row in self.rows if "loss" in row]

    def evaluations(self, key: str = "zh_bits") -> list[tuple[int, float]]:
        """(step, bits per character) of the held-out text, in order."""
        return [(row["step"], row[key]) for row in self.rows if key in row]

    def table(self) -> list[dict[str, Any]]:
        """All rows with the same columns (empty where a row has no value), for `results.save`."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        return [{key: row.get(key, "") for key in columns} for row in self.rows]

    def __repr__(self) -> str:
        lines = [
            f"{self.steps} steps, {self.tokens:,} tokens, {self.characters:,} characters",
            f"this process: {self.seconds:.0f} s, at most {self.peak_memory_gib:.2f} GiB",
            repr(self.trained),
        ]
        lines.append(self.data)
        for key, name in (("zh_bits", "held-out Chinese"), ("en_bits", "held-out English")):
            points = self.evaluations(key)
            if points:
                lines.append(f"{name}: {points[0][1]:.3f} → {points[-1][1]:.3f} bits per character")
        return "\n".join(lines)


class RunLog:
    """`log.jsonl` of a run: rows are appended; on resume those after the checkpoint are removed."""

    def __init__(self, out: Path, *, write: bool, watch: Watcher | None = None) -> None:
        self.path = out / LOG
        self.rows: list[dict[str, Any]] = []
        self._write = write
        self._watch = watch

    def rewind(self, step: int) -> None:
        """Keep the rows up to a step."""
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # the line that a kill cut in two
                    continue
                if isinstance(row, dict) and row.get("step", step + 1) <= step:
                    self.rows.append(row)
        if self._write:
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            with atomic_file(self.path) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row and show it to the watcher."""
        self.rows.append(dict(row))
        if not self._write:
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(row)) + "\n")
        if self._watch is not None:
            self._watch(dict(row))


class Meter:
    """Seconds, and the highest memory seen."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._paused = 0.0
        self.peak = 0.0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    @property
    def seconds(self) -> float:
        """Since the start, pauses taken out."""
        return time.perf_counter() - self._started - self._paused

    def pause(self, seconds: float) -> None:
        """Take out time that was spent on something else, such as evaluation."""
        self._paused += seconds

    def look(self) -> float:
        """Look at the memory; returns the peak in GiB."""
        if torch.cuda.is_available():
            self.peak = torch.cuda.max_memory_allocated() / GIB
        else:
            import psutil

            self.peak = max(self.peak, psutil.Process().memory_info().rss / GIB)
        return self.peak
