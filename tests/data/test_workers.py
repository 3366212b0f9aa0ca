"""Faults of the processes that read images: one line with the cause and what helps."""

import errno
import os
import signal

import pytest
import torch
from torch.utils.data import Dataset

from vitrail.data import workers
from vitrail.data.dataset import _UnitLoader
from vitrail.data.image_errors import UnreadableError
from vitrail.data.workers import choose_workers, start_worker, translate_worker_error
from vitrail.errors import ConfigError, DataError, RunError


class _Faulty(Dataset):
    """Fails at its third item."""

    def __init__(self, fault):
        self.fault = fault

    def __len__(self):
        return 6

    def __getitem__(self, item):
        return {"image": self.fault() if item == 2 else torch.zeros(3)}


def _kill(number):
    return lambda: os.kill(os.getpid(), number)


def _raise(error):
    def fault():
        raise error

    return fault


@pytest.mark.fast_cases(
    "<lambda>-RunError-too many files are open; .*ulimit -n",
    "fault-DataError-^a.png is not an image; replace it$",
    "fault-DataError-images cannot be read: .*a.png",
    "fault-RunError-memory ran out in a process that reads images",
    "fault-RunError-too many files are open; .*ulimit",
)
@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (
            _kill(signal.SIGKILL),
            RunError,
            r"was killed, most often because .*memory ran out; use fewer --data",
        ),
        (
            _kill(signal.SIGTERM),
            RunError,
            r"ended by the signal 'Terminated'; --data.loader.num_workers 0 reads them in",
        ),
        (lambda: os._exit(3), RunError, r"ended unexpectedly with exit code 3; --data.loader.num_workers 0"),
        (lambda: os._exit(workers._NO_MEMORY), RunError, r"shared memory ran out .*--shm-size"),
        (lambda: os._exit(workers._NO_FILES), RunError, r"too many files are open; .*ulimit -n"),
        (lambda: lambda: 3, RunError, f"with exit code {workers._NO_BATCH}"),  # what no process can hand to another
        (_raise(DataError("a.png is not an image")), DataError, r"^a.png is not an image$"),
        (
            _raise(UnreadableError("a.png is not an image", "replace it")),
            DataError,
            r"^a.png is not an image; replace it$",
        ),
        (_raise(OSError(errno.EIO, "Input/output error", "a.png")), DataError, r"images cannot be read: .*a.png"),
        (_raise(OSError(errno.EMFILE, "Too many open files", "a.png")), RunError, r"too many files are open; .*ulimit"),
        (_raise(MemoryError()), RunError, r"memory ran out in a process that reads images"),
    ],
)
def test_what_ends_a_worker_is_one_line(fault, kind, message, capfd):
    loader = _UnitLoader(
        _Faulty(fault), batch_size=1, num_workers=1, collate_fn=lambda items: items[0], worker_init_fn=start_worker
    )
    with pytest.raises(kind, match=message) as caught:
        list(loader)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_the_end_of_a_worker_may_interrupt_its_explanation(monkeypatch):
    """The handler of SIGCHLD raises at whichever statement is reached when the worker ends."""
    original = workers._forgotten_iterator
    raised = []

    def interrupted(traceback):
        if not raised:
            raised.append(True)
            raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly with exit code 3")
        return original(traceback)

    monkeypatch.setattr(workers, "_forgotten_iterator", interrupted)
    loader = _UnitLoader(
        _Faulty(lambda: os._exit(3)), batch_size=1, num_workers=1, collate_fn=lambda items: items[0],
        worker_init_fn=start_worker,
    )  # fmt: skip
    with pytest.raises(RunError, match="with exit code 3"):
        list(loader)


def test_a_fault_of_the_program_stays_as_it_is():
    loader = _UnitLoader(_Faulty(_raise(IndexError("a bug"))), batch_size=1, num_workers=1, worker_init_fn=start_worker)
    with pytest.raises(IndexError):
        list(loader)
    assert translate_worker_error(RuntimeError("something else")) is None
    assert translate_worker_error(ValueError("Too many open files")) is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("received 0 items of ancdata"), "too many files"),
        (RuntimeError("unable to open shared memory object </torch_1> in read-write mode"), "too many files"),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "shared memory ran out"),
        (RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error. It"), "shared memory ran out"),
        (RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. "), "was killed, most often"),
        (RuntimeError("DataLoader worker (pid(s) 1, 2) exited unexpectedly"), "unexpectedly; --data.loader.num_w"),
        (OSError(errno.EMFILE, "Too many open files"), "too many files"),
    ],
)  # fmt: skip
def test_what_the_main_process_meets(error, message):
    assert message in str(translate_worker_error(error))


def test_a_loader_without_files_leaves_no_traceback(monkeypatch, capfd):
    import gc

    import torch.multiprocessing as multiprocessing

    original, calls = multiprocessing.Queue, []

    def queue(*arguments):
        calls.append(1)
        if len(calls) > 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return original(*arguments)

    monkeypatch.setattr(multiprocessing, "Queue", queue)
    # The worker that was started waits this many seconds for work before it sees that there is none.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    with pytest.raises(RunError, match="too many files are open"):
        list(_UnitLoader(_Faulty(lambda: torch.zeros(3)), num_workers=2, worker_init_fn=start_worker))
    gc.collect()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("asked", "memory", "files", "expected"),
    [
        (8, None, None, 8), (8, 18 * 1000, None, 8), (8, 17 * 1000, None, "17 MB|shared memory.*use 7 at most"),
        (8, None, 95, "96 more open files.* may open 95 more; use 7 at most"), (8, None, 96, 8), (0, 0, 0, 0),
        (-1, None, None, 4), (-1, 6500, None, 2), (-1, 0, None, 0), (-1, None, 48, 2), (-1, None, 3, 0),
    ],
)  # fmt: skip
def test_as_many_as_the_machine_has_room_for(monkeypatch, asked, memory, files, expected):
    monkeypatch.setattr(workers, "_free_memory", lambda: memory)
    monkeypatch.setattr(workers, "_free_files", lambda: files)
    monkeypatch.setattr(workers, "cores", lambda: 4)
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            choose_workers(asked, 1000)
    else:
        assert choose_workers(asked, 1000) == expected
