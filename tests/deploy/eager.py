"""Exports that run their graph in eager mode, for tests of all that surrounds tracing, conversion and engines."""

import importlib

import pytest

from vitrail.deploy.export import candidates, measure
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


@pytest.fixture
def eager_engines(monkeypatch):
    """All engines run the graph; a model file holds its number. No package of an engine is needed."""
    graphs = []

    def convert(program, graph, engine, folder, facts):
        (folder / ENGINES[engine]).write_text(str(len(graphs)))
        graphs.append(graph.eval())

    def open_engine(folder, engine, precision, *_):
        return EagerEngine(graphs[int((folder / ENGINES[engine]).read_text())], precision)

    monkeypatch.setattr(importlib.import_module("vitrail.deploy.export.export"), "trace", lambda graph, *_: graph)
    monkeypatch.setattr(candidates, "convert", convert)
    # It is as fast as the run, and no speed is tested.
    monkeypatch.setattr(Measured, "slower", "")
    monkeypatch.setattr(measure, "_MOST_CALLS", 8)
    monkeypatch.setattr(candidates, "open_engine", open_engine)
    monkeypatch.setattr(load, "open_engine", open_engine)
