"""What a chain of adapters does to a tensor, some rows at a time: W ← W + α/r · BA.

Everything is float32 and rounded once, by whoever writes it. A row of the result needs the same row of W, B
and the magnitudes, and all of A, so that a matrix is never in memory as a whole. With DoRA the row is then
brought to its learnt length: W ← m · (W + ΔW) / ‖W + ΔW‖, where W is what the chain has reached.

Source: Hu et al., arXiv 2106.09685; rsLoRA 2312.03732; DoRA 2402.09353; peft 0.21.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from chinese_llama_lab.merging.adapter import Adapter
from chinese_llama_lab.merging.base import Base

if TYPE_CHECKING:
    import torch

_BLOCK_BYTES = 32 << 20  # of float32: rows of a matrix that are in memory at the same time


class Chain:
    """A base and adapters in order.

    Attributes:
        changed: for each adapter, the tensors that it takes part in. moved: whether any value differs after
            it. Both are known for what `blocks` has yielded.
    """

    def __init__(self, base: Base, adapters: Sequence[Adapter]) -> None:
        self.base, self.adapters = base, adapters
        self.changed: list[set[str]] = [set() for _ in adapters]
        self.moved = [False for _ in adapters]
        self._a: dict[int, tuple[str, torch.Tensor]] = {}  # the last A of each adapter

    def touches(self, name: str) -> bool:
        """Whether any adapter changes a tensor."""
        return any(name in table for a in self.adapters for table in (a.pairs, a.whole, a.rows))

    def blocks(self, name: str, shape: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """A tensor of the result: (first row, rows), in float32 or, untouched, in the base's dtype."""
        if not shape:
            yield 0, self.base.whole(name)
            return
        touched = self.touches(name)
        step = max(1, _BLOCK_BYTES // (4 * max(1, math.prod(shape[1:]))))
        for begin in range(0, shape[0], step):
            end = min(begin + step, shape[0])
            if touched:
                yield begin, self._through(name, begin, end, len(self.adapters), watch=True)
            else:  # what is rounded already is not made float32 and rounded again
                yield begin, self.base.rows(name, begin, end)

    def rows(self, name: str, begin: int, end: int, *, before: int) -> torch.Tensor:
        """Rows as the first `before` adapters leave them; float32."""
        return self._through(name, begin, end, before, watch=False)

    def _through(self, name: str, begin: int, end: int, count: int, *, watch: bool) -> torch.Tensor:
        w = self.base.rows(name, begin, end).float()
        for n, adapter in enumerate(self.adapters[:count]):
            if not (name in adapter.pairs or name in adapter.whole or name in adapter.rows):
                continue
            was = w
            if name in adapter.whole:
                w = adapter.part(adapter.whole[name], begin, end)
            if name in adapter.pairs:
                w = self._update(n, name, w, begin)
            if name in adapter.rows:
                w = _replace(adapter, name, w, begin)
            if watch:
                self.changed[n].add(name)
                self.moved[n] = self.moved[n] or w.shape != was.shape or bool((w != was).any())
        return w

    def _update(self, n: int, name: str, w: torch.Tensor, begin: int) -> torch.Tensor:
        adapter = self.adapters[n]
        pair, end = adapter.pairs[name], begin + w.shape[0]
        if n not in self._a or self._a[n][0] != name:
            self._a[n] = (name, adapter.tensors.get_tensor(pair.a).float())
        b = adapter.part(pair.b, begin, end)
        w = w + adapter.settings.scale(name.removesuffix(".weight")) * (b @ self._a[n][1])
        if pair.magnitude:
            magnitude = adapter.tensors.get_tensor(pair.magnitude).float().flatten()[begin:end]
            w = w * (magnitude / w.norm(dim=1)).unsqueeze(1)
        return w


def _replace(adapter: Adapter, name: str, w: torch.Tensor, begin: int) -> torch.Tensor:
    import torch

    end = begin + w.shape[0]
    here = [(n, row - begin) for n, row in enumerate(adapter.indices[name]) if begin <= row < end]
    if not here:
        return w
    first, last = min(n for n, _ in here), max(n for n, _ in here)
    rows = adapter.part(adapter.rows[name], first, last + 1)
    w = w.clone()
    w[torch.tensor([row for _, row in here])] = rows[torch.tensor([n - first for n, _ in here])]
    return w
