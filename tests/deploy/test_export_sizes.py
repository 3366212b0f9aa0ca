"""Exports of another image size, and of any: equal to the run in eager mode, and errors at other sizes."""

import functools
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.deploy.eager import engines as engines
from tests.deploy.exporting import export, needs_openvino, record, skip_without
from tests.deploy.test_export_families import CASES, check, trained
from tests.tiers import fast_first
from vitrail.cli.export import main as export_main
from vitrail.cli.main import main
from vitrail.deploy.export import candidates
from vitrail.deploy.export import sizes as of_sizes
from vitrail.deploy.export.budget import Budget
from vitrail.deploy.export.candidates import Variant, build_candidates
from vitrail.deploy.export.convert import convert, trace
from vitrail.deploy.export.graph import ExportGraph
from vitrail.deploy.export.scope import names_outside
from vitrail.deploy.export.sizes import at_size, check_sizes, lacks_any, least_of_any
from vitrail.deploy.exported import load_exported
from vitrail.engines import load_export
from vitrail.engines.load import open_engine
from vitrail.errors import ConfigError, RunError, ShapeError
from vitrail.models.registry import list_families

SIZES = [(32, 32), (224, 24), (17, 70), (40, 36)]
# Positions of other kinds, and overlapping patches, beside all families of images; clips and clouds have no other size.
ANY = {name: case for name, case in CASES.items() if case[0] in list_families("image")} | {
    "vit, raster order": ("vit", {"pos_embed": "learned1d", "depth": 1}),
    "vit, rope": ("vit", {"pos_embed": "rope"}),
    "vit, sines": ("vit", {"pos_embed": "sincos2d"}),
    "vit, overlapping": ("vit", {"patch_stride": 4}),
}
# Without windows, whose conversion to ONNX and guards in torch do not cover all sizes.
OTHER_ENGINES = ("vit, raster order", "vit")
# Refused, since its windows depend on the size.
del ANY["swin, padded after the shift"]
FIRST = sorted(ANY, key=lambda name: (name != OTHER_ENGINES[0], name))


def any_graph(name):
    model = trained(*ANY[name])
    # Overlapping patches have no heatmap; the first case is the one whose program is made among the fast tests.
    include = ("embedding",) if "overlapping" in name or name == OTHER_ENGINES[0] else ("embedding", "heatmap")
    least = least_of_any(model.model)
    return model, ExportGraph(model, dict.fromkeys(model.card.streams, torch.float32), {}, include, least=least)


@pytest.fixture(scope="module")
def traced():
    """Name of a case -> its model, graph and traced program; traced once."""

    @functools.cache
    def get(name):
        model, graph = any_graph(name)
        return model, graph, trace(graph)

    return get


@pytest.fixture(scope="module")
def converted(traced, tmp_path_factory):
    """Name of a case and engine -> folder with the engine's file; converted once."""

    @functools.cache
    def get(name, engine):
        _, graph, program = traced(name)
        folder = tmp_path_factory.mktemp(engine)
        convert(program, graph, engine, folder, facts_of(graph))
        return folder

    return get


def facts_of(graph):
    return {"inputs": [entry.describe() for entry in graph.inputs]}


def images(model, sizes, count=2):
    generator = torch.Generator().manual_seed(count)
    return {
        name: torch.rand(count, len(stream.bands), *size, generator=generator)
        for (name, stream), size in zip(model.card.streams.items(), sizes, strict=True)
    }


def compute(engine, graph, batch):
    return engine.run({entry.name: batch[entry.stream].numpy() for entry in graph.inputs})


@needs_openvino
@pytest.mark.parametrize("name", fast_first(FIRST, 1))
def test_any_size_equals_the_run_in_openvino(traced, converted, name):
    model, graph, _ = traced(name)
    engine = open_engine(converted(name, "openvino"), "openvino", "fp32", 1)
    least = tuple(least_of_any(model.model).values())
    mixed = [SIZES[: len(least)]] if len(least) > 1 else []
    for sizes in [*([size] * len(least) for size in SIZES), *mixed, least]:
        batch = images(model, sizes)
        check(model, compute(engine, graph, batch), batch, graph.include)


@pytest.mark.parametrize("engine", [pytest.param("onnx", marks=[skip_without("onnx"), pytest.mark.slow]), "torch"])
@pytest.mark.parametrize("name", fast_first(OTHER_ENGINES, 1))
def test_any_size_in_other_engines(traced, converted, name, engine):
    model, graph, _ = traced(name)
    loaded = open_engine(converted(name, engine), engine, "fp32", 1)
    for size in SIZES:
        batch = images(model, [size] * len(model.card.streams))
        check(model, compute(loaded, graph, batch), batch, graph.include)


def test_an_engine_that_differs_at_another_size_is_left_out(traced, converted, monkeypatch, tmp_path):
    _, graph, program = traced(FIRST[0])
    folder, changed = converted(FIRST[0], "torch"), graph.model.pos_embed.detach().clone()
    changed[:, 2:] *= 1.5
    monkeypatch.setattr(graph.model.pos_embed, "data", changed)
    monkeypatch.setattr(
        candidates, "convert", lambda _, graph, engine, own, *facts: shutil.copytree(folder, own, dirs_exist_ok=True)
    )
    (built,) = build_candidates(program, graph, lambda engine: {}, [Variant("torch", "fp32")], tmp_path / "work", 1,
                                None, Budget(60))  # fmt: skip
    assert built.engine is None
    assert "torch computes another logits at 16 x 32 pixels" in built.failure


