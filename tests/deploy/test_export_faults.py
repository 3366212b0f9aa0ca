"""Faulty exports are refused: by the gate, by the check of recorded outputs, or by digests."""

import copy
import dataclasses
import importlib
import json
import shutil

import numpy as np
import pytest
import torch

from tests.deploy.eager import EagerEngine, run_eagerly
from tests.deploy.eager import eager_engines as eager_engines
from tests.deploy.exporting import QUICK, photographs, record, train
from vitrail.cli.main import main
from vitrail.deploy.export import candidates
from vitrail.deploy.export.artefact import LARGEST_DIFFERENCE, check_bounds
from vitrail.deploy.export.graph import ExportGraph
from vitrail.deploy.export.kinds import kind_of
from vitrail.deploy.export.measure import Measured
from vitrail.deploy.export.pixels import ResizeStored
from vitrail.engines.load import ENGINES, load_export
from vitrail.errors import RunError, ShapeError
from vitrail.runs import load_trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    return train(photographs(root / "pictures"), root / "run", epochs=3)


def export(run, out, *words):
    return main(["export", str(run), "--out", str(out), *QUICK, *map(str, words)])


def of_forward(change):
    """A fault in the outputs of the graph."""

    def apply(monkeypatch):
        inner = ExportGraph.forward
        monkeypatch.setattr(ExportGraph, "forward", lambda self, *x: change(self, inner, x))

    return apply


def of_resize(change):
    """A fault in the entry of photographs alone."""

    def apply(monkeypatch):
        inner = ResizeStored.forward
        monkeypatch.setattr(ResizeStored, "forward", lambda self, x: change(inner, self, x))

    return apply


def _squashed(inner, resize, x):
    object.__setattr__(resize.stored, "how", "squash")
    return inner(resize, x)


