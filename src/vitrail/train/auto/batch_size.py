"""Batch size by measured speed."""

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
# Smallest number of steps in an epoch.
_STEPS = 20
# Share of the highest speed that counts as equal to it.
_ENOUGH = 0.95


def find_batch_size(
    task: Task,
    config: TrainerConfig,
    load: Callable[[int], Mapping[str, Tensor]],
    images: int,
    processes: int = 1,
) -> tuple[int, str]:
    """Find the smallest batch size within 5 % of the highest speed, among those that fit into memory.

    A larger batch means fewer steps an epoch and must gain speed. Sizes are powers of two with at least twenty steps an
    epoch, or the smallest size.

    Args:
        task: Task to train; it is not changed.
        config: Precision and devices.
        load: Loads a batch of a given size.
        images: Number of training images.
        processes: Number of processes that share a batch.

    Returns:
        The batch size and the reason.

    Raises:
        ConfigError: No size fits.
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
            # A CPU raises no error before the machine swaps: stop if twice the memory might not be free.
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


def _fastest(steps: TrialSteps, batch: Mapping[str, Tensor], bfloat16: bool) -> float:
    """Time the fastest of up to three steps (fewer after two seconds) after one warm-up step, in seconds."""
    steps.seconds(batch, bfloat16)
    times: list[float] = []
    while len(times) < 3 and sum(times) < 2.0:
        times.append(steps.seconds(batch, bfloat16))
    return min(times)


def _peak_memory() -> int:
    """Return the peak memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _free_memory() -> float:
    """Return the free memory of the machine, in bytes; infinity if it is not known."""
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return float("inf")
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
