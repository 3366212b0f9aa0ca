"""Lock of a run folder: one process at a time trains in it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from vitrail.errors import RunError


@contextmanager
def lock_run_folder(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a run folder.

    The operating system releases the lock when the process ends, also when it is killed. On folders shared between
    machines it works if the file system supports locks (NFS 4, Lustre with ``flock``).

    Args:
        folder: The run folder, which need not exist; the lock is a hidden file next to it.

    Raises:
        RunError: Another process holds the lock (the message names it), or the file cannot be written.
    """
    file = _lock_file(folder)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(file)
    except OSError as error:
        raise RunError(f"cannot write the run folder {folder}: {error.strerror or error}") from error
    if handle is None:
        raise RunError(
            f"{folder} is being trained by {lock_holder(folder) or 'another process'}; wait for it or stop it"
        )
    try:
        note = {
            "process": os.getpid(),
            "machine": platform.node(),
            "since": datetime.now(UTC).isoformat(" ", "seconds"),
        }
        try:
            os.truncate(handle, 0)
            os.pwrite(handle, json.dumps(note).encode(), 0)
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"cannot write the lock {file}: {reason}; free space or check permissions") from error
        yield
    finally:
        file.unlink(missing_ok=True)
        # Explicitly: forked workers share the handle, so that closing it does not release the lock.
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def lock_holder(folder: str | Path) -> str | None:
    """Describe the process that trains in a run folder; None if there is none.

    Args:
        folder: The run folder.
    """
    file = _lock_file(folder)
    try:
        handle = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"cannot read the lock {file}: {error.strerror or error}") from error
    try:
        # A shared lock, so that concurrent checks do not block each other.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        try:
            note = json.loads(os.pread(handle, 4096, 0))
            return f"process {note['process']} on {note['machine']} since {note['since']}"
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
            return "a process that has just started"
    else:
        return None
    finally:
        os.close(handle)


def _acquire(file: Path) -> int | None:
    """Lock the file and return its handle; None if another process holds it."""
    for _ in range(20):
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have removed the file between open and flock.
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except FileNotFoundError:
            pass
        os.close(handle)
    return None


def _lock_file(folder: str | Path) -> Path:
    path = Path(os.path.realpath(folder))
    return path.parent / f".{path.name}.lock"
