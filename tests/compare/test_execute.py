"""Runs are executed once, by the first process that locks them; a failed run does not stop the others."""

import os
import sys
import textwrap

import pytest

from tests.compare.runs import finish
from vitrail.compare import execute as module
from vitrail.compare import load_suite, plan
from vitrail.compare.execute import execute
from vitrail.compare.pools import LocalPool, RayPool
from vitrail.errors import VitrailError
from vitrail.extras import importlib as extras_importlib
from vitrail.runs.suite import SuiteFolder


class _Pool:
    """Carries a run out at once, in this process."""

    def __init__(self, runs, size=2, failing=(), order=None):
        self.size, self.failing, self.most, self.going = size, set(failing), 0, 0
        self.by_recipe = {str(SuiteFolder("runs/suites/suite").recipe(r.identity).resolve()): r for r in runs}
        self.started = [] if order is None else order

    def start(self, job):
        run = self.by_recipe[job.command[-2]]
        self.started.append(run)
        self.going += 1
        self.most = max(self.most, self.going)
        if run.identity in self.failing:
            job.log.write_text("something\nvitrail: error: the loss became nan; lower it\nmore\n")
            return 1
        if not run.folder.recipe.is_file():
            finish(run)
        return 0

    def ended(self, handle):
        self.going -= 1
        return handle

    def stop(self, handles):
        assert list(handles) == []


def test_what_is_missing_is_carried_out_once(place, monkeypatch):
    monkeypatch.setattr(module, "_POLL", 0)
    suite = load_suite(place())
    runs = plan(suite)
    finish(runs[3])
    said = []
    pool = _Pool(runs)
    assert execute(runs, SuiteFolder(suite.dir), pool, said.append) == []
    assert [r.identity for r in pool.started] == [r.identity for i, r in enumerate(runs) if i != 3]
    assert pool.most == 2
    assert said[-1].startswith("[5/5] slow, seed 1: accuracy 0.")
    # And nothing at all when all is done; another suite with equal runs begins none of these.
    assert execute(runs, SuiteFolder(suite.dir), _Pool(runs, order=(again := [])), said.append) == []
    assert again == []


def test_a_failure_is_reported_and_stops_nobody(place, monkeypatch):
    monkeypatch.setattr(module, "_POLL", 0)
    suite = load_suite(place())
    runs = plan(suite)
    pool = _Pool(runs, failing={runs[1].identity})
    (failure,) = execute(runs, SuiteFolder(suite.dir), pool, lambda _: None)
    assert failure.run is runs[1]
    assert failure.error == "the loss became nan; lower it"
    assert failure.log.is_file()
    assert [run.state() for run in runs] == ["done", "run", *["done"] * 4]


def test_what_needs_a_failed_run_is_not_begun(place, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_POLL", 0)
    text = (tmp_path / "base.yaml").read_text()
    (tmp_path / "pre.yaml").write_text(text + "task: {name: mae, decoder_dim: 32}\n")
    variants = {"with": {"model.weights": "pretrained:mae"}, "without": {}}
    suite = load_suite(place(pretrained={"mae": {"recipe": "pre.yaml"}}, variants=variants, seeds=1))
    runs = plan(suite)
    pool = _Pool(runs, failing={runs[0].identity})
    failures = execute(runs, SuiteFolder(suite.dir), pool, lambda _: None)
    assert [(f.run.variant, f.error.split(" ")[0]) for f in failures] == [("mae", "the"), ("with", "it")]
    assert [r.variant for r in pool.started] == ["mae", "without"]


def test_a_run_that_another_trains_is_waited_for(place, monkeypatch):
    monkeypatch.setattr(module, "_POLL", 0)
    suite = load_suite(place(variants={"a": {}, "b": {"model.depth": 1}}, seeds=1))
    runs = plan(suite)
    said = []
    elsewhere = [True]
    original = type(runs[0]).state
    monkeypatch.setattr(
        type(runs[0]), "state", lambda run: "elsewhere" if run.variant == "a" and elsewhere[0] else original(run)
    )

    def sleep(_):
        if runs[1].state() == "done" and elsewhere[0]:
            finish(runs[0])
            elsewhere[0] = False

    monkeypatch.setattr(module.time, "sleep", sleep)
    pool = _Pool(runs)
    assert execute(runs, SuiteFolder(suite.dir), pool, said.append) == []
    assert [r.variant for r in pool.started] == ["b"]
    assert any(line.startswith("waiting: a, seed 0") for line in said)
    assert said[-1].endswith("(by another process)")


def test_processes_have_their_share_of_the_cores(place, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import os, sys
        print("threads", os.environ["OMP_NUM_THREADS"])
        if "SIGKILL" in os.environ.get("HOW", ""):
            os.kill(os.getpid(), 9)
        sys.exit(f"vitrail: error: no {sys.argv[2]}")
    """)
    )
    suite = load_suite(place(variants={"a": {}}, seeds=2))
    runs = plan(suite)
    folder = SuiteFolder(suite.dir)
    failures = execute(runs, folder, LocalPool(2), lambda _: None, python=(sys.executable, str(program)))
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert [f.error for f in failures] == ["no none", "no none"]
    assert f"threads {share}" in failures[0].log.read_text()
    os.environ["HOW"] = "SIGKILL"
    try:
        failures = execute(runs[:1], folder, LocalPool(1), lambda _: None, python=(sys.executable, str(program)))
    finally:
        del os.environ["HOW"]
    assert failures[0].error == "killed by signal 9"


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(extras_importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VitrailError, match=r"ray is not installed; install it with `pip install 'vitrail\[ray\]'`"):
        RayPool("local", 2)
