"""How fast memory is read, how many bytes a decoded token reads, and the limit that follows (the roofline).

One decoding step reads every weight once, for one token or for a batch of them, and the keys and values of
all tokens before. It multiplies each weight about once a token, so at small batches it waits for memory:
`bandwidth / bytes` steps a second is what the hardware allows, whatever the software (arXiv 2402.16363).
At large batches arithmetic is the limit instead, and the share of this one falls.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from chinese_llama_lab.errors import LabError

_COLUMNS = 4096


class SpeedError(LabError):
    """A model, a size or an option that speed cannot be measured with."""


@dataclass(frozen=True)
class Bandwidth:
    """Measured reading speed, in bytes per second (1 GB/s is 10^9).

    Attributes:
        bytes_per_second: the median of the fastest way to read. slowest, fastest: of its repeats.
        way: which that was: a sum, or a product with a vector in float32 or bfloat16.
        size: bytes of the tensor. threads: of torch. device: such as `cpu`.
    """

    bytes_per_second: float
    slowest: float
    fastest: float
    way: str
    size: int
    threads: int
    device: str

    def __repr__(self) -> str:
        return (
            f"{self.bytes_per_second / 1e9:.1f} GB/s ({self.slowest / 1e9:.1f} to {self.fastest / 1e9:.1f}), "
            f"reading {self.size / 2**20:.0f} MiB by {self.way} on {self.device}, {self.threads} threads"
        )


@dataclass(frozen=True)
class StepBytes:
    """Bytes that one decoding step reads.

    Attributes:
        weights: of all layers, norms and the head as they are stored, scales of quantized ones included,
            and one row a sequence of each embedding table.
        cache: keys and values of the tokens before, of all sequences.
        batch: sequences, so tokens a step.
    """

    weights: int
    cache: int
    batch: int

    @property
    def total(self) -> int:
        return self.weights + self.cache

    def limit(self, bytes_per_second: float) -> float:
        """Tokens per second, of all sequences together, that this reading speed allows."""
        return self.batch * bytes_per_second / self.total


def synchronize(device: Any) -> None:
    """Wait until a GPU has done what it was given; nothing on a processor."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], repeats: int, device: Any) -> list[float]:
    """Seconds of each of `repeats` calls, after one that is not counted."""
    work()
    found = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - started)
    return found


def memory_bandwidth(size: int = 2**30, *, device: str = "cpu", repeats: int = 7) -> Bandwidth:
    """Measure how fast a tensor of `size` bytes is read, with as many threads as torch uses.

    The tensor is read in three ways (a sum, a product with a vector in float32 and in bfloat16), and the
    fastest counts, because a slow kernel says nothing of the memory. A tensor that fits into the processor's
    cache is read from there: for a model's limit give the bytes of its step, which a cache would help alike.

    Raises: SpeedError: fewer than 2^20 bytes, or no repeats.
    """
    import torch

    if size < 2**20 or repeats < 1:
        raise SpeedError(
            f"the size is {size} bytes and repeats {repeats}",
            where="memory_bandwidth",
            remedy="read 2^20 bytes or more, once or more",
        )
    place = torch.device(device)
    rows = size // (4 * _COLUMNS)
    ways: dict[str, list[float]] = {}
    with torch.inference_mode():
        wide = torch.ones(rows, _COLUMNS, device=place)
        ways["a sum in float32"] = seconds(wide.sum, repeats, place)
        vector = torch.ones(_COLUMNS, device=place)
        ways["a product in float32"] = seconds(partial(torch.mv, wide, vector), repeats, place)
        del wide
        narrow = torch.ones(2 * rows, _COLUMNS, device=place, dtype=torch.bfloat16)
        short = vector.to(torch.bfloat16)
        ways["a product in bfloat16"] = seconds(partial(torch.mv, narrow, short), repeats, place)
    read = rows * _COLUMNS * 4
    way = min(ways, key=lambda name: statistics.median(ways[name]))
    times = ways[way]
    return Bandwidth(
        read / statistics.median(times),
        read / max(times),
        read / min(times),
        way,
        read,
        torch.get_num_threads(),
        str(place),
    )


def stored_bytes(parameter: Any) -> int:
    """Bytes of a parameter, with the scales that bitsandbytes keeps beside it (4 and 8 bits)."""
    total = int(parameter.nbytes)
    state = getattr(parameter, "quant_state", None)
    for part in (state, getattr(state, "state2", None)):
        total += sum(int(t.nbytes) for t in (getattr(part, "absmax", None),) if t is not None)
    scales = getattr(parameter, "SCB", None)
    return total + (int(scales.nbytes) if scales is not None else 0)


def step_bytes(model: Any, *, context: int, batch: int = 1) -> StepBytes:
    """Bytes that a decoding step of `batch` sequences reads with `context` tokens before it.

    Counted from the tensors of the model as it is: a transformers causal language model of any dtype, or
    quantized by bitsandbytes. A table that is both embedding and head is read whole; an embedding alone, one
    row a sequence. Keys and values are counted in the dtype of the embedding.

    Raises: SpeedError: batch below 1 or context below 0.
    """
    from torch import nn

    if batch < 1 or context < 0:
        raise SpeedError(
            f"batch is {batch} and context {context}",
            where="step_bytes",
            remedy="use a batch of 1 or more and a context of 0 or more",
        )
    parameters = {id(p): p for p in model.parameters()}
    weights = sum(stored_bytes(p) for p in parameters.values())
    head = model.get_output_embeddings()
    for table in {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}.values():
        row = stored_bytes(table) // table.shape[0]
        # The head reads a tied table whole; its row for the embedding is then already among what is read.
        weights -= 0 if head is not None and table is head.weight else stored_bytes(table) - batch * row
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    stored = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width
    return StepBytes(
        weights, stored * context * batch * model.get_input_embeddings().weight.element_size(), batch
    )
