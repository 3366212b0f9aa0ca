"""Carrying out a plan: what is missing, several runs at a time, whatever happens to one of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vitrail.compare.plan import Run, State
from vitrail.durations import format_duration
from vitrail.errors import VitrailError
from vitrail.extras import import_extra
from vitrail.files import write_text
from vitrail.machine import cores
from vitrail.runs.lock import lock_holder
from vitrail.runs.suite import SuiteFolder

# Seconds between two looks at the processes, and at runs that others train.
_GLANCE, _LOOK = 0.2, 5.0
_LONGEST = 300


@dataclass(frozen=True)
class Job:
    """A command that carries out a run.

    Attributes:
        command: Words.
        log: Where its output goes.
        environment: In addition to this process's own.
        folder: Where it is run.
    """

    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "."


class Pool(Protocol):
    """Where jobs are run."""

    size: int

    def start(self, job: Job) -> Any:
        """Begin a job; gives a handle."""

    def ended(self, handle: Any) -> int | None:
        """The exit status of a job; None while it goes on."""

    def stop(self, handles: Iterable[Any]) -> None:
        """End what still goes on."""


class LocalPool:
    """Processes on this machine, each with its share of the cores, and of the GPUs where there are several.

    Args:
        size: How many at a time.
        gpus: How many GPUs there are.
    """

    def __init__(self, size: int, gpus: int = 0) -> None:
        self.size = size
        self.gpus = gpus
        self.started = 0
        self.threads = max(1, cores() // size)

    def start(self, job: Job) -> subprocess.Popen[bytes]:
        """Begin a job."""
        environment = {**os.environ, **job.environment}
        if self.size > 1 or "OMP_NUM_THREADS" not in environment:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        if self.gpus > 1 and "CUDA_VISIBLE_DEVICES" not in environment:
            environment["CUDA_VISIBLE_DEVICES"] = str(self.started % self.gpus)
        self.started += 1
        with job.log.open("ab") as log:
            return subprocess.Popen(job.command, stdout=log, stderr=log, env=environment, cwd=job.folder)

    def ended(self, handle: subprocess.Popen[bytes]) -> int | None:
        """The exit status of a job."""
        return handle.poll()

    def stop(self, handles: Iterable[subprocess.Popen[bytes]]) -> None:
        """End what still goes on; each keeps its last checkpoint."""
        handles = list(handles)
        for process in handles:
            process.terminate()
        for process in handles:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


class RayPool:
    """Processes on the machines of a Ray cluster, which must share this folder and have vitrail installed.

    Args:
        address: Of the cluster; "local" starts one on this machine.
        size: How many runs at a time.
        gpus: GPUs of each run.

    Raises:
        VitrailError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str, size: int, gpus: int = 0) -> None:
        ray: Any = import_extra("ray", "ray")
        self.size = size
        try:
            # A cluster of this process's own has the cores that the process has.
            more = {"num_cpus": cores()} if address == "local" else {}
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True, **more)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise VitrailError(f"no Ray cluster at {address!r}: {' '.join(str(error).split())}") from error
        self._ray = ray
        self.threads = max(1, int(ray.cluster_resources().get("CPU", 1)) // size)
        self._logs: dict[Any, Path] = {}
        self._run = ray.remote(num_cpus=self.threads, num_gpus=gpus, max_retries=0)(run_job)

    def start(self, job: Job) -> Any:
        """Begin a job."""
        environment = {**job.environment, "OMP_NUM_THREADS": str(self.threads)}
        handle = self._run.remote(Job(job.command, job.log.absolute(), environment, os.path.abspath(job.folder)))
        self._logs[handle] = job.log
        return handle

    def ended(self, handle: Any) -> int | None:
        """The exit status of a job; 1 where Ray failed, which its log then says."""
        done, _ = self._ray.wait([handle], timeout=0)
        if not done:
            return None
        try:
            return int(self._ray.get(handle))
        except self._ray.exceptions.RayError as error:
            with self._logs[handle].open("a") as log:
                log.write(f"{type(error).__name__}: {error}\n")
            return 1

    def stop(self, handles: Iterable[Any]) -> None:
        """End what still goes on."""
        for handle in handles:
            self._ray.cancel(handle, force=True)


def run_job(job: Job) -> int:
    """Run a job to its end; what a machine of a cluster does."""
    with job.log.open("ab") as log:
        ended = subprocess.run(
            job.command, stdout=log, stderr=log, env={**os.environ, **job.environment}, cwd=job.folder, check=False
        )
    return ended.returncode


@dataclass(frozen=True)
class Failure:
    """A run that came to no end.

    Attributes:
        run: Which.
        error: Why, in a line.
        log: Where all of it stands; None where it was not begun.
    """

    run: Run
    error: str
    log: Path | None


def execute(
    runs: Sequence[Run],
    folder: SuiteFolder,
    pool: Pool,
    say: Callable[[str], None],
    look: float = _LOOK,
    python: Sequence[str] = (sys.executable, "-m", "vitrail.compare.worker"),
) -> list[Failure]:
    """Carry out what is missing; a run that fails is reported and the others go on.

    A run that another process trains is left to it, and looked at again when nothing else is to be done.

    Args:
        runs: A plan.
        folder: Where recipes and logs go.
        pool: Where runs are carried out.
        say: Takes a line of progress.
        look: Seconds between two looks at runs that others train.
        python: The program that carries out a recipe.

    Returns:
        The runs that failed, and those that need them.
    """
    todo = list({run.task: run for run in runs}.values())
    active: dict[tuple[str, str], tuple[Run, Any, float]] = {}
    failures: list[Failure] = []
    number, total = 0, sum(run.state() != "done" for run in todo)
    took: list[float] = []
    waiting: set[tuple[str, str]] = set()
    try:
        while todo or active:
            for task, (run, handle, began) in list(active.items()):
                status = pool.ended(handle)
                if status is None:
                    continue
                del active[task]
                state = run.state()
                if state == "done":
                    number += 1
                    took.append(time.monotonic() - began)
                    left = _time_left(took, total - number - len(failures), pool.size)
                    say(f"[{number}/{total}] {run.label}: {_result(run)}({format_duration(took[-1])}){left}")
                elif state == "elsewhere":
                    todo.append(run)  # another was faster to begin it
                else:
                    failures.append(
                        Failure(run, _last_error(folder.log(run.identity), status), folder.log(run.identity))
                    )
                    say(f"failed: {run.label}: {failures[-1].error}")
            failed = {failure.run.identity for failure in failures}
            busy = {run.identity for run, _, _ in active.values()}
            for run in list(todo):
                state = run.state()
                if run.identity in failed or run.needs in failed:
                    todo.remove(run)
                    if run.needs in failed:
                        failures.append(Failure(run, f"it needs {run.needs}, which failed", None))
                    elif not any(f.run.task == run.task for f in failures):
                        failures.append(Failure(run, "its training failed", folder.log(run.identity)))
                elif state == "done":
                    todo.remove(run)
                    if run.task in waiting:
                        number += 1
                        say(f"[{number}/{total}] {run.label}: {_result(run)}(by another process)")
                elif state == "elsewhere":
                    if run.identity not in busy and run.task not in waiting:
                        waiting.add(run.task)
                        other = lock_holder(run.folder.path) or "another process"
                        say(f"waiting: {run.label} is being trained by {other}")
                elif len(active) < pool.size and run.identity not in busy and not _needs_others(run, runs):
                    todo.remove(run)
                    busy.add(run.identity)
                    say(f"begun: {run.label} ({run.folder})")
                    active[run.task] = (run, pool.start(_job(run, folder, python)), time.monotonic())
            if todo or active:
                time.sleep(_GLANCE if active else look)
    finally:
        pool.stop([handle for _, handle, _ in active.values()])
    return failures


def write_recipes(runs: Iterable[Run], folder: SuiteFolder) -> dict[str, Path]:
    """Write the resolved recipe of each run into the suite's folder; gives their files by identity."""
    from vitrail.config.load import dump_recipe

    result = {}
    for run in runs:
        result[run.identity] = folder.recipe(run.identity)
        write_text(folder.recipe(run.identity), dump_recipe(run.recipe))
    return result


def _job(run: Run, folder: SuiteFolder, python: Sequence[str]) -> Job:
    recipe = write_recipes([run], folder)[run.identity]
    log = folder.log(run.identity)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")  # of this attempt alone
    command = (*python, str(recipe.resolve()), run.tta)
    return Job(command, log.resolve(), folder=os.getcwd())


def _needs_others(run: Run, runs: Sequence[Run]) -> bool:
    return any(other.identity == run.needs and other.state() != "done" for other in runs)


def _result(run: Run) -> str:
    metrics = run.evaluation()
    return "" if metrics is None else f"accuracy {metrics['accuracy']:.4f} "


def _time_left(took: Sequence[float], missing: int, at_once: int) -> str:
    if missing <= 0:
        return ""
    return f"; about {format_duration(sum(took) / len(took) * missing / min(at_once, missing))} left"


def _last_error(log: Path, status: int) -> str:
    """The line of a log that says why a run ended, and what it was."""
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith("vitrail: error: ")]
    if status < 0:
        return f"killed by signal {-status}"
    last = told[-1].removeprefix("vitrail: error: ") if told else next((x for x in reversed(lines) if x), "no output")
    return last[:_LONGEST]


def states_of(runs: Iterable[Run]) -> dict[tuple[str, str], State]:
    """What each run of a plan consists of -> how far it is."""
    return {run.task: run.state() for run in runs}
