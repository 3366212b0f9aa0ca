"""Candidates of an export: what is built, measured, judged, and written."""

import importlib
import shutil

import numpy as np
import pytest

from tests.deploy.eager import EagerEngine
from tests.deploy.eager import eager_engines as eager_engines
from tests.deploy.exporting import LONG, export, needs_openvino, record, skip_without
from tests.images import save_image
from vitrail.cli.recipes import load_run_recipe
from vitrail.data import open_data
from vitrail.deploy.export import candidates, measure
from vitrail.deploy.export.candidates import list_variants
from vitrail.deploy.export.decisions import DecisionOutputs, fit_decisions
from vitrail.deploy.export.measure import Speed, time_alternately
from vitrail.deploy.export.verdict import Verdict
from vitrail.deploy.exported import load_exported, to_inputs
from vitrail.engines import load_export
from vitrail.errors import ConfigError
from vitrail.evaluate.calibration import fit_temperature
from vitrail.runs.trained import load_classifier


def _images(run):
    card = load_classifier(run).card
    return open_data(card.as_trained(load_run_recipe(run / "recipe.yaml").data), card.img_size)


def test_variants_go_from_the_safest_to_the_riskiest():
    names = [variant.name for variant in list_variants()]
    assert names == ["openvino fp32", "onnx fp32", "torch fp32", "openvino bf16", "openvino int8", "onnx int8"]
    assert [variant.name for variant in list_variants("onnx")] == ["onnx fp32", "onnx int8"]
    assert [variant.name for variant in list_variants("inductor")] == ["inductor fp32"]
    for words in (("tensorrt",), ("auto", "int4"), ("onnx", "bf16")):
        with pytest.raises(ConfigError):
            list_variants(*words)


def test_calls_alternate():
    calls = []
    times = time_alternately({name: lambda name=name: calls.append(name) for name in "ab"}, 0.0)
    assert "".join(calls) == "aabb" + "abba" * 4
    assert {name: len(own) for name, own in times.items()} == {"a": 8, "b": 8}
    speed = Speed.of(8, times["a"])
    assert (speed.calls, speed.best) == (8, min(times["a"]))
    assert speed.p50 <= speed.p99
    assert speed.images_per_second == 8 / speed.p50


@pytest.mark.parametrize(("after", "turns"), [(0, 10), (13, 13), (1000, 20)])
def test_calls_go_on_until_something_is_decided_for_twice_the_time_at_most(monkeypatch, after, turns):
    clock = iter(range(1000))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    # The clock strikes three times a turn of one step.
    times = time_alternately({"a": lambda: None}, 29, lambda times: len(times["a"]) >= after)
    assert len(times["a"]) == turns


@pytest.mark.slow
@skip_without("onnx")
@skip_without("openvino")
def test_the_fastest_that_passes_is_written(run, tmp_path, capsys):
    for seed in range(3):
        save_image(tmp_path / "more" / f"{seed}.png", seed=seed, level=90)
    shutil.copy(next((run.parent / "pictures" / "train").rglob("*.png")), tmp_path / "more" / "known.png")
    assert export(run, tmp_path / "out", "--images", tmp_path / "more", "--include", "embedding", "heatmap", *LONG) == 0
    text = capsys.readouterr().out
    assert "1 of --images are left out: the run was made from them" in text
    found = record(tmp_path / "out")
    rows = {row["name"]: row for row in found["candidates"]}
    assert set(rows) == {variant.name for variant in list_variants()}
    (chosen,) = (row for row in rows.values() if row["chosen"])
    assert chosen["name"] == f"{found['engine']} {found['precision']}"
    fp32 = [row for name, row in rows.items() if name.endswith("fp32")]
    assert all(row["verdict"]["status"] == "passed" for row in fp32)
    assert all(row["verdict"]["images"] == 8 + 3 for row in fp32)
    assert {s["output"] for s in chosen["verdict"]["similarities"]} == {"embedding", "heatmap of image"}
    assert chosen["images_per_second"] == max(row["images_per_second"] for row in fp32)
    # 11 images cannot show an agreement of 99 %.
    assert rows["openvino bf16"]["verdict"]["status"] != "passed"
    for row in fp32:
        assert row["measured"]["bytes"] > 0
        assert [speed["batch"] for speed in row["measured"]["speeds"]] == [1, 8]
        assert row["measured"]["memory_bytes"] > 0
    assert rows["openvino fp32"]["measured"]["operations"].keys() == {"fp32"}
    assert load_export(tmp_path / "out").engine.precision == "fp32"


@pytest.mark.usefixtures("eager_engines")
def test_a_refused_precision_writes_nothing(run, tmp_path, capsys):
    assert export(run, tmp_path / "out", "--precision", "bf16") == 1
    assert "no candidate may be written" in capsys.readouterr().err
    assert not (tmp_path / "out" / "1").exists()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("eager_engines")
def test_an_engine_that_computes_otherwise_is_refused(run, tmp_path, monkeypatch, capsys):
    inner = EagerEngine.run
    monkeypatch.setattr(
        EagerEngine, "run", lambda self, inputs: {k: v * np.float32(1.001) for k, v in inner(self, inputs).items()}
    )
    assert export(run, tmp_path / "out", "--format", "openvino", "--precision", "fp32") == 1
    assert "logits differ by" in capsys.readouterr().err


