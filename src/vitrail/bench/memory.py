"""Peak memory of a step: of the GPU's allocator, or of a process that did nothing else."""

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
        before: Bytes that were in use when everything was built and nothing had run: on a GPU weights and
            inputs; of a process also Python, torch and the other packages.
        peak: Most bytes in use during the step, all of ``before`` included. In training the optimiser's state is
            there from the beginning, as in every step but the first.
    """

    before: int
    peak: int


def peak_memory(build: Callable[[], Step], device: torch.device) -> Memory | None:
    """Build a step and measure the memory that it takes the second time it runs.

    On the CPU everything happens in a fresh process, whose resident memory counts, so that nothing that was
    computed earlier blurs the number; ``build`` travels there and must be a function of a module (or a
    :func:`functools.partial` of one). On a GPU it happens here, by the allocator's count.

    Args:
        build: Gives the step; runs in the process that is measured.
        device: Where the step computes.

    Returns:
        The memory, or None where the system does not tell.

    Raises:
        VitrailError: The process was killed, most likely for want of memory.
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
    # What others hold on the device does not belong to the step.
    return Memory(before - held, torch.cuda.max_memory_allocated(device) - held)


def _in_process(build: Callable[[], Step], threads: int) -> Memory | None:
    torch.set_num_threads(threads)
    step = build()
    before = _resident("VmRSS")
    step()
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # from now on the peak counts anew
    step()
    peak = _resident("VmHWM")
    return None if before is None or peak is None else Memory(before, peak)


def _resident(field: str) -> int | None:
    """Resident bytes of this process: now ("VmRSS") or at most so far ("VmHWM")."""
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(lines[field].split()[0]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the most so far is all that it tells
    return None
