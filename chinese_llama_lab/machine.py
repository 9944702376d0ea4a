"""What this machine gives to the process: cores, memory, and a name for its processor."""

from __future__ import annotations

import os
import platform
from pathlib import Path

GIB = 2**30


def usable_cores() -> int:
    """Cores this process may use: its affinity, capped by a container's CPU quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows know no affinity
        cores = os.cpu_count() or 1
    quota = _words(Path("/sys/fs/cgroup/cpu.max"))
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def memory_bytes() -> int:
    """Memory this process may use: the machine's, capped by a container's limit."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        words = _words(Path(limit))
        if words and words[0].isdigit():
            total = min(total, int(words[0]))
    return total


def processor_name() -> str:
    """The name the processor gives itself, or its architecture."""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown processor"


def processor_flags() -> frozenset[str]:
    """Instruction sets the Linux kernel reports; empty elsewhere."""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def computes_bfloat16() -> bool:
    """Whether products in bfloat16 are faster than in float32: the GPU or the processor has instructions."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(processor_flags() & {"amx_bf16", "avx512_bf16", "bf16"})


def describe() -> str:
    """One line for the provenance of a measurement: processor, cores, memory."""
    return f"{processor_name()}, {usable_cores()} cores, {memory_bytes() / GIB:.0f} GiB"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
