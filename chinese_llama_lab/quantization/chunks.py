"""Work on a large tensor in chunks: little memory beside it, and every core busy.

Torch would share each small operation among its threads, which then wait for each other a hundred times a
matrix; on busy cores that took ten times as long as one thread alone. So a chunk is too small for torch to
share, and whole chunks are shared instead: torch works outside Python's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# Torch shares operations on 32,768 elements or more. Every block size divides the chunk.
CHUNK = 7 * 4096
_GPU_CHUNK = 2**24
_WORTH_THREADS = 8 * CHUNK


def in_chunks(count: int, device: torch.device, work: Callable[[int, int], None], chunk: int = CHUNK) -> None:
    """Call `work(start, stop)` until all of 0 … `count` is done, in any order, by `torch.get_num_threads()`.

    Args:
        count: elements in all.
        device: where they are; a GPU takes larger chunks.
        work: what is done with elements start … stop.
        chunk: elements at a time on a CPU, a multiple of 4096.

    An exception in `work` is raised here.
    """
    size = chunk if device.type == "cpu" else _GPU_CHUNK
    starts = range(0, count, size)
    threads = torch.get_num_threads() if device.type == "cpu" and count > _WORTH_THREADS else 1
    inference = torch.is_inference_mode_enabled()  # new threads do not inherit it

    def some(first: int) -> None:
        with torch.inference_mode(inference):
            for start in starts[first::threads]:
                work(start, min(start + size, count))

    if threads == 1:
        some(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, range(threads)))
