"""Quantisation to int8: what it leaves alone, how variants are ranked, and that bad layers are found and restored."""

import importlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.deploy.exporting import VIT as WORDS
from tests.deploy.exporting import skip_without, train
from tests.engines.test_signal_stack import installed
from tests.images import make_folder
from tests.tiers import fast_first
from vitrail.cli.main import main
from vitrail.deploy.export import calibrate
from vitrail.deploy.export.budget import Budget
from vitrail.deploy.export.convert import trace
from vitrail.deploy.export.graph import ExportGraph
from vitrail.deploy.export.quantize import (
    Change,
    QuantizeSettings,
    Scheme,
    _Quantization,
    _Variant,
    _with_empty,
    quantize,
)
from vitrail.deploy.export.scope import (
    Group,
    merge_neighbours,
    names_outside,
    quantized_groups,
    without_quantizers,
)
from vitrail.deploy.export.stored import StoredPixels
from vitrail.engines import load_export
from vitrail.engines.openvino import OpenVINOEngine
from vitrail.errors import ConfigError
from vitrail.models.registry import create_model, list_families
from vitrail.runs.trained import ModelCard, StreamCard, TrainedModel

pytestmark = skip_without("openvino", "nncf")

SIZE = (16, 16)
VIT = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}
HVT = {
    **{name: value for name, value in list_families()["hvt"].test_config.items() if name != "img_size"},
    "spectral_chans": 2,
}


def trained(family, settings, spectral="none"):
    """A model with weights that make probabilities uneven; no training."""
    torch.manual_seed(0)
    model = create_model(family, img_size=SIZE, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1))
    streams = {
        stream.name: StreamCard(tuple(f"{stream.name}{i}" for i in range(stream.chans)), (0.4,) * stream.chans,
                                (0.3,) * stream.chans, SIZE)
        for stream in model.streams
    }  # fmt: skip
    card = ModelCard(family, {}, tuple("abcde"), streams, spectral=spectral)
    return TrainedModel(model, card.normalization(), card)


