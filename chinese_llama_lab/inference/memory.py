"""How much memory, and of what: the answer of an estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

GB = 1e9
GIB = 2.0**30


@dataclass(frozen=True)
class Memory:
    """Memory at the moment that needs most.

    Attributes:
        name: the model and the task. components: bytes by what they are for, at that moment.
        moment: which one it is. moments: total bytes at each.
    """

    name: str
    components: Mapping[str, float]
    moment: str = "generating"
    moments: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.components.values())

    @property
    def gb(self) -> float:
        """In GB: 1,000,000,000 bytes."""
        return self.total / GB

    @property
    def gib(self) -> float:
        """In GiB: 1,073,741,824 bytes, which is what a GPU sold as "24 GB" has 24 of."""
        return self.total / GIB

    def __repr__(self) -> str:
        rows = [(name, value) for name, value in self.components.items() if value]
        wide = max([len(name) for name, _ in rows] + [len("total")])
        lines = [f"{self.name}; most while {self.moment}", f"{'':{wide}}  {'GB':>8}  {'GiB':>8}"]
        lines += [f"{name:{wide}}  {v / GB:8.3f}  {v / GIB:8.3f}" for name, v in rows]
        lines.append(f"{'total':{wide}}  {self.gb:8.3f}  {self.gib:8.3f}")
        return "\n".join(lines)
