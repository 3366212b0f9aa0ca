"""Large buffers stay with the process; the cores it may use."""

import os
import subprocess
import sys

import pytest

from vitrail.machine import keep_large_buffers

FAULTS = """
import platform, resource, sys
import torch
from vitrail.machine import keep_large_buffers
done = keep_large_buffers() if sys.argv[1] == "keep" else True
torch.set_num_threads(1)
for repeat in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12_000_000)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(int(done), faults)
"""


def _faults(word):
    environment = {"PATH": "/usr/bin:/bin"}
    out = subprocess.run(
        [sys.executable, "-c", FAULTS, word], capture_output=True, text=True, check=True, env=environment
    )
    return [int(value) for value in out.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_pages_are_not_fetched_again():
    done, kept = _faults("keep")
    if not done:
        pytest.skip("another allocator than glibc's")
    assert kept < 100 < _faults("plain")[1]


def test_what_the_user_tuned_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_large_buffers()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be held to a core here")
def test_cores_are_those_that_the_process_may_use():
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from vitrail.machine import cores; print(cores())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "1"
