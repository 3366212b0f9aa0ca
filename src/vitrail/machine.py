"""Name of the machine, and use of its memory by this process."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

# Options of mallopt(3), and bytes up to which a buffer stays with the process: where it is to, and where it is not to.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _RETURNED = 1 << 30, 1 << 17


def processor() -> str:
    """Return the processor's model, as far as the system reports it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Count the cores that this process may use: fewer than the machine's under a scheduler or taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def let_waiting_threads_sleep() -> None:
    """Let OpenMP's threads sleep while they wait for each other; call it before torch is imported.

    By default they spin: beside one other busy process, a thread that waits uses up the time slice that the thread it
    waits for needs, and a training step on two threads takes up to ten times as long. The user's own OMP_WAIT_POLICY
    or GOMP_SPINCOUNT has precedence.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_large_buffers() -> bool:
    """Let the allocator keep buffers of up to 1 GiB for the next ones, for the rest of this process.

    glibc fetches every buffer above 32 MB from the system and returns it at once, and the system clears its pages
    again each time: a fifth of a forward pass over large images. The command line does this for its own process; a
    program that computes on a CPU may. Where the user has tuned the allocator, or it is not glibc's, nothing is done.

    Returns:
        Whether it was done.
    """
    return _keep_up_to(_KEPT)


def return_large_buffers() -> bool:
    """Let the allocator return buffers above 128 kB to the system as soon as they are free, for good.

    By itself glibc comes to keep those below 32 MB, and what is only gathered for a moment then never leaves.

    Returns:
        Whether it was done; not where the user has tuned the allocator, or it is not glibc's.
    """
    return _keep_up_to(_RETURNED)


def _keep_up_to(size: int) -> bool:
    tuned = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, size)) and bool(mallopt(_TRIM_THRESHOLD, size))
