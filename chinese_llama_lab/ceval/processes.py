"""Several processes that share a run: who this one is, and waiting for the others."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# The slowest process may be hours behind the first at the end of a run; a dead one ends the run anyway.
_PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """Rank of this process, how many there are, and a call that returns when all have made it."""

    rank: int
    count: int
    wait: Callable[[], None]

    @property
    def main(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0


def find_processes(device: Any) -> Processes:
    """What `accelerate launch` or torchrun started; one process where neither did.

    Args:
        device: the model's; on a CPU the processes talk through gloo.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes(0, 1, lambda: None)
    from accelerate import PartialState

    options: dict[str, Any] = {"timeout": _PATIENCE}
    if device.type == "cpu":
        options |= {"cpu": True, "backend": "gloo"}
    state = PartialState(**options)
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)
