"""Where the time of a decoding step goes, without a profiler that slows what it measures.

Four parts that add up to the step:

- **memory**: the bytes of the step at the measured bandwidth: the limit
- **products**: what matrix products take beyond that. Measured by taking them away: the same step again,
  while each linear layer returns zeros that were allocated before; the difference is the products' time
- **operators**: small operators (norms, rotation, attention, cache, argmax), counted by torch's dispatcher in
  the step without products, times what the cheapest operator on one token's vector takes, called from Python.
  So it is a floor: operators with more to do, such as attention over a long context, show in the last part
- **Python**: the rest: modules, cache objects, masks, checks; and what operators take above the floor

`products` comes out negative where the model is read faster than the tensor that the bandwidth came from.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from chinese_llama_lab.inference.bandwidth import SpeedError, StepBytes, seconds, step_bytes, synchronize
from chinese_llama_lab.inference.decode import FastDecoder, unwrapped
from chinese_llama_lab.inference.engines import Loop, engine

_CALLS = 200  # of the cheapest operator, timed together


@dataclass(frozen=True)
class StepTime:
    """Seconds of one decoding step, by part; the parts add up to `total`.

    Attributes:
        engine: how it was decoded. total: of a whole step. without_products: of one without matrix products.
        read: bytes of the step. bytes_per_second: measured bandwidth.
        operator_calls: in a step without products. operator_floor: seconds of the cheapest.
    """

    engine: str
    total: float
    without_products: float
    read: StepBytes
    bytes_per_second: float
    operator_calls: int
    operator_floor: float

    @property
    def memory(self) -> float:
        return self.read.total / self.bytes_per_second

    @property
    def products(self) -> float:
        return self.total - self.without_products - self.memory

    @property
    def operators(self) -> float:
        return self.operator_calls * self.operator_floor

    @property
    def python(self) -> float:
        return self.without_products - self.operators

    @property
    def share(self) -> float:
        """Of the limit that memory sets: 1 is the limit itself."""
        return self.memory / self.total

    def row(self) -> dict[str, Any]:
        """For `results.table` and `results.save`; times in milliseconds."""
        return {
            "engine": self.engine,
            "batch": self.read.batch,
            "step_ms": round(1e3 * self.total, 3),
            "memory_ms": round(1e3 * self.memory, 3),
            "products_ms": round(1e3 * self.products, 3),
            "operators_ms": round(1e3 * self.operators, 3),
            "python_ms": round(1e3 * self.python, 3),
            "operator_calls": self.operator_calls,
            "share_of_limit": round(self.share, 3),
        }

    def __repr__(self) -> str:
        return (
            f"{self.engine}: {1e3 * self.total:.2f} ms a step = memory {1e3 * self.memory:.2f} + products "
            f"{1e3 * self.products:.2f} + {self.operator_calls} operators {1e3 * self.operators:.2f} + "
            f"Python {1e3 * self.python:.2f}; {self.share:.0%} of the limit"
        )


@contextmanager
def without_products(model: Any) -> Iterator[int]:
    """Within this block every linear layer of `model` returns zeros; yields how many there are.

    Raises: SpeedError: a model without linear layers.
    """
    from transformers.pytorch_utils import Conv1D

    layers = [m for m in unwrapped(model).modules() if isinstance(m, (torch.nn.Linear, Conv1D))]
    if not layers:
        raise SpeedError("the model has no linear layers", where=type(model).__name__)
    before = [module.__dict__.get("forward") for module in layers]
    kept: dict[tuple[Any, ...], torch.Tensor] = {}

    def replacement(columns: int) -> Any:
        def forward(x: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
            key = (*x.shape[:-1], columns, x.dtype, x.device)
            if key not in kept:
                kept[key] = torch.zeros(*x.shape[:-1], columns, dtype=x.dtype, device=x.device)
            return kept[key]

        return forward

    try:
        for module in layers:
            columns = module.nf if isinstance(module, Conv1D) else module.out_features
            module.__dict__["forward"] = replacement(columns)
        yield len(layers)
    finally:
        for module, own in zip(layers, before, strict=True):
            del module.__dict__["forward"]
            if own is not None:
                module.__dict__["forward"] = own


class _Counter(TorchDispatchMode):
    # Looks at a tensor's shape go to the dispatcher too where a mode is on; views and copies count.
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))


def operator_floor(width: int, dtype: torch.dtype, device: Any) -> float:
    """Seconds of the cheapest operator on a vector of `width` values, called from Python."""
    x = torch.zeros(1, width, dtype=dtype, device=device)

    def work() -> None:
        for _ in range(_CALLS):
            torch.neg(x)

    with torch.inference_mode():
        return min(seconds(work, 5, device)) / _CALLS


def step_seconds(chosen: Loop | FastDecoder, ids: torch.Tensor, steps: int) -> float:
    """Median seconds of a step; each step is timed by itself (and synchronised on a GPU)."""
    tokens = chosen.start(ids, steps + 1)
    tokens = chosen.step(tokens)  # the first one allocates
    found = []
    for _ in range(steps - 1):
        synchronize(ids.device)
        started = time.perf_counter()
        tokens = chosen.step(tokens)
        synchronize(ids.device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def step_time(
    model: Any, ids: torch.Tensor, *, bytes_per_second: float, name: str = "forward", steps: int = 24
) -> StepTime:
    """Measure the parts of a decoding step.

    Args:
        model: any causal language model of transformers; for `fast` a LLaMA one.
        ids: prompts [batch, tokens].
        bytes_per_second: of `memory_bandwidth`.
        name: an engine with steps: forward, static or fast.
        steps: how many are timed; the median counts.

    Raises: SpeedError: fewer than 2 steps, an unknown engine, or more tokens than the model's context.
    """
    if steps < 2 or bytes_per_second <= 0:
        raise SpeedError(
            f"steps is {steps} and bytes_per_second {bytes_per_second}",
            remedy="use 2 steps or more and a measured bandwidth",
        )
    if name == "compiled":
        raise SpeedError(
            "what is compiled has no layers left to take products out of",
            remedy="use forward, static or fast",
        )
    inner = unwrapped(model)
    chosen = engine(inner, name)
    total = step_seconds(chosen, ids, steps)
    with without_products(inner):
        bare = step_seconds(chosen, ids, steps)
        tokens = chosen.start(ids, 2)
        counter = _Counter()
        with counter:
            chosen.step(tokens)
    table = inner.get_input_embeddings().weight
    return StepTime(
        name,
        total,
        bare,
        step_bytes(inner, context=ids.shape[1] + steps // 2, batch=len(ids)),
        bytes_per_second,
        counter.calls,
        operator_floor(table.shape[1], table.dtype, ids.device),
    )