@pytest.mark.usefixtures("eager_engines")
def test_a_failed_conversion_is_a_line_of_the_table(run, tmp_path, monkeypatch, capsys):
    inner = candidates.convert

    def convert(program, graph, engine, folder, facts):
        if engine != "torch":
            raise RuntimeError(f"{engine} lacks an operator\nwith a long explanation")
        inner(program, graph, engine, folder, facts)

    monkeypatch.setattr(candidates, "convert", convert)
    assert export(run, tmp_path / "out") == 0
    found = record(tmp_path / "out")
    assert found["engine"] == "torch"
    reasons = {row["name"]: row["verdict"]["reason"] for row in found["candidates"]}
    assert reasons["onnx fp32"] == "onnx lacks an operator"
    assert reasons["openvino bf16"] == reasons["openvino fp32"] == "openvino lacks an operator"
    capsys.readouterr()


def check_decisions(run, out, include):
    """The export's decisions are those fitted on the validation images; its outputs are those asked for."""
    loaded = load_exported(out).export
    assert loaded.check().keys() <= {"logits", "probabilities", "embedding", "ood_score"}
    images = _images(run)
    trained = load_classifier(run)
    validation = images.batch(images.indices("val"))
    logits, embedding = (x.numpy() for x in trained.classify(validation))
    training = images.batch(images.indices("train"))
    train = trained.classify(training)[1].numpy(), training["target"].numpy()
    decisions = fit_decisions(logits, validation["target"].numpy(), embedding, train if "ood" in include else None)
    assert loaded.record["decisions"]["temperature"] == pytest.approx(decisions.temperature, rel=1e-4)
    found = loaded.run(to_inputs(loaded.record, training))
    wanted = DecisionOutputs(decisions)(*trained.classify(training))
    assert set(found) == {"logits", "probabilities"} | {
        name for key in include for name in {"ood": ("ood_score", "ood_p_value"), "sets": ("set",)}.get(key, (key,))
    }
    for name, values in wanted.items():
        if name in found:
            np.testing.assert_allclose(found[name], values.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("eager_engines")
@pytest.mark.parametrize("include", [("sets",), ("sets", "ood", "embedding")])
def test_decisions_are_those_fitted_on_the_validation_images(run, tmp_path, include):
    assert export(run, tmp_path / "out", "--format", "torch", "--include", *include) == 0
    check_decisions(run, tmp_path / "out", include)


@pytest.mark.slow
def test_decisions_are_computed_by_an_engine(run, tmp_path):
    include = ("sets", "ood", "embedding")
    assert export(run, tmp_path / "out", "--format", "torch", "--include", *include) == 0
    check_decisions(run, tmp_path / "out", include)


@pytest.mark.slow
@needs_openvino
def test_reduced_precision_gets_decisions_of_its_own(run, tmp_path, monkeypatch, capsys):
    module = importlib.import_module("vitrail.deploy.export.export")
    monkeypatch.setattr(module, "judge", lambda *_: Verdict("passed", "in this test"))
    assert export(run, tmp_path / "out", "--precision", "bf16", "--include", "sets", "ood") == 0
    loaded = load_export(tmp_path / "out")
    images = _images(run)
    batch = images.batch(images.indices("val"))
    found = loaded.run(to_inputs(loaded.record, batch))
    # The graph with decisions is fused in another way, which bf16 rounds differently.
    temperature = fit_temperature(found["logits"], batch["target"].numpy()) or 1.0
    assert loaded.record["decisions"]["temperature"] == pytest.approx(temperature, rel=0.05)
    # Each validation image is one of the reference: its rank among their scores.
    ranks = (found["ood_score"][None] >= found["ood_score"][:, None]).sum(axis=1)
    np.testing.assert_allclose(found["ood_p_value"], (ranks + 1) / 9, atol=1.5 / 9)
    capsys.readouterr()


@pytest.mark.usefixtures("eager_engines")
def test_a_model_that_cannot_be_built_with_its_own_decisions_is_refused(run, tmp_path, monkeypatch, capsys):
    module = importlib.import_module("vitrail.deploy.export.export")
    monkeypatch.setattr(module, "judge", lambda *_: Verdict("passed", "in this test"))
    embedded, inner_embed = [], module.embed
    monkeypatch.setattr(module, "embed", lambda *args: embedded.append(args[2]) or inner_embed(*args))
    inner = candidates.convert

    def convert(program, graph, engine, folder, facts):
        if "decided" in folder.parts:
            raise RuntimeError("an operator is missing\nwith a long explanation")
        inner(program, graph, engine, folder, facts)

    monkeypatch.setattr(candidates, "convert", convert)
    assert export(run, tmp_path / "out", "--precision", "bf16", "--include", "sets", "ood") == 1
    found = capsys.readouterr().err
    assert "openvino bf16 with decisions of its own cannot be built" in found
    assert "an operator is missing; export with --precision fp32" in found
    assert list((tmp_path / "out").iterdir()) == []
    # Both fits share the embeddings of the training and of the validation images.
    assert len(embedded) == 2
