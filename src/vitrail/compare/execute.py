"""Execute the missing runs of a plan, several at a time; a failed run does not stop the others."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.compare.plan import Run, Task
from vitrail.compare.pools import Job, Pool
from vitrail.config.load import dump_recipe
from vitrail.durations import format_duration
from vitrail.files import write_text
from vitrail.runs.lock import lock_holder
from vitrail.runs.suite import SuiteFolder

# Seconds between polls of own jobs, and of runs that other processes train.
_POLL, _POLL_OTHERS = 0.2, 5.0
_MAX_ERROR_LENGTH = 300


@dataclass(frozen=True)
class Failure:
    """A failed run.

    Attributes:
        run: The run.
        error: The error in one line.
        log: Its whole output; None if it was not started.
    """

    run: Run
    error: str
    log: Path | None


def execute(
    runs: Sequence[Run],
    folder: SuiteFolder,
    pool: Pool,
    report: Callable[[str], None],
    python: Sequence[str] = (sys.executable, "-m", "vitrail.compare.worker"),
) -> list[Failure]:
    """Execute the missing runs of a plan.

    Runs that other processes train are left to them, and polled when there is nothing else to do.

    Args:
        runs: The plan.
        folder: Folder of the suite, for recipes and logs.
        pool: Pool that runs the jobs.
        report: Called with each line of progress.
        python: Command that executes a recipe.

    Returns:
        Failed runs, and runs that depend on them.
    """
    execution = _Execution(runs, folder, pool, report, python)
    try:
        while not execution.finished:
            execution.collect_ended_jobs()
            execution.start_jobs()
            if not execution.finished:
                time.sleep(_POLL if execution.active else _POLL_OTHERS)
    finally:
        pool.stop([job.handle for job in execution.active.values()])
    return execution.failures


@dataclass(frozen=True)
class _ActiveJob:
    run: Run
    handle: Any
    started: float


class _Execution:
    """State of :func:`execute`: pending runs, active jobs, failures."""

    def __init__(
        self,
        runs: Sequence[Run],
        folder: SuiteFolder,
        pool: Pool,
        report: Callable[[str], None],
        python: Sequence[str],
    ) -> None:
        self.runs, self.folder, self.pool, self.report, self.python = runs, folder, pool, report, python
        self.pending = list({run.task: run for run in runs}.values())
        self.active: dict[Task, _ActiveJob] = {}
        self.failures: list[Failure] = []
        self.waiting: set[Task] = set()  # reported as trained by another process
        self.total = sum(run.state() != "done" for run in self.pending)
        self.num_done = 0
        self.seconds: list[float] = []

    @property
    def finished(self) -> bool:
        return not self.pending and not self.active

    def collect_ended_jobs(self) -> None:
        """Remove ended jobs and report their results."""
        for task, job in list(self.active.items()):
            status = self.pool.ended(job.handle)
            if status is None:
                continue
            del self.active[task]
            state = job.run.state()
            if state == "done":
                self.seconds.append(time.monotonic() - job.started)
                self._report_done(job.run, format_duration(self.seconds[-1]))
            elif state == "elsewhere":
                self.pending.append(job.run)  # another process locked the run folder first
            else:
                log = self.folder.log(job.run.identity)
                self._fail(job.run, _last_error(log, status), log)
                self.report(f"failed: {job.run.label}: {self.failures[-1].error}")

    def start_jobs(self) -> None:
        """Start pending runs as far as the pool has room; drop those that are done or cannot run."""
        failed = {failure.run.identity: failure for failure in self.failures}
        for run in list(self.pending):
            state = run.state()
            if run.needs in failed:
                self.pending.remove(run)
                self._fail(run, f"it needs {run.needs}, which failed", None)
            elif run.identity in failed:
                self.pending.remove(run)
                self._fail(run, "its training failed", failed[run.identity].log)
            elif state == "done":
                self.pending.remove(run)
                if run.task in self.waiting:
                    self._report_done(run, "by another process")
            elif run.identity in {job.run.identity for job in self.active.values()}:
                continue  # another evaluation of the same run
            elif state == "elsewhere":
                self._report_waiting(run)
            elif len(self.active) < self.pool.size and self._dependency_is_done(run):
                self.pending.remove(run)
                self.report(f"started: {run.label} ({run.folder})")
                self.active[run.task] = _ActiveJob(run, self.pool.start(self._job(run)), time.monotonic())

    def _job(self, run: Run) -> Job:
        recipe = write_recipes([run], self.folder)[run.identity]
        log = self.folder.log(run.identity)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")  # without the output of earlier attempts
        return Job((*self.python, str(recipe.resolve()), run.tta), log.resolve(), folder=os.getcwd())

    def _dependency_is_done(self, run: Run) -> bool:
        return all(other.state() == "done" for other in self.runs if other.identity == run.needs)

    def _fail(self, run: Run, error: str, log: Path | None) -> None:
        self.failures.append(Failure(run, error, log))

    def _report_waiting(self, run: Run) -> None:
        if run.task not in self.waiting:
            self.waiting.add(run.task)
            other = lock_holder(run.folder.path) or "another process"
            self.report(f"waiting: {run.label} is being trained by {other}")

    def _report_done(self, run: Run, how: str) -> None:
        self.num_done += 1
        metrics = run.evaluation()
        name = "mIoU" if metrics is not None and "miou" in metrics else "accuracy"
        result = "" if metrics is None else f"{name} {metrics[name.lower()]:.4f} "
        missing = self.total - self.num_done - len(self.failures)
        left = ""
        if missing > 0 and self.seconds:
            mean = sum(self.seconds) / len(self.seconds)
            left = f"; about {format_duration(mean * missing / min(self.pool.size, missing))} left"
        self.report(f"[{self.num_done}/{self.total}] {run.label}: {result}({how}){left}")


def write_recipes(runs: Iterable[Run], folder: SuiteFolder) -> dict[str, Path]:
    """Write the resolved recipe of each run into the suite's folder; return the files by identity."""
    result = {}
    for run in runs:
        result[run.identity] = folder.recipe(run.identity)
        write_text(folder.recipe(run.identity), dump_recipe(run.recipe))
    return result


def _last_error(log: Path, status: int) -> str:
    """Extract the error from the log of a failed job."""
    if status < 0:
        return f"killed by signal {-status}"
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        lines = []
    prefix = "vitrail: error: "
    errors = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    last = errors[-1] if errors else next((line for line in reversed(lines) if line), "no output")
    return last[:_MAX_ERROR_LENGTH]
