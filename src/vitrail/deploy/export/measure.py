"""Speed, size and memory of an export's candidates, beside the run in eager mode."""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from vitrail.bench.memory import reset_peak, resident
from vitrail.deploy.export.budget import Budget
from vitrail.deploy.export.candidates import Built
from vitrail.deploy.export.choice import LEAST_GAIN
from vitrail.engines.base import Arrays
from vitrail.engines.load import Export, open_engine
from vitrail.errors import VitrailError, first_line

BATCHES = (1, 8)
EAGER = "vitrail, eager"
# Calls of each candidate at each batch size. Eight are the fewest whose median has an interval at this level.
_LEAST_CALLS, _MOST_CALLS = 8, 200
# Confidence level of the intervals of ratios: above 95 % because they decide when the calls end.
_RATIO_LEVEL = 0.99
# Kind of step, whose time is expected from those seen.
_MEMORY = "measurement of memory"

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

    @classmethod
    def of(cls, batch: int, times: Sequence[float]) -> Speed:
        """Summarise the seconds of all calls."""
        p99 = float(np.quantile(times, 0.99, method="higher"))
        return cls(batch, len(times), statistics.median(times), p99, min(times))


@dataclass(frozen=True)
class Ratio:
    """Time of a step over that of another step in the same turn.

    Other work on the machine slows down both calls of a turn, so that ratios vary less than times.

    Attributes:
        turns: Number of turns.
        median: Median over the turns.
        low: Lower end of its interval (exact, from order statistics); 0 with too few turns.
        high: Upper end; infinite with too few turns.
    """

    turns: int
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, times: Sequence[float], others: Sequence[float]) -> Ratio:
        """Compare the times of two steps, turn by turn."""
        ratios = sorted(own / other for own, other in zip(times, others, strict=True))
        n = len(ratios)
        rank = int(binom.ppf((1 - _RATIO_LEVEL) / 2, n, 0.5))
        ends = (ratios[rank - 1], ratios[n - rank]) if rank else (0.0, math.inf)
        return cls(n, statistics.median(ratios), *ends)

    def shows(self, factor: float) -> bool:
        """Return whether it is shown to be above a factor, or shown to be at most the factor."""
        return self.low > factor or self.high <= factor

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values; an unknown end becomes null."""
        ends = {"low": self.low or None, "high": self.high if math.isfinite(self.high) else None}
        return {"turns": self.turns, "median": self.median, **ends}


Times = dict[str, list[float]]


def time_alternately(
    steps: Mapping[str, Step], seconds: float, decided: Callable[[Times], bool] = lambda times: True
) -> Times:
    """Time steps one call after the other, in turns, so that all see the same load of the machine.

    Args:
        steps: Name -> the step.
        seconds: Time for all; some turns are made in any case, and as long again while nothing is decided.
        decided: Whether the times of the calls so far are sufficient.

    Returns:
        Seconds of each call, by name.
    """
    times: Times = {name: [] for name in steps}
    for step in steps.values():  # compiles, fills caches
        step()
        step()
    begin = time.perf_counter()
    for turn in range(_MOST_CALLS):
        spent = time.perf_counter() - begin
        if turn >= _LEAST_CALLS and spent > seconds and (spent > 2 * seconds or decided(times)):
            break
        for name in steps if turn % 2 == 0 else reversed(list(steps)):
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
    return times


@dataclass(frozen=True)
class Measured:
    """Measurements of a candidate.

    Attributes:
        speeds: Speed at each batch size.
        size: Bytes of the files; None in eager mode.
        memory: Peak resident bytes of a process that loads it and runs the largest batch, beyond those of Python and
            its packages; None where it was not measured.
        no_memory: Reason why the memory was not measured; empty where it was, and in eager mode.
        precision: Precision that the engine reports.
        operations: Matrix products and convolutions by precision, as the engine reports them.
        ratio: Time of the largest batch over that of the run in eager mode; None in eager mode.
    """

    speeds: tuple[Speed, ...]
    size: int | None
    memory: int | None
    precision: str
    operations: Mapping[str, int]
    ratio: Ratio | None = None
    no_memory: str = ""

    @property
    def images_per_second(self) -> float:
        """Images per second at the largest batch."""
        return self.speeds[-1].images_per_second

    @property
    def slower(self) -> str:
        """Ratio to the time of the run in eager mode, in words; empty unless the candidate is shown to be slower."""
        if self.ratio is None or self.ratio.low <= LEAST_GAIN:
            return ""
        return f"a call takes {self.ratio.median:.2f} times that of the run (at least {self.ratio.low:.2f})"

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        speeds = [{**vars(speed), "images_per_second": speed.images_per_second} for speed in self.speeds]
        return {
            "speeds": speeds,
            "bytes": self.size,
            "memory_bytes": self.memory,
            "no_memory": self.no_memory,
            "precision": self.precision,
            "operations": dict(self.operations),
            "time_over_eager": None if self.ratio is None else self.ratio.to_json(),
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
        decided = _shown_to_be_slower_or_not if batch == max(BATCHES) else lambda times: True
        times = time_alternately(steps, seconds / len(BATCHES), decided)
        for name, own in times.items():
            speeds[name].append(Speed.of(batch, own))
    ratios = {name: Ratio.of(times[name], times[EAGER]) for name in exports}
    found = {EAGER: Measured(tuple(speeds[EAGER]), None, None, "fp32", {})}
    for one in built:
        name = one.variant.name
        engine = exports[name].engine
        found[name] = Measured(tuple(speeds[name]), one.size, None, engine.precision, engine.operations(), ratios[name])
    return found


def add_memory(
    measured: Mapping[str, Measured], built: Sequence[Built], images: Arrays, threads: int | None, budget: Budget
) -> dict[str, Measured]:
    """Add the memory of candidates to their measurements, or the reason why it is not measured.

    Args:
        measured: Result of :func:`measure`.
        built: The same candidates.
        images: As many images as the largest batch.
        threads: Number of threads of the engines.
        budget: Time of the export; measurements beyond it are left out.
    """
    found = dict(measured)
    for one in built:
        memory = _memory_in_time(one, images, threads, budget) if len(built) > 1 else "there is no other candidate"
        peak, reason = (None, memory) if isinstance(memory, str) else (memory, "")
        found[one.variant.name] = dataclasses.replace(found[one.variant.name], memory=peak, no_memory=reason)
    return found


def _shown_to_be_slower_or_not(times: Times) -> bool:
    """Return whether each candidate is shown to be slower than the run, or not to be."""
    return all(Ratio.of(own, times[EAGER]).shows(LEAST_GAIN) for name, own in times.items() if name != EAGER)


def _memory_in_time(one: Built, images: Arrays, threads: int | None, budget: Budget) -> int | str:
    expected = budget.longest.get(_MEMORY)
    if not budget.fits(expected):
        return budget.leave_out(_MEMORY, expected)
    with budget.step(_MEMORY):
        return _peak_memory(one, images, threads)


def _peak_memory(one: Built, images: Arrays, threads: int | None) -> int | str:
    """Measure the memory of a candidate in a process of its own; return the bytes, or the reason why there are none."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    own = (one.folder, one.variant.engine, one.variant.precision, threads, dict(one.facts), images)
    process = context.Process(target=_send_memory, args=(sender, *own))
    process.start()
    sender.close()
    found: int | str | None
    try:
        found = receiver.recv()
    except EOFError:
        found = None
    process.join()
    return _how_it_ended(process.exitcode or 0) if found is None else found


def _how_it_ended(code: int) -> str:
    """Describe the end of a process that has measured nothing."""
    if code < 0:
        memory = ", most likely out of memory" if -code == signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-code).name}{memory}"
    return (
        f'its process ended with exit code {code}; a script that exports needs `if __name__ == "__main__":`, since '
        "the process imports it"
    )


def _send_memory(sender: Connection, *own: Any) -> None:
    try:
        found = _memory_of(*own)
    except (VitrailError, RuntimeError, OSError) as error:
        sender.send(first_line(error))
    else:
        sender.send("the memory of a process cannot be read on this system" if found is None else found)


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
