"""Speed of forward passes and training steps, in alternation with other models and relative to the machine's peak.

Ratios are computed within rounds, because a machine that slows down slows all steps of a round; their median over
rounds is reported. Operations are those of matrix products, convolutions and attention, two for each multiply-add that
:func:`~vitrail.models.profile.count_multiply_adds` counts. A training step counts as three forward passes: the backward
pass computes one product for the inputs and one for the weights. The machine's peak is measured with square matrix
products.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.machine import processor

Mode = Literal["forward", "train"]
Precision = Literal["32", "bf16"]
Step = Callable[[], object]

DTYPES: dict[Precision, torch.dtype] = {"32": torch.float32, "bf16": torch.bfloat16}
# Operations of a step, in forward passes; see the docstring of this module.
PASSES: dict[Mode, int] = {"forward": 1, "train": 3}


@dataclass(frozen=True)
class Workload:
    """The computation to time.

    Attributes:
        mode: "forward" (evaluation mode, no gradients) or "train" (forward, cross-entropy, backward, fused AdamW).
        precision: "32" or "bf16": bfloat16 weights and inputs in forward mode, autocast in training.
        compiled: Whether the model is compiled with the default settings of ``torch.compile``.
    """

    mode: Mode = "forward"
    precision: Precision = "32"
    compiled: bool = False


@dataclass(frozen=True)
class Spread:
    """Median and range.

    Attributes:
        median: Median.
        low: Minimum.
        high: Maximum.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))


def make_step(
    model: nn.Module, inputs: Sequence[Tensor], workload: Workload, device: torch.device | str = "cpu"
) -> Step:
    """Build a function without arguments that runs a workload once.

    Args:
        model: The model; it is moved and converted in place, and trained in mode "train".
        inputs: Input of each stream, shape ``(B, C, H, W)``.
        workload: The workload.
        device: Device to run on.

    Returns:
        The step; it does not synchronise the GPU.
    """
    device = torch.device(device)
    images = [x.to(device) for x in inputs]
    make = _training if workload.mode == "train" else _inference
    return make(model.to(device), images, workload)


def _inference(model: nn.Module, images: list[Tensor], workload: Workload) -> Step:
    dtype = DTYPES[workload.precision]
    model = model.eval().to(dtype)
    images = [x.to(dtype) for x in images]
    run = torch.compile(model) if workload.compiled else model

    @torch.inference_mode()
    def step() -> Any:
        return run(*images)

    return step


def _training(model: nn.Module, images: list[Tensor], workload: Workload) -> Step:
    model = model.train()
    run = torch.compile(model) if workload.compiled else model
    device = images[0].device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, fused=True)
    target = torch.zeros(len(images[0]), dtype=torch.int64, device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=workload.precision == "bf16"):
            loss = F.cross_entropy(run(*images), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def alternate(
    steps: Sequence[Step],
    device: torch.device | str = "cpu",
    rounds: int = 7,
    least: float = 0.3,
    clock: Callable[[], float] | None = None,
) -> list[list[float]]:
    """Time steps in alternation, round by round; every second round in reverse order.

    Args:
        steps: The steps; each runs twice as warm-up.
        device: Device of the steps.
        rounds: Number of rounds, at least 1.
        least: Minimum seconds of a step in a round; a shorter step is repeated.
        clock: Clock in seconds, ``time.perf_counter`` by default; ``time.process_time`` leaves out other processes.

    Returns:
        Seconds of one run, by step and round.

    Raises:
        ConfigError: ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    device = torch.device(device)
    calls = []
    for step in steps:
        _seconds(step, 1, device, clock)  # compiles, chooses kernels, fills caches
        calls.append(max(1, math.ceil(least / _seconds(step, 1, device, clock))))
    times: list[list[float]] = [[] for _ in steps]
    for round_index in range(rounds):
        order = range(len(steps)) if round_index % 2 == 0 else reversed(range(len(steps)))
        for i in order:
            times[i].append(_seconds(steps[i], calls[i], device, clock) / calls[i])
    return times


def _seconds(step: Step, calls: int, device: torch.device, clock: Callable[[], float] | None = None) -> float:
    clock = clock or time.perf_counter
    gc.collect(1)  # young generations only: a full collection takes longer than a short step
    collects = gc.isenabled()
    gc.disable()
    try:
        synchronize(device)
        start = clock()
        for _ in range(calls):
            step()
        synchronize(device)
        return max(clock() - start, 1e-9)
    finally:
        if collects:
            gc.enable()


def device_name(device: torch.device) -> str:
    """Name a device, with the number of threads on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'' if threads == 1 else 's'}" if device.type == "cpu" else device.type


def synchronize(device: torch.device) -> None:
    """Wait for pending kernels of a device; no-op on the CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Compute the speed of ``ours`` relative to ``theirs``, by round.

    Args:
        ours: Seconds of each round.
        theirs: Seconds of the other step in the same rounds.
    """
    return Spread.of([b / a for a, b in zip(ours, theirs, strict=True)])


@dataclass(frozen=True)
class TimeRatio:
    """A ratio of two times and its confidence interval.

    Attributes:
        ratio: Geometric mean over rounds.
        low: Lower bound.
        high: Upper bound.
    """

    ratio: float
    low: float
    high: float


def time_ratio(times: Sequence[float], others: Sequence[float], confidence: float = 0.95) -> TimeRatio:
    """Compute the ratio of two alternated steps' times, with Student's interval over rounds.

    Args:
        times: Seconds of the first step, by round.
        others: Seconds of the second step in the same rounds.
        confidence: Confidence level.

    Returns:
        The ratio; its bounds are NaN for a single round.

    Source: Kalibera & Jones 2013, ISMM, 63-74 (ratios of execution times; here of paired rounds, by logarithms).
    """
    logs = np.log(np.asarray(times, dtype=np.float64)) - np.log(np.asarray(others, dtype=np.float64))
    mean, half = float(logs.mean()), math.nan
    if len(logs) > 1:
        half = float(student.ppf(0.5 + confidence / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return TimeRatio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def matrix_peak(device: torch.device | str = "cpu", precision: Precision = "32", seconds: float = 1.5) -> float:
    """Measure the machine's peak: operations per second of the fastest square matrix product of several sizes.

    Args:
        device: Device to measure.
        precision: Precision of the matrices; TF32 on a GPU follows torch's current setting (off by default).
        seconds: Approximate duration.

    Returns:
        Floating-point operations a second.
    """
    device, dtype = torch.device(device), DTYPES[precision]
    sizes = (256, 512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192)
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        multiply = _Product(a, b, out)
        once = min(_seconds(multiply, 1, device) for _ in range(2))
        calls = max(1, int(seconds / len(sizes) / 4 / once))
        fastest = min(_seconds(multiply, calls, device) / calls for _ in range(4))
        best = max(best, 2 * size**3 / fastest)
        if 8 * once > seconds:  # the next size takes eight times as long
            break
    return best


@dataclass
class _Product:
    a: Tensor
    b: Tensor
    out: Tensor

    def __call__(self) -> None:
        torch.mm(self.a, self.b, out=self.out)
