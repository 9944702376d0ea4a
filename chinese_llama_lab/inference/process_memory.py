"""Resident memory of this process, and making its peak mean what is alive."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path


def resident(key: str = "VmRSS") -> int:
    """Bytes that /proc/self/status gives for `VmRSS`, or for `VmHWM`, the most since `forget_peak`.

    Raises: OSError: there is no /proc (not Linux). RuntimeError: it does not tell.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def forget_peak() -> None:
    """Set the kernel's high-water mark back to what is resident now.

    Raises: OSError: there is no /proc (not Linux), or it may not be written.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def give_back() -> None:
    """Free what nobody refers to, and give the C library's free memory back to the system.

    The latter where it can be asked to (glibc). Without it, memory that was freed earlier still counts as
    resident, and so in every later peak.
    """
    gc.collect()
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