@pytest.mark.parametrize("wrong", ["heatmap", "heatmap_spectral", "logits"])
def test_an_engine_that_answers_for_other_sizes_is_left_out(wrong, monkeypatch, tmp_path):
    """OpenVINO returns the outputs of the call before, without an error, for sizes that its graph does not take."""
    _, graph = any_graph("hvt, concat")
    before = {}

    def run(inputs):
        sizes = {x.shape[2:] for x in inputs.values()}
        found = graph.compute(inputs) if len(sizes) == 1 else graph.compute(inputs) | {wrong: before[wrong]}
        before.update(found)
        return found

    engine = SimpleNamespace(run=graph.compute)
    monkeypatch.setattr(of_sizes, "open_engine", lambda *_: engine)
    check_sizes(graph, tmp_path, "openvino", 1)
    engine.run = run
    with pytest.raises(RunError, match=f"openvino computes another {wrong} at 16 x 32 and 32 x 44 pixels"):
        check_sizes(graph, tmp_path, "openvino", 1)


def test_windows_of_any_size_are_not_converted_to_onnx():
    assert "use openvino" in lacks_any(trained("swin", {}).model, "onnx")
    assert lacks_any(trained("vit", {}).model, "onnx") == ""
    assert lacks_any(trained("hvt", {}).model, "onnx") == ""
    assert "use openvino" in lacks_any(
        trained("hvt", {"attention": 4, "depths": (1,), "num_heads": (2,)}).model, "onnx"
    )
    assert "use openvino" in lacks_any(trained("vit", {}).model, "inductor")
    assert lacks_any(trained("swin", {}).model, "openvino") == ""


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_windows_that_shrink_to_the_map_are_refused_for_any_size(engine):
    model = trained(*CASES["swin, padded after the shift"]).model
    assert "pad_after_shift shrinks windows" in lacks_any(model, engine)


@needs_openvino
def test_resampled_positions_are_not_quantised(converted):
    import openvino

    model = openvino.Core().read_model(converted(FIRST[0], "openvino") / "model.xml")
    outside = set(names_outside(model))
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    inside = [node for node in products if node.get_friendly_name() not in outside]
    # Four linear layers in the block, and the classifier; outside the product that resamples positions.
    assert len(inside) == 4 + 1
    assert len(products) == len(inside) + 1


def test_sizes_below_a_patch_are_refused():
    model = trained("hvt", {})
    assert at_size(model, None) is at_size(model, "any") is model
    assert {stream.img_size for stream in at_size(model, (40, 24)).card.streams.values()} == {(40, 24)}
    with pytest.raises(ConfigError, match="--image-size 3 40 is smaller than a patch of 4 x 4 pixels"):
        at_size(model, (3, 40))


OPENVINO = "--format openvino --precision fp32".split()


@pytest.mark.usefixtures("engines")
def test_a_fixed_size_of_a_run(run, tmp_path, capsys):
    assert export(run, tmp_path / "wide", *OPENVINO, "--image-size", "24", "40") == 0
    exported = load_exported(tmp_path / "wide", threads=1)
    assert [entry["shape"] for entry in exported.export.record["inputs"]] == [[None, 3, None, None], [None, 3, 24, 40]]
    capsys.readouterr()
    files = str(run.parent / "pictures" / "val")
    assert main(["predict", str(tmp_path / "wide"), files]) == 0
    assert "class" in capsys.readouterr().out
    with pytest.raises(ShapeError, match="24, 40"):
        exported.export.run({"image_resized": np.zeros((1, 3, 16, 16), np.uint8)})
    photograph = {"image": np.full((1, 3, 90, 200), 128, np.uint8)}
    small = {"image_resized": np.full((1, 3, 24, 40), 128, np.uint8)}
    np.testing.assert_allclose(exported.export.run(photograph)["logits"], exported.export.run(small)["logits"],
                               rtol=1e-4, atol=1e-5)  # fmt: skip


@pytest.mark.usefixtures("engines")
def test_any_size_of_a_run(run, tmp_path, capsys):
    assert export(run, tmp_path / "any", *OPENVINO, "--image-size", "any") == 0
    loaded = load_export(tmp_path / "any", threads=1)
    assert list(loaded.entries) == ["resized"]
    assert "neither cropped nor resized" in loaded.record["no_photographs"]
    from vitrail.runs.trained import load_classifier

    model = load_classifier(run)
    for size in ((16, 16), (9, 9), (33, 90)):
        pixels = np.random.default_rng(0).integers(0, 256, (2, 3, *size), dtype=np.uint8)
        wanted = model.classify(torch.from_numpy(pixels).float() / 255)[0]
        found = loaded.run({"image_resized": pixels})["logits"]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    with pytest.raises(ShapeError, match=r"H >= 9, W >= 9\) of uint8, got the shape \(1, 3, 8, 16\)"):
        loaded.run({"image_resized": np.zeros((1, 3, 8, 16), np.uint8)})
    assert record(tmp_path / "any")["inputs"][0]["least"] == [9, 9]
    assert "the smallest size is 9 x 9 pixels" in (tmp_path / "any" / "1" / "README.md").read_text()
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "any"), str(run.parent / "pictures" / "val")]) == 0


@pytest.mark.parametrize("words", [["all"], ["16", "any"], ["0"], ["1", "2", "3"]])
def test_wrong_sizes_are_refused(words):
    with pytest.raises(ConfigError, match="--image-size takes height and width"):
        export_main(["runs/none", "--image-size", *words])
