"""Files that are read side by side: results in order, errors where they belong."""

import threading

import pytest
import torch

from vitrail.data.threads import map_in_threads
from vitrail.errors import DataError


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 47, 2000])
def test_results_are_in_order(threads, count, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert list(map_in_threads(lambda item: item * item, range(count))) == [item * item for item in range(count)]


def test_as_many_threads_as_torch_has_work_at_once(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together = threading.Barrier(3, timeout=20)
    names = list(map_in_threads(lambda _: together.wait() is not None and threading.current_thread().name, range(6)))
    assert len(set(names)) == 3


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_comes_after_the_results_before_it(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    def read(item):
        if item == 5:
            raise DataError("no image")
        return item

    results = map_in_threads(read, range(9))
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(DataError, match="no image"):
        next(results)
