"""Measured peak memory of one run on the CPU, each in a process of its own, and the estimate of the same run.

What is measured is resident memory (RSS) above a level. The level is taken when libraries are imported and a
model of the same layers, but only one of them, has done the same work: Python, torch's code and the kernels
compiled for these shapes are no part of what a model needs. The kernel's high-water mark is set back twice,
before the model is loaded and before it works: loading needs more than running, since a float32 file is read
to become bfloat16 or NF4. A float32 model is not read but mapped from its file: its pages count as they are
touched.

The C library keeps freed memory for later, and how much depends on the order of all that was freed before.
Here blocks above 8 KiB have pages of their own, which go back as they are freed (`MALLOC_MMAP_THRESHOLD_`),
and holes in the heap are closed before the level is taken, so that no tensor hides in memory that was counted
already, or leaves some behind. That makes the high-water mark the sum of what is alive, to about 10 MB.
What the estimate leaves out is what a process holds beside tensors: Python's objects and autograd's nodes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from typing import Any

from chinese_llama_lab.inference.errors import EstimateError
from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.inference.memory import GB, GIB, Memory
from chinese_llama_lab.inference.settings import MODULES

TOLERATED = 0.10  # of the estimate's error
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "nf4": "bfloat16", "nf4-double": "bfloat16"}
_TRAINERS = ("package", "plain")
OWN_PAGES = 8192  # bytes from which a block is no part of the heap
_WORKER = "chinese_llama_lab.inference.measured_worker"


@dataclass(frozen=True)
class Case:
    """One run to measure.

    Attributes:
        task: `inference` (read `block` tokens, write three) or `lora` (three steps; over NF4 it is QLoRA).
        kind: `fp32`, `bf16`, or `nf4`, `nf4-double` with bfloat16 arithmetic.
        block, batch: tokens a sequence, sequences at once.
        gradient_checkpointing: of training.
        trainer: `package`: this package's `pretrain` with the recipe smollm2-zh (LoRA of rank 16, lean layers
            and loss); `plain`: peft's model as it is, transformers' own loss and torch's AdamW.
        model: a folder, or a name of `load_base`.
    """

    task: str
    kind: str
    block: int = 512
    batch: int = 1
    gradient_checkpointing: bool = False
    trainer: str = "package"
    model: str = "smollm2"

    def __post_init__(self) -> None:
        for name, known in (("task", ("inference", "lora")), ("kind", (*_DTYPES,)), ("trainer", _TRAINERS)):
            if getattr(self, name) not in known:
                raise EstimateError(
                    f"{name} = {getattr(self, name)!r}", where=name, remedy=f"use one of {', '.join(known)}"
                )
        for name in ("block", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise EstimateError(f"{name} = {value!r}", where=name, remedy="use a whole number above 0")

    @property
    def dtype(self) -> str:
        """Of the arithmetic and of what is not quantized."""
        return _DTYPES[self.kind]

    def options(self) -> dict[str, Any]:
        """The options of `estimate` that say the same run; nothing of CUDA is on a CPU."""
        options: dict[str, Any] = {
            "dtype": self.dtype,
            "quantization": self.kind if self.kind.startswith("nf4") else "none",
            "block": self.block,
            "batch": self.batch,
            "cuda_context": 0.0,
        }
        if self.task == "lora":
            options |= {
                "rank": 16,
                "targets": MODULES,
                "gradient_checkpointing": self.gradient_checkpointing,
                "gradient_accumulation": False,  # one batch a step, gradients deleted after it
            }
            if self.trainer == "package":
                options |= {"loss": "lean", "layers": "lean", "masked": True}
        return options


@dataclass(frozen=True)
class Measured:
    """What one process measured, in bytes.

    Attributes:
        case: the run.
        level: resident memory with libraries warm and no model.
        loading: most above the level while the model was loaded. loaded: above it afterwards.
        running: most above the level while the model worked: what `estimate` is about.
    """

    case: Case
    level: int
    loading: int
    loaded: int
    running: int

    @property
    def estimate(self) -> Memory:
        """The estimate of the same run, from the model's shape alone."""
        from chinese_llama_lab.inference.shapes import SHAPES, shape_of

        model = self.case.model
        return estimate(SHAPES.get(model) or shape_of(model), self.case.task, **self.case.options())

    @property
    def error(self) -> float:
        """(estimate − measured) / measured."""
        return residual(self.estimate.total, self.running)

    def row(self) -> dict[str, Any]:
        """For a table or a CSV; the unit is in each name."""
        case, memory = self.case, self.estimate
        return {
            "task": "qlora" if case.task == "lora" and case.kind.startswith("nf4") else case.task,
            "kind": case.kind,
            "trainer": case.trainer if case.task == "lora" else "",
            "batch": case.batch,
            "block": case.block,
            "gradient_checkpointing": case.gradient_checkpointing,
            "measured_bytes": self.running,
            "estimate_bytes": round(memory.total),
            "measured_gb": round(self.running / GB, 4),
            "estimate_gb": round(memory.gb, 4),
            "measured_gib": round(self.running / GIB, 4),
            "estimate_gib": round(memory.gib, 4),
            "error": round(self.error, 4),
            "most_while": memory.moment,
            "loading_gb": round(self.loading / GB, 4),
            "loaded_gb": round(self.loaded / GB, 4),
            "level_gb": round(self.level / GB, 4),
        }