def convert(model, stored=None, include=("embedding",)):
    openvino = pytest.importorskip("openvino")
    graph = ExportGraph(model, dict.fromkeys(model.card.streams, torch.uint8), stored or {}, include)
    made = openvino.convert_model(trace(graph))
    made.reshape(dict(enumerate([[-1 if dim is None else dim for dim in entry.shape] for entry in graph.inputs])))
    for port, name in zip(made.inputs, [entry.name for entry in graph.inputs], strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(made.outputs, graph.outputs, strict=True):
        port.get_tensor().set_names({name})
    return made


def pixels(count, seed, chans=3):
    return np.random.default_rng(seed).integers(0, 256, (count, chans, *SIZE)).astype(np.uint8)


@pytest.fixture(scope="module", params=fast_first(["pixels", "photographs"], 1))
def converted(request):
    """A ViT with an input for resized pixels; in slow tests also with photographs and a heatmap."""
    if request.param == "pixels":
        return convert(trained("vit", VIT))
    stored = {"image": StoredPixels(("r", "g", "b"), torch.uint8, (0.0,), (255.0,), "levels", "crop", SIZE)}
    return convert(trained("vit", VIT), stored, ["embedding", "heatmap"])


def quantize_pixels(model, budget):
    """Also return the lines that are reported."""
    lines = []
    found = quantize(
        model,
        {port.get_any_name(): pixels(4, 0) for port in model.inputs},
        {"image_resized": pixels(12, 1)},
        lambda change: change.mean < 1,
        settings=QuantizeSettings(smooth=(0.95,), budget=budget, threads=1),
        report=lines.append,
    )
    return found, lines


@pytest.fixture(scope="module")
def quantized(converted):
    """With the fast bias correction alone, since there is no time for the full one."""
    before = installed()
    made = quantize_pixels(converted, budget=0)
    assert installed() == before
    return made


def kinds(model, names):
    return [node.get_type_name() for node in model.get_ordered_ops() if node.get_friendly_name() in set(names)]


def weighted(model):
    return [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution"
        or (node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Constant")
    ]


def test_the_layers_of_the_network_alone_are_quantised(converted):
    outside = names_outside(converted)
    # Patches, four layers a block, and the head; the pipeline's own products stay.
    inside = [name for name in weighted(converted) if name not in outside]
    assert len(inside) == 1 + 4 + 1
    assert "Softmax" in kinds(converted, outside)
    assert not {"Parameter", "Result"} & set(kinds(converted, outside))


@pytest.mark.slow
def test_edges_are_preprocessing():
    model = trained("hvt", {**HVT, "num_classes": 5}, spectral="edges")
    made = convert(model)
    outside = set(names_outside(made))
    convolutions = [node for node in made.get_ordered_ops() if node.get_type_name() == "Convolution"]
    sobel = [node for node in convolutions if list(node.input_value(1).get_shape()) == [2, 1, 3, 3]]
    assert len(sobel) == 1
    assert sobel[0].get_friendly_name() in outside
    assert not outside.intersection(node.get_friendly_name() for node in convolutions if node not in sobel)


def test_the_quantised_model_has_int8_operations_and_near_probabilities(converted, quantized):
    found, lines = quantized
    assert found.enough
    assert not found.restored
    assert found.operations["int8"] >= 1 + 4
    assert found.change.images == 12
    assert 0 < found.change.mean < 0.1
    assert any("int8 operations" in line for line in lines)
    engine = OpenVINOEngine(found.model, "int8", threads=1, fixed_sizes=False)
    images, none = pixels(3, 2), np.zeros((0, 3, 1, 1), np.uint8)
    if len(converted.inputs) == 1:
        fp32 = OpenVINOEngine(converted, "fp32", threads=1).run({"image_resized": images})
        outputs = engine.run({"image_resized": images})
        assert 0 < np.abs(outputs["probabilities"] - fp32["probabilities"]).mean() < 0.1
        return
    # Photographs, through the same layers: a picture of the model's size gives what resized pixels give.
    resized = engine.run({"image": none, "image_resized": images})
    whole = engine.run({"image": images, "image_resized": np.zeros((0, 3, *SIZE), np.uint8)})
    np.testing.assert_allclose(whole["probabilities"], resized["probabilities"], atol=1e-6)


def test_inputs_without_images_are_empty():
    from openvino import Model
    from openvino import opset13 as operations

    images, resized = operations.parameter([-1, 3, -1, -1], np.uint8), operations.parameter([-1, 3, 16, 16], np.float32)
    model = Model([operations.relu(resized), operations.convert(images, np.float32)], [images, resized])
    for port, name in zip(model.inputs, ("image", "image_resized"), strict=True):
        port.get_tensor().set_names({name})
    given = pixels(2, 0)
    for name, other, shape, dtype in (
        ("image", "image_resized", (0, 3, 16, 16), np.float32),
        ("image_resized", "image", (0, 3, 1, 1), np.uint8),
    ):
        found = _with_empty(model, {name: given})
        assert found[name] is given
        assert (found[other].shape, found[other].dtype) == (shape, dtype)


@pytest.mark.slow
def test_the_full_bias_correction_follows_and_the_budget_ends_the_trials(converted):
    found, _ = quantize_pixels(converted, budget=600)
    assert [name for name, _ in found.tried] == [
        "SmoothQuant 0.95, fast bias correction", "SmoothQuant 0.95, full bias correction"
    ]  # fmt: skip
    assert found.change.mean == min(change.mean for _, change in found.tried)
    lines = []
    short = quantize(
        converted, {"image_resized": pixels(2, 0)}, {"image_resized": pixels(4, 1)}, lambda change: False,
        settings=QuantizeSettings(budget=0, threads=1), report=lines.append,
    )  # fmt: skip
    assert not short.enough
    assert short.tried[0][0] == "SmoothQuant 0.95, fast bias correction"
    assert "no time for further variants of int8" in lines


def test_a_model_without_int8_operations_is_refused(converted):
    with pytest.raises(ConfigError, match="int8 is not supported"):
        OpenVINOEngine(converted, "int8", threads=1)


def test_groups_cover_all_quantisers_and_none_is_left_without_them(quantized):
    model = quantized[0].model
    groups = quantized_groups(model)
    layers = [name for group in groups for name in group.layers]
    assert len(layers) == len(set(layers))
    assert len(merge_neighbours(groups, 3)) == 3
    assert sum(len(group.layers) for group in merge_neighbours(groups, 3)) == len(layers)
    free = without_quantizers(model, [name for group in groups for name in group.quantizers])
    assert not quantized_groups(free)
    assert len(quantized_groups(model)) == len(groups)


@pytest.mark.parametrize(("count", "most"), [(7, 3), (3, 7), (1, 1), (5, 5)])
def test_neighbours_are_merged_evenly(count, most):
    groups = [Group((f"layer{i}",), (f"quantizer{i}",)) for i in range(count)]
    merged = merge_neighbours(groups, most)
    sizes = [len(group.layers) for group in merged]
    assert len(merged) == min(count, most)
    assert max(sizes) - min(sizes) <= 1
    assert [name for group in merged for name in group.layers] == [f"layer{i}" for i in range(count)]


def with_outliers(depth):
    """A ViT whose hidden layers have a channel a thousand times larger than others, which get one level of int8."""
    model = trained("vit", VIT | {"depth": depth})
    with torch.no_grad():
        for block in model.model.blocks:
            block.mlp.fc1.bias[0] = 3000.0
            block.mlp.fc2.weight[:, 0] = 0.0
    return convert(model)


def accuracy_control(model, calibration, validation, allowed, iterations):
    """The mean change of probabilities that NNCF's own accuracy control leaves."""
    import nncf

    original = OpenVINOEngine(model, "fp32", 1)
    items = [{"image_resized": x[None]} for x in validation]
    wanted = [original.run(item)["probabilities"] for item in items]

    def kept(run, data):
        changes = [np.abs(run(item)["probabilities"] - x).mean() for item, x in zip(data, wanted, strict=False)]
        return 1 - float(np.mean(changes)), None

    made = nncf.quantize_with_accuracy_control(
        model, nncf.Dataset([{"image_resized": x[None]} for x in calibration]), nncf.Dataset(items), kept,
        max_drop=allowed, drop_type=nncf.DropType.ABSOLUTE, model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=names_outside(model), validate=False),
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(max_num_iterations=iterations),
    )  # fmt: skip
    return 1 - kept(OpenVINOEngine(made, "int8", 1).run, items)[0]


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_the_layers_with_outliers_are_restored_and_no_others(depth):
    made = with_outliers(depth)
    settings = QuantizeSettings(smooth=(None,), threads=1, trials=12, trial_images=8)
    found = quantize(
        made, {"image_resized": pixels(4, 0)}, {"image_resized": pixels(16, 1)}, lambda change: change.mean < 0.015,
        settings=settings,
    )  # fmt: skip
    assert found.tried[0][1].mean > 0.1
    assert found.enough
    # A bad layer hides the next one from a ranking of layers that leave int8 one at a time.
    fc2 = [node.get_friendly_name() for node in made.get_ordered_ops()
           if node.get_type_name() == "MatMul" and list(node.input_value(1).get_shape()) == [16, 64]]  # fmt: skip
    assert sorted(found.restored) == sorted(fc2)
    assert found.operations["int8"] == 4 * depth + 2 - depth


@pytest.mark.slow
def test_accuracy_control_returns_a_model_that_misses_the_bound():
    """The reason why layers are restored here: after its iterations NNCF returns what it has, without an error."""
    assert accuracy_control(with_outliers(2), pixels(4, 0), pixels(16, 1), 0.015, iterations=1) > 0.015


@pytest.mark.parametrize("needed", range(7))
@pytest.mark.parametrize("seconds", [1000, 30])
def test_as_few_layers_as_hold_the_bound_are_restored(monkeypatch, needed, seconds):
    module = importlib.import_module("vitrail.deploy.export.quantize")
    now, tried = [0.0], []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    made = _Quantization.__new__(_Quantization)
    made.settings, made.report, made.start = QuantizeSettings(budget=seconds), lambda line: None, 0.0
    made.enough, made.left_out = (lambda change: change.mean < 0.5), []

    def variant(scheme, restored=()):
        now[0] += 10
        tried.append(len(restored))
        change = Change(10, 0.4 if len(restored) >= needed else 1 - len(restored) / 20, 1.0, 0)
        return _Variant(scheme, restored, None, change, None, {}, 10)

    groups = [Group((f"layer{i}",), (f"quantizer{i}",)) for i in range(7)]
    made._variant, made._rank = variant, lambda best: (groups, len(groups))
    found = made._restore(_Variant(Scheme(None), (), None, Change(10, 1.0, 1.0, 9), None, {}, 10))
    if seconds == 1000:
        # Of seven groups six at most: one stays in int8.
        assert len(found.restored) == max(needed, 1)
        assert len(tried) <= 5
    else:
        assert tried == [1, 2, 4][: {0: 1, 1: 1, 2: 2}.get(needed, 3)]
        assert len(found.restored) == max(tried)
    assert found.restored == tuple(f"layer{i}" for i in range(len(found.restored)))


@pytest.mark.parametrize(
    ("seconds", "change", "tried"),
    [
        # 10 s a variant, 40 s the full correction, 30 s the restoration of a model that misses its bound.
        (1000, 0.1, [0.95, 0.5, None, 0.95]),
        (45, 0.1, [0.95, 0.5, None]),
        (25, 0.1, [0.95, 0.5]),
        (1000, 0.9, [0.95, 0.5, None, 0.95]),
        (95, 0.9, [0.95, 0.5, None]),
        (55, 0.9, [0.95, 0.5]),
        (45, 0.9, [0.95]),
        (25, 0.9, [0.95, 0.5]),  # no restoration fits
    ],
)
def test_other_variants_leave_time_to_restore_layers(monkeypatch, seconds, change, tried):
    module = importlib.import_module("vitrail.deploy.export.quantize")
    now, schemes = [0.0], []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    made = _Quantization.__new__(_Quantization)
    made.settings, made.report, made.start = QuantizeSettings(budget=seconds), lambda line: None, 0.0
    made.enough, made.left_out, made.empty = (lambda change: change.mean < 0.5), [], []

    def variant(scheme):
        now[0] += 10
        schemes.append(scheme.smooth)
        return _Variant(scheme, (), None, Change(10, change + 0.001 * len(schemes), 1.0, 0), None, {}, 10)

    made._variant = variant
    assert made._best_variant().scheme.smooth == 0.95
    assert schemes == tried


@pytest.mark.parametrize(("seconds", "full"), [(1000, True), (130, True), (105, False)])
def test_the_full_correction_goes_on_only_where_its_layers_can_be_restored(monkeypatch, seconds, full):
    module = importlib.import_module("vitrail.deploy.export.quantize")
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    made = _Quantization.__new__(_Quantization)
    made.settings, made.report, made.start = QuantizeSettings(budget=seconds), lambda line: None, 0.0
    made.enough, made.left_out, made.empty = (lambda change: False), [], []

    def variant(scheme):
        took = 24 if scheme.full_correction else 10
        now[0] += took
        change = Change(10, 0.1 if scheme.full_correction else 0.2, 1.0, 0)
        return _Variant(scheme, (), None, change, None, {}, took)

    made._variant = variant
    best = made._best_variant()
    assert best.scheme.full_correction == full
    assert made._fits(3 * best.seconds)


def test_variants_are_ranked_by_the_mean_change_of_those_that_hold_the_bound():
    made = _Quantization.__new__(_Quantization)
    made.enough = lambda change: change.misses <= 1

    def variant(mean, misses):
        return _Variant(Scheme(None), (), None, Change(100, mean, 1.0, misses), None, {}, 1)

    small, large, missing = variant(0.1, 1), variant(0.2, 0), variant(0.01, 2)
    assert made._better(small, large) is made._better(large, small) is small
    assert made._better(missing, large) is made._better(large, missing) is large
    assert made._better(missing, variant(0.02, 5)) is missing


@pytest.mark.slow
def test_an_export_in_int8_is_written_with_its_quantisation(tmp_path, capsys):
    pictures = make_folder(tmp_path / "pictures", splits=("train", "val"), per_class=40)
    run = train(pictures, tmp_path / "run", *WORDS, "--trainer.learning_rate", "3e-3", epochs=10)
    out = tmp_path / "out"
    words = [
        "--format",
        "openvino",
        "--precision",
        "int8",
        "--agreement",
        "0.5",
        "--max-drop",
        "0.5",
        "--include",
        "sets",
        "--threads",
        "1",
    ]
    assert main(["export", str(run), "--out", str(out), "--budget", "1s", *words]) == 0
    assert "int8" in capsys.readouterr().out
    export = load_export(out, threads=1)
    record = export.record
    assert (record["precision"], export.engine.precision) == ("int8", "int8")
    assert record["quantisation"]["scheme"] == "SmoothQuant 0.95, fast bias correction"
    assert record["candidates"][0]["measured"]["operations"]["int8"] >= 5
    assert "set" in record["outputs"]
    # Without being asked for, and with a short budget, it is left out with the reason.
    assert (
        main(["export", str(run), "--out", str(out), "--budget", "2s", "--threads", "1", "--format", "openvino"]) == 0
    )
    reason = next(row for row in load_export(out).record["candidates"] if row["name"] == "openvino int8")
    assert reason["verdict"]["status"] == "not built"
    assert "needs at least 30 s; give a longer --budget" in reason["verdict"]["reason"]
    left_out = load_export(out).record["budget"]["left_out"]
    assert {"what": "quantisation to int8", "seconds": 30.0} in left_out


def test_a_result_without_int8_operations_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(calibrate, "quantize_onnx", lambda *_: "model")
    monkeypatch.setattr(calibrate, "import_extra", lambda *_: SimpleNamespace(load=str, save_model=lambda *_: None))
    monkeypatch.setattr(calibrate, "OnnxEngine", lambda *_: SimpleNamespace(operations=lambda: {"fp32": 9}))
    quantizer = calibrate.Quantizer(None, 0.99, False, QuantizeSettings(), Budget(math.inf))
    quantizer._loaded = {}, {}
    with pytest.raises(ConfigError, match="no operation of ONNX Runtime became int8"):
        quantizer(tmp_path / "model.onnx", tmp_path / "int8.onnx", None, {})
