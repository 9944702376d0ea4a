"""Run a notebook in this very interpreter, and measure what it cost.

The kernel is the Python that runs this code, whatever kernels are installed on the machine under
whatever names, and with none of the user's IPython or Jupyter settings: what is measured here is the
course, not somebody's startup file.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

MIB = 2**20
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Failure:
    """The first cell that failed: its number among the code cells from 1, its text, and the error."""

    cell: int
    source: str
    error: str


@dataclass(frozen=True)
class Run:
    """What running a notebook cost: code cells done and in all, seconds, peak memory in MiB."""

    done: int
    total: int
    seconds: float
    peak_mib: float
    failure: Failure | None = None


class MemoryWatch:
    """Peak resident memory of a process and its children, sampled five times a second.

    Pages that two processes share are counted for both, so that the figure errs upwards.
    """

    def __init__(self, interval: float = 0.2) -> None:
        self.peak_bytes = 0
        self._interval = interval
        self._pid: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True, name="memory-watch")

    def watch(self, pid: int | None) -> None:
        """Begin to watch this process."""
        self._pid = pid

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def sample(self) -> None:
        """Look once. Between two looks the kernel's own high-water mark (Linux) fills the gap."""
        import psutil

        if self._pid is None:
            return
        with suppress(psutil.Error):
            process = psutil.Process(self._pid)
            total = process.memory_info().rss
            for child in process.children(recursive=True):
                with suppress(psutil.Error):
                    total += child.memory_info().rss
            self.peak_bytes = max(self.peak_bytes, total, high_water_mark(self._pid))

    def _sample(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()


def high_water_mark(pid: int) -> int:
    """Largest resident memory the process ever had, in bytes; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def kernel_environment(extra: Mapping[str, str], private: Path) -> dict[str, str]:
    """The kernel's environment: the caller's, `extra`, and Jupyter and IPython folders of its own."""
    environment = dict(os.environ)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        environment[name] = str(private / name.lower())
    environment.pop("JUPYTER_PATH", None)
    environment.pop("PYTHONSTARTUP", None)
    # A user's MPLBACKEND=agg would leave every figure out of the notebook.
    environment["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    environment.update(extra)
    return environment


def execute(
    notebook: Any,
    *,
    folder: Path,
    environment: Mapping[str, str],
    cell_timeout: float | None = None,
    progress: Callable[[Run], None] | None = None,
) -> Run:
    """Execute `notebook` in place, stopping at the first cell that fails.

    Args:
        notebook: an nbformat notebook; its outputs are replaced.
        folder: the kernel's working directory.
        environment: variables set for the kernel on top of the caller's.
        cell_timeout: seconds a cell may take; None for no limit.
        progress: called after every code cell, and every half second in between.

    Returns:
        the cost, with `failure` set if a cell raised, ran out of time or killed the kernel. The
        notebook keeps the outputs up to there.
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    class ThisInterpreter(KernelSpecManager):  # type: ignore[misc]
        def get_kernel_spec(self, kernel_name: str) -> Any:
            arguments = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=arguments, display_name="Python 3", language="python")

    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in code_cells:
        cell.outputs, cell.execution_count = [], None
    start = time.monotonic()
    done = 0
    current: Any = None

    def state(failure: Failure | None = None) -> Run:
        seconds = time.monotonic() - start
        return Run(done, len(code_cells), seconds, memory.peak_bytes / MIB, failure)

    def started(cell: Any, cell_index: int) -> None:
        nonlocal current
        current = cell
        memory.watch(getattr(manager.provisioner, "pid", None))

    def finished(cell: Any, cell_index: int, execute_reply: Any) -> None:
        nonlocal done
        memory.sample()
        if execute_reply["content"]["status"] == "ok":
            done += 1
        if progress:
            progress(state())

    failure: Failure | None = None
    with tempfile.TemporaryDirectory(prefix="course-kernel-") as private, MemoryWatch() as memory:
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisInterpreter())
        manager.connection_file = str(Path(private) / "kernel.json")
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=cell_timeout,
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
            store_widget_state=False,
            coalesce_streams=True,
            on_cell_execute=started,
            on_cell_executed=finished,
        )
        # What the kernel process itself says goes to a file: it is of interest only if the kernel dies.
        log = Path(private) / "kernel.log"
        with _Ticker(progress, state), log.open("wb") as stderr:
            try:
                # A kernel manager that was passed in is not shut down unless asked: each chapter's kernel
                # would keep its memory until the whole course has run.
                client.execute(
                    cleanup_kc=True, env=kernel_environment(environment, Path(private)), stderr=stderr
                )
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                said = log.read_text(encoding="utf-8", errors="replace")
                text = _describe(error, memory.peak_bytes, cell_timeout, said)
                number = next((i for i, c in enumerate(code_cells, 1) if c is current), 0)
                failure = Failure(number, current.source if current is not None else "", text)
    return state(failure)


class _Ticker:
    """Calls `progress` twice a second, so that a long cell does not look like a standstill."""

    def __init__(self, progress: Callable[[Run], None] | None, state: Callable[[], Run]) -> None:
        self._progress = progress
        self._state = state
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True, name="progress")

    def _tick(self) -> None:
        while not self._stop.wait(0.5):
            if self._progress:
                self._progress(self._state())

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *details: object) -> None:
        self._stop.set()
        self._thread.join()


def _describe(error: Exception, peak_bytes: int, cell_timeout: float | None, said: str) -> str:
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    if isinstance(error, CellExecutionError):
        return _ANSI.sub("", f"{error.ename}: {error.evalue}")
    if isinstance(error, CellTimeoutError):
        return f"the cell was still running after {cell_timeout:g} s"
    peak = f"{peak_bytes / MIB:.0f} MiB at its peak"
    last = "".join(f"\n    {line}" for line in said.splitlines()[-5:] if "without encryption" not in line)
    return f"the kernel died ({peak}); if that is near all the memory there is, the system ended it{last}"
