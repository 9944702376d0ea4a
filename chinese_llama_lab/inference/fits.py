"""What fits on which GPU, how long a sequence may be, and which knob helps most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.inference.errors import EstimateError
from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.inference.memory import GIB, Memory
from chinese_llama_lab.inference.settings import settings
from chinese_llama_lab.inference.shapes import shape_of
from chinese_llama_lab.inference.stored import with_stored

GPUS = (4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 80)  # as sold; in GiB, whatever the box says
ASKED = (6, 8, 12, 16, 24, 80)
MARGIN = 0.1  # most estimates of the residual table are up to so much too low: nearer the limit is a risk
_LONGEST = 2**20
_TRAINING: dict[str, Any] = {"block": 512, "gradient_checkpointing": True}
SETUPS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "inference, bf16, 2,048 tokens": ("inference", {"block": 2048}),
    "inference, int8, 2,048 tokens": ("inference", {"block": 2048, "quantization": "int8"}),
    "inference, NF4, 2,048 tokens": ("inference", {"block": 2048, "quantization": "nf4"}),
    "QLoRA r 8, NF4 double, 1 × 512": ("qlora", _TRAINING),
    "LoRA r 8, bf16, 1 × 512": ("lora", _TRAINING),
    "LoRA r 8 + embedding and head whole, 1 × 512": ("lora", {**_TRAINING, "embeddings": "published"}),
    "full, bf16 and 8-bit Adam, 1 × 512": ("full", {**_TRAINING, "optimizer_dtype": "int8"}),
    "full, bf16 and float32 Adam and master, 1 × 512": ("full", {**_TRAINING, "master_weights": True}),
}


def gpu_bytes(gpu: int | float | str) -> float:
    """Bytes of a GPU that is sold with `gpu` "GB", which are GiB.

    Args:
        gpu: one of `GPUS`, as a number or as text such as `24` or `24 GB`.

    Raises: EstimateError: no GPU is sold with so much, as far as is known here.
    """
    text = str(gpu).strip().lower().removesuffix("gib").removesuffix("gb").strip()
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if size not in GPUS or isinstance(gpu, bool):
        raise EstimateError(
            f"no GPU with {gpu} GB is known here",
            where="gpu",
            remedy=f"use one of {', '.join(map(str, GPUS))}; or compare `estimate(…).gib` with yours",
        )
    return size * GIB


def verdict(memory: Memory, gpu: int | float | str) -> str:
    """`fits`; `tight`, less than 10 % below the limit; or `no`."""
    share = memory.total / gpu_bytes(gpu)
    return "no" if share > 1 else "tight" if share > 1 - MARGIN else "fits"


@dataclass(frozen=True)
class Fits:
    """What fits where.

    Attributes:
        name: of the model. gpus: sizes in GiB. rows: setup → (memory, verdict a GPU).
    """

    name: str
    gpus: tuple[int | float | str, ...]
    rows: Mapping[str, tuple[Memory, tuple[str, ...]]]

    def __repr__(self) -> str:
        wide = max(len(name) for name in self.rows)
        head = "".join(f"{f'{gpu} GiB':>9}" for gpu in self.gpus)
        lines = [self.name, f"{'':{wide}}  {'needs GB':>9}{'needs GiB':>11}{head}"]
        for name, (memory, verdicts) in self.rows.items():
            cells = "".join(f"{text:>9}" for text in verdicts)
            lines.append(f"{name:{wide}}  {memory.gb:9.2f}{memory.gib:11.2f}{cells}")
        return "\n".join(lines)


def fits(
    source: Any,
    gpus: int | float | str | Sequence[int | float | str] = ASKED,
    *,
    task: str | None = None,
    **options: Any,
) -> Fits:
    """The setups of `SETUPS` on each GPU.

    Args:
        source: a model, as for `estimate`. A quantized folder counts as the model it was made from: the
            setups say how weights are stored.
        gpus: one size, or several.
        task: `inference`, `lora`, `qlora` or `full`: its setups alone; None for those of all tasks.
        options: change every setup, such as `vocabulary=49953` or `block=1024`. A setup that cannot have one
            of them (full training with `quantization`) is left out.

    Raises: EstimateError: an unknown GPU size, task, model or option.
    """
    sizes = (gpus,) if isinstance(gpus, (int, float, str)) else tuple(gpus)
    for size in sizes:
        gpu_bytes(size)
    tasks = tuple(dict.fromkeys(kind for kind, _ in SETUPS.values()))
    if task is not None and task not in tasks:
        raise EstimateError(
            f"task = {task!r}", where="task", remedy=f"use one of {', '.join(tasks)}; or leave it out for all"
        )
    rows = {}
    refused: EstimateError | None = None
    for name, (kind, own) in SETUPS.items():
        if task not in (None, kind):
            continue
        stored = {"quantization": "nf4-double" if kind == "qlora" else "none"}
        try:
            memory = estimate(source, kind, **{**stored, **own, **options})
        except EstimateError as error:
            refused = error
            continue
        rows[name] = (memory, tuple(verdict(memory, size) for size in sizes))
    if not rows and refused is not None:
        raise refused
    return Fits(shape_of(source).name, sizes, rows)


def longest_block(source: Any, gpu: int | float | str, task: str = "inference", **options: Any) -> int:
    """The longest sequence, in tokens, whose estimate is no more than the GPU has; 0 if none is.

    Raises: EstimateError: as `estimate` and `gpu_bytes`.
    """
    limit = gpu_bytes(gpu)
    options.pop("block", None)
    low, high = 0, _LONGEST
    while low < high:
        middle = (low + high + 1) // 2
        if estimate(source, task, block=middle, **options).total <= limit:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True)
class Knob:
    """One change and what it saves.

    Attributes:
        change: option and value. memory: with it. saved: bytes.
    """

    change: str
    memory: Memory
    saved: float

    def __repr__(self) -> str:
        then = f"{self.memory.gb:.2f} GB ({self.memory.gib:.2f} GiB)"
        return f"{self.change}: {self.saved / 1e9:.2f} GB less, {then}"


def knobs(source: Any, task: str = "inference", **options: Any) -> list[Knob]:
    """Single changes that lower the estimate, the most helpful first.

    Raises: EstimateError: as `estimate`.
    """
    options = with_stored(source, options)
    s = settings(task, **options)
    now = estimate(source, task, **options)
    tries: list[tuple[str, dict[str, Any]]] = []
    if task != "full" and not s.quantization.endswith("-double"):
        for kind in ("int8", "nf4", "nf4-double"):
            tries.append((task, {"quantization": kind}))
    if s.block > 1:
        tries.append((task, {"block": s.block // 2}))
    if s.batch > 1:
        tries.append((task, {"batch": s.batch // 2}))
    if s.attention == "eager":
        tries.append((task, {"attention": "flash"}))
    if task == "inference":
        tries += [(task, {"kv_dtype": "float8"}), (task, {"all_logits": False}), (task, {"adapter": False})]
    else:
        tries += [(task, {"gradient_checkpointing": True}), (task, {"loss": "lean"})]
        tries.append((task, {"optimizer_dtype": "int8"}))
        tries.append((task, {"master_weights": False}))
    if s.adapted:
        tries += [(task, {"rank": s.rank // 2})] if s.rank > 1 else []
        tries += [(task, {"targets": ("q_proj", "v_proj")}), (task, {"embeddings": "frozen"})]
        if s.embeddings == "published" and s.new_tokens:
            tries.append((task, {"embeddings": "new-rows"}))
    if task == "full":
        tries += [("lora", {}), ("qlora", {})]
    found = []
    for other, change in tries:
        if task == "qlora" and change.get("quantization") == "int8":
            continue
        kept = {name: value for name, value in options.items() if other == task or name != "quantization"}
        try:
            memory = estimate(source, other, **{**kept, **change})
        except EstimateError:  # a change that goes with another option alone
            continue
        text = ", ".join(f"{key} = {value}" for key, value in change.items()) or f"task = {other}"
        if memory.total < now.total:
            found.append(Knob(text, memory, now.total - memory.total))
    return sorted(found, key=lambda knob: -knob.saved)
