"""Finding a batch size by measuring training steps."""

from __future__ import annotations

import copy
import os
import resource
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitrail.config.schema import TrainerConfig
from vitrail.errors import ConfigError
from vitrail.tasks.base import Task
from vitrail.train.auto.trial_steps import TrialSteps

_SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
# An epoch has at least as many steps.
_STEPS = 20
# As fast as the fastest, for all that it matters.
_ENOUGH = 0.95


def find_batch_size(
    task: Task,
    config: TrainerConfig,
    load: Callable[[int], Mapping[str, Tensor]],
    images: int,
    processes: int = 1,
) -> tuple[int, str]:
    """The smallest batch that trains about as many images a second as the fastest one that fits into memory.

    Larger batches mean fewer steps an epoch, so that one is taken only where it pays. Sizes are powers of two, and
    leave at least twenty steps an epoch (or are the smallest, 4).

    Args:
        task: What is to be trained; it is not changed.
        config: Precision and devices.
        load: Gives a batch of so many images.
        images: In the training split.
        processes: That share each batch.

    Returns:
        The size, and why.

    Raises:
        ConfigError: Not even the smallest fits.
    """
    device = next(task.parameters()).device
    # At least two images a process: a BatchNorm may need them.
    low, high = 2 * processes, max(images // _STEPS, 4 * processes)
    sizes = [size for size in _SIZES if size % processes == 0 and low <= size <= high]
    speeds: dict[int, float] = {}
    stopped = ""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        steps = TrialSteps(copy.deepcopy(task).train(), config, device)
        for size in sizes:
            share = size // processes
            before = _peak_memory()
            try:
                seconds = _fastest(steps, load(share), config.precision.startswith("bf16"))
            except torch.OutOfMemoryError:
                stopped = f"; {size} do not fit into memory"
                break
            speeds[size] = size / seconds
            # On a CPU nothing says no until the machine stops: do not go where twice as much might be too much.
            if device.type == "cpu" and 2 * (_peak_memory() - before) > _free_memory() / 2 / processes:
                stopped = f"; twice {size} might not fit into memory"
                break
            if speeds[size] < 0.8 * max(speeds.values()):
                break
        del steps
    if not speeds:
        raise ConfigError(f"data.batch_size auto: no size divides among {processes} processes and fits; give a number")
    return _smallest_fast(speeds, stopped)


def _smallest_fast(speeds: Mapping[int, float], stopped: str = "") -> tuple[int, str]:
    best = max(speeds.values())
    size = min(size for size, speed in speeds.items() if speed >= _ENOUGH * best)
    tried = ", ".join(f"{size}: {speed:.3g}" for size, speed in speeds.items())
    return size, f"the smallest within {1 - _ENOUGH:.0%} of the fastest (images/s by size: {tried}{stopped})"


def _fastest(
    steps: TrialSteps, batch: Mapping[str, Tensor], bfloat16: bool, most: int = 3, enough: float = 2.0
) -> float:
    """Seconds of the fastest of a few steps; the first one is a warm-up and does not count."""
    steps.seconds(batch, bfloat16)
    times: list[float] = []
    while len(times) < most and sum(times) < enough:
        times.append(steps.seconds(batch, bfloat16))
    return min(times)


def _peak_memory() -> int:
    """Most memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _free_memory() -> float:
    """Of the machine, in bytes; without limit where it does not say."""
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return float("inf")
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
