"""Worker processes that load images: their number, and one-line errors."""

from __future__ import annotations

import errno
import multiprocessing.connection
import multiprocessing.queues
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch

from vitrail.errors import ConfigError, DataError, RunError, VitrailError
from vitrail.machine import cores

# Where the system keeps memory that processes share.
_SHARED = "/dev/shm"
# Batches that each worker reads ahead (torch's default), and those that the main process holds.
_AHEAD, _HELD = 2, 2
# Open files of the main process for each worker and each loader, the two loaders of training, and what else it opens.
_FILES_A_WORKER, _FILES_A_LOADER, _LOADERS, _OTHER_FILES = 4, 4, 2, 24
# Exit codes of workers that cannot hand over a batch.
_NO_MEMORY, _NO_FILES, _NO_BATCH = 71, 72, 73
# Seconds that the end of a worker may take, whose connection is lost already.
_DYING = 10.0
_FULL = re.compile(r"No space left|Cannot allocate|unable to (?:write to file|mmap|allocate shared)|Bus error")
_FILES = re.compile(r"Too many open files|ancdata|unable to open (?:file descriptor|shared memory object)")
_MEMORY_CAUSE = "shared memory ran out while images were handed over between processes"
_MEMORY_REMEDY = (
    f"use --data.loader.num_workers 0, fewer workers or a smaller data.batch_size, or give {_SHARED} more memory "
    "(docker run --shm-size 2g)"
)
_FILES_CAUSE = "too many files are open"
_FILES_REMEDY = "use --data.loader.num_workers 0 or fewer workers, or allow more open files (ulimit -n 4096)"


