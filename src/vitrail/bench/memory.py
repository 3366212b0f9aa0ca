"""Peak memory of a step: by the GPU's allocator, or as resident memory of a fresh process."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from vitrail.errors import VitrailError

Step = Callable[[], object]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Memory of a step.

    Attributes:
        before: Bytes in use after the step is built and before it runs: on a GPU weights and inputs; on the CPU also
            Python, torch and the other packages.
        peak: Peak bytes in use during the step, including ``before``. In training it includes the optimiser's state,
            as in every step but the first.
    """

    before: int
    peak: int


def peak_memory(build: Callable[[], Step], device: torch.device) -> Memory | None:
    """Measure the peak memory of a step's second run.

    On the CPU the step runs in a fresh process, and its resident memory counts. ``build`` is pickled: it must be a
    module-level function or a :func:`functools.partial` of one. On a GPU the step runs in this process, and the
    allocator's statistics count.

    Args:
        build: Returns the step; called in the measured process.
        device: Device of the step.

    Returns:
        The memory; None where the system does not report it.

    Raises:
        VitrailError: The process was killed, most likely out of memory.
    """
    if device.type == "cuda":
        return _on_cuda(build, device)
    if device.type != "cpu":
        return None
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(_in_process, build, torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            raise VitrailError(
                "the process that measures memory was killed; a smaller batch or image needs less memory"
            ) from error


def _on_cuda(build: Callable[[], Step], device: torch.device) -> Memory:
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated(device)
    step = build()
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    # Earlier allocations on the device do not belong to the step.
    return Memory(before - held, torch.cuda.max_memory_allocated(device) - held)


def _in_process(build: Callable[[], Step], threads: int) -> Memory | None:
    torch.set_num_threads(threads)
    step = build()
    before = resident("VmRSS")
    step()
    reset_peak()
    step()
    peak = resident("VmHWM")
    return None if before is None or peak is None else Memory(before, peak)


def reset_peak() -> None:
    """Set the peak of this process's resident memory to the current value, where the system allows it."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def resident(field: str) -> int | None:
    """Read the resident bytes of this process: current ("VmRSS") or peak ("VmHWM")."""
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(lines[field].split()[0]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS reports the peak only
    return None