def residual(estimated: float, measured: float) -> float:
    """(estimated − measured) / measured.

    Raises: EstimateError: nothing was measured.
    """
    if not measured > 0:
        raise EstimateError(f"measured {measured} bytes", where="measured", remedy="measure again")
    return estimated / measured - 1


def measure(task: str, kind: str, *, timeout: float = 600, **options: Any) -> Measured:
    """Run one case in a fresh process and return what it measured.

    Args:
        task, kind, options: of `Case`.
        timeout: seconds until the process is stopped.

    Raises: EstimateError: an option that is not known; a system without `/proc` (not Linux); or the process
        failed, ran out of memory or out of time: with the end of what it said.
    """
    known = [field.name for field in fields(Case)]
    for name in options:
        if name not in known:
            raise EstimateError(
                f"there is no option {name!r}", where="options", remedy=f"known: {', '.join(known)}"
            )
    case = Case(task, kind, **options)
    said = run_worker(_WORKER, asdict(case), timeout=timeout, where=f"{task}, {kind}")
    try:
        return Measured(case, **{name: int(said[name]) for name in ("level", "loading", "loaded", "running")})
    except (KeyError, TypeError, ValueError) as error:
        raise EstimateError(
            f"the process did not say what was asked: {said!r}", where=f"{task}, {kind}"
        ) from error


def run_worker(module: str, what: dict[str, Any], *, timeout: float, where: str) -> dict[str, Any]:
    """Run `python -m module JSON`, and read the JSON object that is its last line.

    Raises: EstimateError: see `measure`.
    """
    if not sys.platform.startswith("linux"):
        raise EstimateError(
            f"peak memory is read from /proc, which {sys.platform} does not have",
            where=where,
            remedy="measure on Linux; results/bench_memory.csv holds figures of such a machine",
        )
    command = [sys.executable, "-m", module, json.dumps(what)]
    kept = {"MALLOC_MMAP_THRESHOLD_": str(OWN_PAGES), "MALLOC_TRIM_THRESHOLD_": str(OWN_PAGES)}
    kept["MALLOC_ARENA_MAX"] = "1"  # one heap for all threads
    environment = {**os.environ, **kept, "PYTHONUNBUFFERED": "1"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EstimateError(
            f"the process took more than {timeout:g} s", where=where, remedy="give a longer timeout"
        ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if done.returncode == -9:
            last = "it was killed, as the system does when memory runs out"
        raise EstimateError(
            f"the process ended with {done.returncode}: {last}",
            where=where,
            remedy="close other programs if memory ran out; else run it by hand: "
            + f"python -m {module} '{json.dumps(what)}'",
        )
    lines = done.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise EstimateError(
            f"the process printed no result, but {lines[-1:]!r}", where=where, remedy="report this"
        )
    return found