def _aliased(inner, resize, x):
    height, width = x.shape[2:]
    side = min(height, width)
    x = x[:, :, (height - side) // 2 :, (width - side) // 2 :][:, :, :side, :side]
    return torch.nn.functional.interpolate(x.float(), resize.stored.size, mode="nearest") / 255


def _with_mean(graph, inner, x):
    return inner(graph, *((y.float() * 0.97 + 4).to(y.dtype) for y in x))


def _turn_classes(graph, inner, x):
    outputs = inner(graph, *x)
    return {**outputs, "logits": outputs["logits"].flip(1), "probabilities": outputs["probabilities"].flip(1)}


FAULTS = {
    "another mean": of_forward(_with_mean),
    "swapped bands": of_forward(lambda graph, inner, x: inner(graph, *(y.flip(1) for y in x))),
    "swapped classes": of_forward(_turn_classes),
    "swapped bands of photographs": of_resize(lambda inner, resize, x: inner(resize, x.flip(1))),
    "squashed photographs": of_resize(_squashed),
    "photographs without antialiasing": of_resize(_aliased),
    "photographs of another range": of_resize(lambda inner, resize, x: inner(resize, x) * 0.9),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.fast_cases("another mean", "photographs without antialiasing", "photographs of another range")
@pytest.mark.usefixtures("eager_engines")
def test_the_gate_refuses_a_faulty_graph(run, tmp_path, monkeypatch, capsys, fault):
    FAULTS[fault](monkeypatch)
    assert export(run, tmp_path / "out") == 1
    assert "no candidate may be written" in capsys.readouterr().err
    assert not (tmp_path / "out" / "1").exists()


@pytest.mark.usefixtures("eager_engines")
def test_a_correct_export_is_compared_on_files_and_on_test_images(run, tmp_path, capsys):
    assert export(run, tmp_path / "out") == 0
    out = capsys.readouterr().out
    found = record(tmp_path / "out")
    files = found["candidates"][0]["verdict"]["photographs"]
    assert (files["images"], files["misses"]) == (16, 0)
    assert files["difference"] < 0.005
    assert "16 of 16 images as other programs read them" in out
    test = found["test"]
    assert test["images"] == 16
    assert test["original"] == test["export"]
    assert (test["difference"][0], test["agreement"]) == (0, 1)
    assert "accuracy, export minus run" in out
    assert main(["evaluate", str(run)]) == 0
    assert f"accuracy {test['original'][0]:.4f}" in capsys.readouterr().out
    assert found["decoding"]["jpeg"].startswith("in full")


@pytest.fixture(scope="module")
def correct(run):
    with run_eagerly():
        assert export(run, run.parent / "out") == 0
    return run.parent / "out"


@pytest.fixture
def written(correct, tmp_path, eager_engines):
    """A copy of a correct export."""
    return shutil.copytree(correct, tmp_path / "out")


@pytest.mark.parametrize("file", [ENGINES["torch"], "check.npz"])
def test_an_edited_file_is_refused(written, file, capsys):
    (written / "1" / file).write_bytes((written / "1" / file).read_bytes() + b" ")
    with pytest.raises(RunError, match="is not the exported file"):
        load_export(written)
    assert main(["export", "--check", str(written)]) == 1
    capsys.readouterr()


def _set(*path, value):
    def change(record):
        *parents, last = path
        for key in parents:
            record = record[key]
        record[last] = value(record[last]) if callable(value) else value

    return change


EDITS = {
    "classes": _set("model", "classes", value=lambda names: names[::-1]),
    "mean": _set("model", "streams", "image", "mean", value=[0.0, 0.0, 0.0]),
    "order of bands": _set("inputs", 0, "bands", value=lambda names: names[::-1]),
    "bound of the check": _set("check", "bounds", "logits", value=1e9),
    "precision": _set("precision", value="bf16"),
    "digest": _set("files", ENGINES["torch"], value="0" * 64),
    "resize": _set("preparation", "image", "how", value="squash"),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.fast_cases("classes", "resize")
def test_an_edited_record_is_refused(written, edit, capsys):
    edited = record(written)
    EDITS[edit](edited)
    (written / "1" / "export.json").write_text(json.dumps(edited, indent=2))
    with pytest.raises(RunError, match=r"export\.json was edited"):
        load_export(written)
    assert main(["export", "--check", str(written)]) == 1
    capsys.readouterr()


def test_the_bounds_of_the_check_follow_the_differences_from_the_run(written):
    check = record(written)["check"]
    assert check["bounds"].keys() == check["differences_from_run"].keys() == {"logits", "probabilities", "embedding"}
    assert set(check["bounds"].values()) == {2e-4}
    assert check_bounds({"logits": 0.02, "embedding": 0.01}, 0.03, 1e-4) == pytest.approx(
        {"logits": 0.06, "embedding": 0.03}
    )
    assert check_bounds({"logits": 0.02, "embedding": 1e-7}, 0.01, 1e-4) == {"logits": 0.04, "embedding": 2e-4}
    assert check_bounds({"logits": 0.4, "embedding": 0.01}, 0.7, 1e-4) == pytest.approx(
        {"logits": LARGEST_DIFFERENCE, "embedding": 0.035}
    )


def _destroyed(graph):
    """A copy whose last layer, but for rounding, has lost its weights."""
    graph = copy.deepcopy(graph)
    for name, parameter in graph.model.named_parameters():
        if name.startswith("head") and parameter.ndim > 1:
            parameter.data.mul_(0.01)
    return graph


@pytest.mark.parametrize("destroyed", [False, True])
def test_reduced_precision_with_a_destroyed_layer_is_refused(
    run, tmp_path, monkeypatch, capsys, eager_engines, destroyed
):
    inner = candidates.open_engine

    def open_engine(folder, engine, precision, *more):
        opened = inner(folder, engine, precision, *more)
        return EagerEngine(_destroyed(opened.graph), precision) if destroyed else opened

    monkeypatch.setattr(candidates, "open_engine", open_engine)
    words = ["--format", "openvino", "--precision", "bf16", "--agreement", "0.8", "--max-drop", "0.2", "--include"]
    assert main(
        ["export", str(run), "--out", str(tmp_path / "out"), "--budget", "0s", "--threads", "1", *words]
    ) == int(destroyed)
    text = capsys.readouterr()
    assert ("no candidate may be written" in text.err) == destroyed
    assert (tmp_path / "out" / "1").exists() != destroyed


@pytest.mark.usefixtures("eager_engines")
def test_nothing_slower_than_the_run_is_written_unasked(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Measured, "slower", "a call takes 1.40 times that of the run (at least 1.20)")
    module = importlib.import_module("vitrail.deploy.export.export")
    monkeypatch.setattr(module, "list_variants", lambda *_: [candidates.Variant("torch", "fp32")])
    words = [
        "export",
        str(run),
        "--out",
        str(tmp_path / "out"),
        "--precision",
        "fp32",
        "--budget",
        "0s",
        "--threads",
        "1",
    ]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "every candidate is slower than the run itself: of the fastest, torch fp32, a call takes 1.40 times" in err
    assert "write it all the same with --format " in err
    assert not (tmp_path / "out" / "1").exists()
    assert main([*words, "--format", "torch"]) == 0
    assert "slower than the run itself: a call takes 1.40 times" in capsys.readouterr().out


def test_bands_of_other_names_are_refused(written):
    export = load_export(written)
    pixels = np.zeros((1, 3, 16, 16), np.uint8)
    wanted = export.run({"image_resized": pixels})
    found = export.run({"image_resized": pixels}, bands={"image_resized": ("red", "green", "blue")})
    assert np.array_equal(found["logits"], wanted["logits"])
    for names in (("blue", "green", "red"), ("red", "green"), ("red", "green", "nir")):
        with pytest.raises(ShapeError, match="has the bands red, green, blue, in this order, got"):
            export.run({"image_resized": pixels}, bands={"image_resized": names})


@pytest.mark.usefixtures("eager_engines")
def test_a_run_whose_files_cannot_be_prepared_in_the_graph_says_why(run, tmp_path, monkeypatch, capsys):
    module = importlib.import_module("vitrail.deploy.export.export")
    kind, reason = kind_of(load_trained(run).card), "the range of the stored values is not known"
    monkeypatch.setattr(module, "kind_of", lambda _: dataclasses.replace(kind, describe=lambda *_: ({}, reason)))
    assert export(run, tmp_path / "out") == 0
    assert "at the model's size alone: the range of the stored values is not known" in capsys.readouterr().out
    found = record(tmp_path / "out")
    assert {entry["entry"] for entry in found["inputs"]} == {"resized"}
    assert found["candidates"][0]["verdict"]["photographs"] is None
