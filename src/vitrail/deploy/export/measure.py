"""Speed, size and memory of an export's candidates, beside the run in eager mode."""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.bench.memory import reset_peak, resident
from vitrail.deploy.export.candidates import Built
from vitrail.engines.base import Arrays
from vitrail.engines.load import Export, open_engine

BATCHES = (1, 8)
EAGER = "vitrail, eager"
# Calls of each candidate at each batch size.
_LEAST_CALLS, _MOST_CALLS = 5, 200

Step = Callable[[], object]


@dataclass(frozen=True)
class Speed:
    """Times of the calls at one batch size.

    Attributes:
        batch: Number of images.
        calls: Number of calls.
        p50: Median seconds of a call.
        p99: 99th percentile; with fewer than 100 calls the longest.
        best: Seconds of the fastest call, which other work on the machine has slowed down least.
    """

    batch: int
    calls: int
    p50: float
    p99: float
    best: float

    @property
    def images_per_second(self) -> float:
        """Images per second at the median time."""
        return self.batch / self.p50


def time_alternately(steps: Mapping[str, Step], batch: int, seconds: float) -> dict[str, Speed]:
    """Time steps one call after the other, in turns, so that all see the same load of the machine.

    Args:
        steps: Name -> the step.
        batch: Number of images of a step.
        seconds: Time for all; at least 5 calls of each are made.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():  # compiles, fills caches
        step()
        step()
    end = time.perf_counter() + seconds
    for turn in range(_MOST_CALLS):
        if turn >= _LEAST_CALLS and time.perf_counter() > end:
            break
        for name in steps if turn % 2 == 0 else reversed(list(steps)):
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
    return {
        name: Speed(batch, len(own), statistics.median(own), float(np.quantile(own, 0.99, method="higher")), min(own))
        for name, own in times.items()
    }


@dataclass(frozen=True)
class Measured:
    """Measurements of a candidate.

    Attributes:
        speeds: Speed at each batch size.
        size: Bytes of the files; None in eager mode.
        memory: Peak resident bytes of a process that loads it and runs the largest batch, beyond those of Python and
            its packages; None where it was not measured.
        precision: Precision that the engine reports.
        operations: Matrix products and convolutions by precision, as the engine reports them.
    """

    speeds: tuple[Speed, ...]
    size: int | None
    memory: int | None
    precision: str
    operations: Mapping[str, int]

    @property
    def images_per_second(self) -> float:
        """Images per second at the largest batch."""
        return self.speeds[-1].images_per_second

    def slower_than(self, other: Measured, factor: float) -> bool:
        """Test whether both the median and the fastest call of the largest batch take longer by a factor."""
        own, its = self.speeds[-1], other.speeds[-1]
        return own.p50 > factor * its.p50 and own.best > factor * its.best

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        speeds = [{**vars(speed), "images_per_second": speed.images_per_second} for speed in self.speeds]
        return {
            "speeds": speeds,
            "bytes": self.size,
            "memory_bytes": self.memory,
            "precision": self.precision,
            "operations": dict(self.operations),
        }


def measure(
    built: Sequence[Built], eager: Callable[[int], object], images: Arrays, seconds: float, threads: int | None
) -> dict[str, Measured]:
    """Measure the built candidates, in alternation with the run in eager mode.

    Args:
        built: The candidates, all of them with an engine.
        eager: Runs the model on the first n images.
        images: As many images as the largest batch, by the names of the inputs.
        seconds: Time for all calls.
        threads: Number of threads of the engines.
    """
    exports = {one.variant.name: one.export for one in built}
    speeds: dict[str, list[Speed]] = {name: [] for name in (*exports, EAGER)}
    for batch in BATCHES:
        inputs = {name: x[:batch] for name, x in images.items()}
        steps: dict[str, Step] = {name: functools.partial(export.run, inputs) for name, export in exports.items()}
        steps[EAGER] = functools.partial(eager, batch)
        for name, speed in time_alternately(steps, batch, seconds / len(BATCHES)).items():
            speeds[name].append(speed)
    found = {EAGER: Measured(tuple(speeds[EAGER]), None, None, "fp32", {})}
    for one in built:
        name = one.variant.name
        engine = exports[name].engine
        memory = _peak_memory(one, images, threads) if len(built) > 1 else None
        found[name] = Measured(tuple(speeds[name]), one.size, memory, engine.precision, engine.operations())
    return found


def _peak_memory(one: Built, images: Arrays, threads: int | None) -> int | None:
    """Measure the memory of a candidate in a process of its own; None if that process was killed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(
                _memory_of, one.folder, one.variant.engine, one.variant.precision, threads, dict(one.facts), images
            ).result()
        except BrokenProcessPool:
            return None


def _memory_of(
    folder: Path, engine: str, precision: str, threads: int | None, facts: dict[str, Any], images: Arrays
) -> int | None:
    reset_peak()
    before = resident("VmRSS")
    export = Export(folder, facts, open_engine(folder, engine, precision, threads))
    for _ in range(2):
        export.run(images)
    peak = resident("VmHWM")
    return None if before is None or peak is None else peak - before
