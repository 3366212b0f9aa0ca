"""How fast a step runs, against other steps in turn and against what the machine can do at all.

A machine that slows down, or is shared, slows all contenders of a round; so ratios are taken within rounds, and
their median over rounds is what counts. Operations are those of matrix products, convolutions and attention, as
:func:`~vitrail.models.profile.count_multiply_adds` counts them (two for each multiply-add); a training step is
counted as three forward passes, because the backward pass computes a product for the inputs and one for the
weights of each. The machine's peak is measured, with square matrix products: a share of it is never more than
a good kernel could reach here.
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
# What the forward pass counts for; see the top of this file.
PASSES: dict[Mode, int] = {"forward": 1, "train": 3}


@dataclass(frozen=True)
class Workload:
    """What a model is asked to do.

    Attributes:
        mode: "forward" in evaluation mode without gradients, or "train": forward, cross-entropy, backward and a
            fused AdamW.
        precision: "32", or "bf16": weights and inputs of a forward pass in bfloat16; training under autocast,
            its weights in float32.
        compiled: Whether ``torch.compile`` comes first, with its default settings.
    """

    mode: Mode = "forward"
    precision: Precision = "32"
    compiled: bool = False


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers, and how far they go.

    Attributes:
        median: The middle.
        low: The lowest.
        high: The highest.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one number."""
        return cls(statistics.median(values), min(values), max(values))


def make_step(
    model: nn.Module, inputs: Sequence[Tensor], workload: Workload, device: torch.device | str = "cpu"
) -> Step:
    """A function without arguments that makes a model do its work once.

    Args:
        model: The model; it is moved and converted to what the work asks for, and trained if that is the work.
        inputs: For each of its streams, shape ``(B, C, H, W)``.
        workload: The work.
        device: Where to do it.

    Returns:
        The function; it does not wait for a GPU to finish.
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
    steps: Sequence[Step], device: torch.device | str = "cpu", rounds: int = 7, least: float = 0.3
) -> list[list[float]]:
    """Time steps in turn, round by round; every second round in the opposite order.

    Args:
        steps: The contenders; each runs twice before its time counts.
        device: Where they compute.
        rounds: Rounds.
        least: Seconds that a contender computes in a round at least; a quick one runs several times.

    Returns:
        For each contender, seconds of one run in each round.

    Raises:
        ConfigError: Fewer rounds than one.
    """
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    device = torch.device(device)
    calls = []
    for step in steps:
        _seconds(step, 1, device)  # compiles, chooses kernels, fills caches
        calls.append(max(1, math.ceil(least / _seconds(step, 1, device))))
    times: list[list[float]] = [[] for _ in steps]
    for number in range(rounds):
        order = range(len(steps)) if number % 2 == 0 else reversed(range(len(steps)))
        for i in order:
            times[i].append(_seconds(steps[i], calls[i], device) / calls[i])
    return times


def _seconds(step: Step, calls: int, device: torch.device) -> float:
    gc.collect(1)  # what the last step left; all else would be looked through each time for nothing
    collects = gc.isenabled()
    gc.disable()
    try:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            step()
        synchronize(device)
        return max(time.perf_counter() - start, 1e-9)
    finally:
        if collects:
            gc.enable()


def device_name(device: torch.device) -> str:
    """The device's name, with the number of threads on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'' if threads == 1 else 's'}" if device.type == "cpu" else device.type


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was asked; the CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times as fast as theirs ours is, round by round.

    Args:
        ours: Seconds, one number a round.
        theirs: The same of the other contender, in the same rounds.
    """
    return Spread.of([b / a for a, b in zip(ours, theirs, strict=True)])


@dataclass(frozen=True)
class TimeRatio:
    """A ratio of two times and its interval.

    Attributes:
        ratio: Geometric mean over rounds.
        low: Lower end.
        high: Upper end.
    """

    ratio: float
    low: float
    high: float


def time_ratio(times: Sequence[float], others: Sequence[float], confidence: float = 0.95) -> TimeRatio:
    """Compute the ratio of two contenders' times that were taken in turn, with Student's interval over rounds.

    Args:
        times: Seconds of the one, one number a round.
        others: Seconds of the other, in the same rounds.
        confidence: Coverage wanted.

    Returns:
        The ratio; its ends are NaN for a single round.

    Source: Kalibera & Jones 2013, ISMM, 63-74 (ratios of execution times; here of paired rounds, by logarithms).
    """
    logs = np.log(np.asarray(times, dtype=np.float64)) - np.log(np.asarray(others, dtype=np.float64))
    mean, half = float(logs.mean()), math.nan
    if len(logs) > 1:
        half = float(student.ppf(0.5 + confidence / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return TimeRatio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def matrix_peak(device: torch.device | str = "cpu", precision: Precision = "32", seconds: float = 1.5) -> float:
    """Operations a second of the quickest square matrix product, over several sizes.

    Args:
        device: Where to compute.
        precision: Of the matrices; on a GPU, whether float32 products may use TF32 is torch's setting of the
            moment (by default they may not).
        seconds: About how long to try.

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
        quickest = min(_seconds(multiply, calls, device) / calls for _ in range(4))
        best = max(best, 2 * size**3 / quickest)
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
