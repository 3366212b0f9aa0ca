"""Memory of an export's candidates, measured in a process of its own, or the reason why it is not."""

import multiprocessing
import os
import signal

import pytest

from vitrail.deploy.export import measure
from vitrail.deploy.export.budget import Budget
from vitrail.deploy.export.candidates import Built, Variant
from vitrail.deploy.export.measure import EAGER, Measured
from vitrail.errors import RunError


def _raise(*_):
    raise RunError("the engine cannot be loaded\nwith a long explanation")


@pytest.fixture
def candidate(tmp_path):
    return Built(Variant("onnx", "fp32"), tmp_path, {}, None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that starts at once is a forked one")
@pytest.mark.parametrize(
    ("does", "wanted"),
    [
        (lambda *_: 12345, 12345),
        (lambda *_: None, "the memory of a process cannot be read on this system"),
        (_raise, "the engine cannot be loaded"),
        (
            lambda *_: os.kill(os.getpid(), signal.SIGKILL),
            "its process was killed by SIGKILL, most likely out of memory",
        ),
        (lambda *_: os.kill(os.getpid(), signal.SIGTERM), "its process was killed by SIGTERM"),
        (lambda *_: os._exit(1), "its process ended with exit code 1; a script that exports needs `if __name__"),
    ],
)
def test_memory_or_the_reason_why_there_is_none(candidate, monkeypatch, does, wanted):
    forked = multiprocessing.get_context("fork")
    monkeypatch.setattr(measure.multiprocessing, "get_context", lambda _: forked)
    monkeypatch.setattr(measure, "_memory_of", does)
    found = measure._peak_memory(candidate, {}, 1)
    assert type(found) is type(wanted)
    assert str(found).startswith(str(wanted))


def test_memory_is_left_out_where_the_budget_is_spent(candidate, monkeypatch):
    now = [0.0]

    def peak(*_):
        now[0] += 7
        return 5

    monkeypatch.setattr(measure, "_peak_memory", peak)
    budget = Budget(10, lambda: now[0])
    names = [f"{engine} fp32" for engine in ("openvino", "onnx", "torch")]
    built = [Built(Variant(*name.split()), candidate.folder, {}, None) for name in names]
    timed = {name: Measured((), 1, None, "fp32", {}) for name in (EAGER, *names)}
    found = measure.add_memory(timed, built, {}, 1, budget)
    assert [found[name].memory for name in names] == [5, None, None]
    assert found[names[2]].no_memory.endswith("--budget 10 s is spent: measurement of memory (about 7 s)")
    assert len(budget.left_out) == 1
    assert found[EAGER] == timed[EAGER]
    assert measure.add_memory(timed, built[:1], {}, 1, budget)[names[0]].no_memory == "there is no other candidate"
