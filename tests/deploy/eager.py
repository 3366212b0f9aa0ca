"""Exports that run their graph in eager mode, for tests of all that surrounds tracing, conversion and engines."""

import contextlib
import importlib
from collections.abc import Iterator

import pytest

from tests.deploy.exporting import needs_openvino
from vitrail.deploy.export import candidates, measure, sizes
from vitrail.deploy.export.measure import Measured
from vitrail.engines import load
from vitrail.engines.load import ENGINES


class EagerEngine:
    """The graph itself in place of an engine's model of it, in every precision."""

    def __init__(self, graph, precision):
        self.graph, self.precision = graph, precision

    def operations(self):
        return {}

    def run(self, inputs):
        return self.graph.compute(inputs)


# Graphs of the process; a model file holds the index of its own.
_GRAPHS = []


def _leave_out_memory(patch):
    patch.setattr(measure, "_peak_memory", lambda *_: "it is not measured in this test")


def _patch_engines(patch):

    def convert(program, graph, engine, folder, facts):
        (folder / ENGINES[engine]).write_text(str(len(_GRAPHS)))
        _GRAPHS.append(graph.eval())

    def open_engine(folder, engine, precision, *_):
        return EagerEngine(_GRAPHS[int((folder / ENGINES[engine]).read_text())], precision)

    _leave_out_memory(patch)
    module = importlib.import_module("vitrail.deploy.export.export")
    patch.setattr(module, "trace", lambda graph, *_: graph)
    # Threads that wait for each other take longer than these models compute.
    patch.setattr(module, "cores", lambda: 1)
    patch.setattr(candidates, "convert", convert)
    # It is as fast as the run, and no speed is tested.
    patch.setattr(Measured, "slower", "")
    patch.setattr(measure, "_MOST_CALLS", 2)
    for module in (candidates, load, sizes):
        patch.setattr(module, "open_engine", open_engine)


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Memory of candidates is not measured, which takes a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        _leave_out_memory(patch)
        yield


@contextlib.contextmanager
def run_eagerly() -> Iterator[None]:
    """All engines run the graph. No package of an engine is needed."""
    with pytest.MonkeyPatch.context() as patch:
        _patch_engines(patch)
        yield


@pytest.fixture
def eager_engines(monkeypatch):
    """Run the graph in place of all engines; undone with the patches of the test itself, the last one first."""
    _patch_engines(monkeypatch)


@pytest.fixture(params=["eager", pytest.param("openvino", marks=[needs_openvino, pytest.mark.slow])])
def engines(request, monkeypatch):
    """Run the graph in place of all engines, and among the slow tests OpenVINO."""
    if request.param == "eager":
        _patch_engines(monkeypatch)
