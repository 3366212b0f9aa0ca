"""Pools of processes that run jobs in parallel: on this machine or on a Ray cluster."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vitrail.errors import VitrailError
from vitrail.extras import import_extra
from vitrail.machine import cores


@dataclass(frozen=True)
class Job:
    """A command that executes a run.

    Attributes:
        command: Program and arguments.
        log: File of its output.
        environment: Environment variables in addition to those of this process.
        folder: Working directory.
    """

    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "."


class Pool(Protocol):
    """Runs jobs in parallel."""

    size: int

    def start(self, job: Job) -> Any:
        """Start a job and return a handle."""

    def ended(self, handle: Any) -> int | None:
        """Return the exit status of a job; None while it runs."""

    def stop(self, handles: Iterable[Any]) -> None:
        """Stop running jobs."""


class LocalPool:
    """Processes on this machine, which share cores and GPUs evenly.

    Args:
        size: Number of parallel jobs.
        gpus: Number of GPUs.
    """

    def __init__(self, size: int, gpus: int = 0) -> None:
        self.size = size
        self.gpus = gpus
        self.started = 0
        self.threads = max(1, cores() // size)

    def start(self, job: Job) -> subprocess.Popen[bytes]:
        """Start a job."""
        environment = {**os.environ, **job.environment}
        if self.size > 1 or "OMP_NUM_THREADS" not in environment:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        if self.gpus > 1 and "CUDA_VISIBLE_DEVICES" not in environment:
            environment["CUDA_VISIBLE_DEVICES"] = str(self.started % self.gpus)
        self.started += 1
        with job.log.open("ab") as log:
            return subprocess.Popen(job.command, stdout=log, stderr=log, env=environment, cwd=job.folder)

    def ended(self, handle: subprocess.Popen[bytes]) -> int | None:
        """Return the exit status of a job; None while it runs."""
        return handle.poll()

    def stop(self, handles: Iterable[subprocess.Popen[bytes]]) -> None:
        """Terminate running jobs; each keeps its last checkpoint."""
        handles = list(handles)
        for process in handles:
            process.terminate()
        for process in handles:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


class RayPool:
    """Processes on a Ray cluster, whose machines share the working directory and have vitrail installed.

    Args:
        address: Address of the cluster; "local" starts one on this machine.
        size: Number of parallel jobs.
        gpus: GPUs of each job.

    Raises:
        VitrailError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, address: str, size: int, gpus: int = 0) -> None:
        ray: Any = import_extra("ray", "ray")
        self.size = size
        try:
            # A local cluster gets the cores of this process, not those of the machine.
            more = {"num_cpus": cores()} if address == "local" else {}
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True, **more)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise VitrailError(f"no Ray cluster at {address!r}: {' '.join(str(error).split())}") from error
        self._ray = ray
        self.threads = max(1, int(ray.cluster_resources().get("CPU", 1)) // size)
        self._logs: dict[Any, Path] = {}
        self._run = ray.remote(num_cpus=self.threads, num_gpus=gpus, max_retries=0)(run_job)

    def start(self, job: Job) -> Any:
        """Start a job."""
        environment = {**job.environment, "OMP_NUM_THREADS": str(self.threads)}
        handle = self._run.remote(Job(job.command, job.log.absolute(), environment, os.path.abspath(job.folder)))
        self._logs[handle] = job.log
        return handle

    def ended(self, handle: Any) -> int | None:
        """Return the exit status of a job, None while it runs; errors of Ray give 1 and go to the log."""
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
        """Stop running jobs."""
        for handle in handles:
            self._ray.cancel(handle, force=True)


def run_job(job: Job) -> int:
    """Run a job to completion on a machine of the cluster."""
    with job.log.open("ab") as log:
        ended = subprocess.run(
            job.command, stdout=log, stderr=log, env={**os.environ, **job.environment}, cwd=job.folder, check=False
        )
    return ended.returncode