def choose_workers(asked: int, batch_bytes: int) -> int:
    """Choose the number of worker processes.

    Args:
        asked: ``data.loader.num_workers``; -1 for one a core, at most 8, and as many as shared memory and open files
            allow.
        batch_bytes: Size of a batch as a worker hands it over.

    Raises:
        ConfigError: More were asked for than shared memory or open files allow.
    """
    wanted = min(cores(), 8) if asked == -1 else asked
    if wanted == 0:
        return 0
    memory, files = _free_memory(), _free_files()
    by_memory = wanted if memory is None else max(0, (memory // max(batch_bytes, 1) - _HELD) // _AHEAD)
    by_files = wanted
    if files is not None:
        by_files = max(0, ((files - _OTHER_FILES) // _LOADERS - _FILES_A_LOADER) // _FILES_A_WORKER)
    if asked == -1:
        return min(wanted, by_memory, by_files)
    if by_memory < wanted:
        assert memory is not None, "it is what is too little"
        need = (_AHEAD * wanted + _HELD) * batch_bytes
        raise ConfigError(
            f"data.loader.num_workers {wanted} needs about {need / 2**20:.0f} MB of shared memory, and {_SHARED} has "
            f"{memory / 2**20:.0f} MB left; use {by_memory} at most, a smaller data.batch_size, or give it more memory "
            "(docker run --shm-size 2g)"
        )
    if by_files < wanted:
        need = _LOADERS * (_FILES_A_WORKER * wanted + _FILES_A_LOADER) + _OTHER_FILES
        raise ConfigError(
            f"data.loader.num_workers {wanted} needs about {need} more open files, and this process may open {files} "
            f"more; use {by_files} at most, or allow more open files (ulimit -n 4096)"
        )
    return wanted


def start_worker(worker: int) -> None:
    """Initialise a worker: one thread, and an exit instead of a traceback if a batch cannot be sent.

    Args:
        worker: Its number.
    """
    torch.set_num_threads(1)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, batch: object) -> None:
    """End the worker; otherwise the main process would wait for the batch forever."""
    text = str(error)
    full = _FULL.search(text) or getattr(error, "errno", None) == errno.ENOSPC
    os._exit(_NO_MEMORY if full else _NO_FILES if _FILES.search(text) else _NO_BATCH)


@contextmanager
def translate_worker_errors() -> Iterator[None]:
    """Raise errors of workers as one-line errors.

    Raises:
        DataError: An image that a worker could not read.
        RunError: A worker that was killed, or lacks shared memory or open files.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError, MemoryError, DataError) as error:
        try:
            iterator = _forgotten_iterator(error.__traceback__)
        except RuntimeError:  # torch's handler of SIGCHLD may interrupt any statement, once
            iterator = _forgotten_iterator(error.__traceback__)
        # The connection of a worker that dies is lost first.
        lost = iterator is not None and isinstance(error, (ConnectionError, EOFError))
        ended = _exit_code(iterator, _DYING if lost else 0.0)
        found = _of_end(ended or 0) if lost or ended is not None else translate_worker_error(error)
        _shut_down(iterator)
        if found is None:
            raise
        raise found from error


def translate_worker_error(error: BaseException) -> VitrailError | None:
    """Convert an error of a loader to a one-line error; None for other errors.

    Args:
        error: As torch raises it.
    """
    text = str(error)
    caught = re.match(r"Caught (\w+) in DataLoader worker process \d+\.", text)
    if caught is not None:
        return _of_worker(error, caught[1], text)
    if isinstance(error, OSError):
        return RunError(f"{_FILES_CAUSE}; {_FILES_REMEDY}") if error.errno == errno.EMFILE else None
    if not isinstance(error, RuntimeError):
        return None
    signalled = re.search(r"DataLoader worker .* is killed by signal: ([\w ]+)", text)
    if signalled is not None:
        names = {signal.strsignal(number): number for number in signal.valid_signals()}
        return _of_end(-names.get(signalled[1], 0))
    if "DataLoader worker" in text:
        return _of_end(0)
    if _FILES.search(text):
        return RunError(f"{_FILES_CAUSE}; {_FILES_REMEDY}")
    if "/torch_" in text and _FULL.search(text):
        return RunError(f"{_MEMORY_CAUSE}; {_MEMORY_REMEDY}")
    return None


def _of_worker(error: BaseException, kind: str, text: str) -> VitrailError | None:
    """Convert an exception in a worker, whose traceback torch passes as the message."""
    parts = re.split(rf"\n(?:\w+\.)*{kind}: ", text)
    message = " ".join(parts[-1].split()) if len(parts) > 1 else ""
    if isinstance(error, VitrailError):
        return type(error)(message or " ".join(text.split()))
    if isinstance(error, OSError) or kind in ("OSError", "FileNotFoundError", "PermissionError", "MemoryError"):
        if "Too many open files" in message:
            return RunError(f"{_FILES_CAUSE}; {_FILES_REMEDY}")
        if kind == "MemoryError":
            return RunError(f"memory ran out in a process that reads images; {_less_memory()}")
        return DataError(f"images cannot be read: {message or kind}")
    return None


def _of_end(code: int) -> RunError:
    """Convert the exit code of a worker, which is negative after a signal."""
    if code in (_NO_MEMORY, -signal.SIGBUS):
        return RunError(f"{_MEMORY_CAUSE}; {_MEMORY_REMEDY}")
    if code == _NO_FILES:
        return RunError(f"{_FILES_CAUSE}; {_FILES_REMEDY}")
    if code == -signal.SIGKILL:
        return RunError(
            f"a process that reads images was killed, most often because the machine's memory ran out; {_less_memory()}"
        )
    how = f"was ended by the signal {signal.strsignal(-code)!r}" if code < 0 else "ended unexpectedly"
    how += f" with exit code {code}" if code > 0 else ""
    return RunError(f"a process that reads images {how}; --data.loader.num_workers 0 reads them in the main process")


def _less_memory() -> str:
    return "use fewer --data.loader.num_workers, --data.loader.num_workers 0 or a smaller data.batch_size"


def _iterator_of(traceback: TracebackType | None) -> Any:
    """Return torch's worker iterator that raised an exception; None if there is none."""
    while traceback is not None:
        owner = traceback.tb_frame.f_locals.get("self")
        if type(owner).__name__ == "_MultiProcessingDataLoaderIter":
            return owner
        traceback = traceback.tb_next
    return None


def _exit_code(iterator: Any, seconds: float) -> int | None:
    """Return the exit code of a worker that ended early; None if all run for the given seconds."""
    processes = getattr(iterator, "_workers", [])
    ending = multiprocessing.connection.wait([process.sentinel for process in processes], timeout=seconds)
    for process in processes:
        if process.sentinel in ending:
            process.join(seconds)
    codes = [process.exitcode for process in processes]
    return next((code for code in codes if code), None)


def _forgotten_iterator(traceback: TracebackType | None) -> Any:
    """Return torch's iterator, prevented from raising later errors about the ended worker."""
    iterator = _iterator_of(traceback)
    if getattr(iterator, "_worker_pids_set", False):
        torch._C._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
    return iterator


def _shut_down(iterator: Any) -> None:
    """End all workers now: an unfinished iterator would print another traceback later."""
    if iterator is None:
        return
    if hasattr(iterator, "_workers_status"):
        iterator._shutdown_workers()
        return
    iterator._shutdown = True  # it was not made to its end, and lacks what this needs
    for process in getattr(iterator, "_workers", []):
        process.terminate()


def _free_memory() -> int | None:
    """Return the free bytes of shared memory; None if the system has no such folder."""
    try:
        found = os.statvfs(_SHARED)
    except (OSError, AttributeError):
        return None
    return found.f_bavail * found.f_frsize


def _free_files() -> int | None:
    """Return the number of files that this process may still open; None if unlimited or unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        opened = len(os.listdir("/proc/self/fd"))
    except OSError:
        return None
    return None if limit == resource.RLIM_INFINITY else limit - opened
