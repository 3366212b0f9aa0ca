"""Exports of a trained run: equal to the run in every engine, complete, reproducible, without source paths."""

import contextlib
import dataclasses
import functools
import importlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vitrail
from tests.deploy.eager import eager_engines as eager_engines
from tests.deploy.eager import run_eagerly
from tests.deploy.exporting import FORMATS, missing, needs_openvino, record, skip_without
from vitrail.cli.evaluate import _listing
from vitrail.cli.main import main
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.images import read_image
from vitrail.data.sources.opening import SOURCES, first_stream
from vitrail.deploy.export.kinds import kind_of
from vitrail.deploy.export.quantize import QuantizeSettings, Scheme, quantize_onnx
from vitrail.deploy.export.scope import names_outside_onnx
from vitrail.deploy.exported import load_exported, to_inputs
from vitrail.engines import Export, load_export
from vitrail.engines.load import ENGINES, sealed
from vitrail.engines.onnx import OnnxEngine
from vitrail.errors import RunError, ShapeError
from vitrail.models.modality import MODALITIES
from vitrail.runs import load_trained

QUICK = "--precision fp32 --budget 1s --threads 1".split()


# Among the fast tests ONNX has resized pixels alone, whose conversion takes half as long; the graph itself has both.
ALONE = "onnx, resized pixels"
CASES = [pytest.param(ALONE, marks=skip_without("onnx")), *FORMATS]
# Named where any export does: the one that loads in the shortest time.
QUICKEST = next(case for case in (ALONE, "openvino", "torch") if not missing(case.partition(",")[0]))


def without_photographs(card):
    return dataclasses.replace(kind_of(card), describe=lambda *_: ({}, "this export has none"))


@pytest.fixture(scope="module")
def exported(run):
    """Case -> folder of its export with a heatmap, made when first asked for."""
    made, programs = {}, {}
    module = importlib.import_module("vitrail.deploy.export.export")
    trace = module.trace

    def traced_once(graph, *args):
        key = (*graph.outputs, *map(str, args), *graph.stored)
        if key not in programs:
            programs[key] = trace(graph, *args)
        return programs[key]

    def get(case):
        if case not in made:
            out = run.parent / case
            engine = "torch" if case == "eager" else case.partition(",")[0]
            words = ["--format", engine, "--include", "embedding", "heatmap", *QUICK]
            with pytest.MonkeyPatch.context() as patch, run_eagerly() if case == "eager" else contextlib.nullcontext():
                if case != "eager":
                    patch.setattr(module, "trace", traced_once)
                if case == ALONE:
                    patch.setattr(module, "kind_of", without_photographs)
                assert main(["export", str(run), "--out", str(out), *words]) == 0
            made[case] = out
        return made[case]

    return get


@pytest.fixture(scope="module")
def loaded(exported):
    """Case -> its loaded export."""

    @functools.cache
    def get(case):
        with run_eagerly() if case == "eager" else contextlib.nullcontext():
            return load_exported(exported(case), threads=1)

    return get


def _images(run, **changes):
    from vitrail.cli.recipes import load_run_recipe
    from vitrail.runs.trained import load_classifier

    trained = load_classifier(run)
    return open_data(trained.card.as_trained(load_run_recipe(run / "recipe.yaml").data), trained.card.img_size)


@pytest.mark.parametrize("engine", CASES)
def test_an_export_equals_its_run(loaded, run, engine):
    images = _images(run)
    batch = images.batch(images.indices("train")[:5])
    logits, embedding = load_trained(run).classify(batch)
    export = loaded(engine)
    found = export.export.run(to_inputs(export.export.record, batch))
    assert [*found] == export.export.record["outputs"]
    for name, wanted in (("logits", logits), ("probabilities", logits.softmax(1)), ("embedding", embedding)):
        np.testing.assert_allclose(found[name], wanted.numpy(), rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert torch.equal(export.classify(batch)[0], torch.from_numpy(found["logits"]))


@pytest.mark.parametrize("engine", CASES)
def test_files_classify_as_with_the_run(exported, run, engine, capsys):
    folder = run.parent / "pictures" / "val"
    assert main(["predict", str(run), str(folder)]) == 0
    wanted = capsys.readouterr().out
    assert main(["predict", str(exported(engine)), str(folder)]) == 0
    digits = re.compile(r"0\.\d+")
    found = capsys.readouterr().out[-len(wanted) :]
    assert digits.sub("", found) == digits.sub("", wanted)
    assert np.allclose([*map(float, digits.findall(found))], [*map(float, digits.findall(wanted))], atol=2e-6)


@pytest.mark.parametrize("engine", ["eager", *FORMATS])
def test_photographs_of_any_size_give_what_resized_pixels_give(loaded, run, engine):
    export = loaded(engine).export
    files = [file for file in sorted((run.parent / "pictures").rglob("*.*")) if file.suffix in (".png", ".bmp")]
    assert len({read_image(file).shape for file in files}) > 2
    for file in files[:6]:
        found = export.run({"image": read_image(file).numpy()[None]})
        wanted = export.run({"image_resized": read_image(file, size=(16, 16)).numpy()[None]})
        assert [*found] == [*wanted]
        # A pixel in a thousand is another level.
        np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=0, atol=0.02 * abs(wanted["logits"]).max())


@pytest.mark.parametrize("engine", CASES)
def test_no_file_holds_paths_of_this_machine(exported, run, engine):
    paths = [str(Path(vitrail.__file__).parent), str(Path(torch.__file__).parent), str(run.parent)]
    for file in (exported(engine) / "1").iterdir():
        content = file.read_bytes()
        assert not [path for path in paths if path.encode() in content], file.name


@skip_without("onnx", "nncf")
@pytest.mark.slow_cases("onnx")
@pytest.mark.parametrize("case", [ALONE, "onnx"])
def test_an_onnx_model_is_quantised_but_for_preprocessing_and_heatmap(exported, run, tmp_path, case):
    onnx = pytest.importorskip("onnx")
    file = exported(case) / "1" / ENGINES["onnx"]
    original, model = onnx.load(file), load_trained(run).model
    pixels = np.random.default_rng(1).integers(0, 256, (12, 3, 16, 16)).astype(np.uint8)
    images = dict.fromkeys([port.name for port in original.graph.input], pixels)
    made = quantize_onnx(original, images, images, Scheme(0.95), QuantizeSettings(threads=1))
    onnx.save_model(made, tmp_path / "int8.onnx")
    plain, quantised = OnnxEngine(file, "fp32", 1), OnnxEngine(tmp_path / "int8.onnx", "int8", 1)
    layers = sum(isinstance(part, torch.nn.Linear | torch.nn.Conv2d) for part in model.modules())
    assert plain.operations().get("int8", 0) == 0
    assert quantised.operations()["int8"] >= layers - 2  # not the fused ones of attention, nor the first convolution
    # What does not depend on a layer is the same.
    names = set(names_outside_onnx(original))
    quantisers = [node for node in made.graph.node if node.op_type == "QuantizeLinear"]
    outside = {output for node in made.graph.node if node.name in names for output in node.output}
    users = {name: [node.name for node in made.graph.node if name in node.input] for name in outside}
    assert quantisers
    for node in quantisers:
        if node.input[0] in outside:
            continue  # what follows is a layer
        assert not set(users.get(node.output[0], ())) & names
    found, wanted = (engine.run({name: x[:4] for name, x in images.items()}) for engine in (quantised, plain))
    assert 0 < np.abs(found["logits"] - wanted["logits"]).max() < 0.5 * np.abs(wanted["logits"]).max()
    if case == ALONE:
        return
    # A picture of the model's size gives what resized pixels give.
    none = np.zeros((0, 3, 16, 16), np.uint8)
    pairs = ({"image": pixels, "image_resized": none}, {"image": none, "image_resized": pixels})
    whole, resized = (quantised.run(inputs)["logits"] for inputs in pairs)
    np.testing.assert_allclose(whole, resized, rtol=0, atol=1e-6)


@needs_openvino
@pytest.mark.slow
def test_two_exports_are_one_file(exported, run, tmp_path):
    first = record(exported("openvino"))
    assert main(["export", str(run), "--out", str(tmp_path / "again"), "--format", "openvino",
                 "--include", "embedding", "heatmap", *QUICK]) == 0  # fmt: skip
    again = record(tmp_path / "again")
    assert again["files"]["model.bin"] == first["files"]["model.bin"]
    assert again["files"]["model.xml"] == first["files"]["model.xml"]


@pytest.mark.parametrize("engine", CASES)
def test_the_readme_runs_with_the_engine_alone(exported, loaded, engine, monkeypatch, capsys):
    folder = exported(engine) / "1"
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(code, {})
    export = loaded(engine).export
    name, shape = ("image_resized", (16, 16)) if engine == ALONE else ("image", (480, 640))
    black = export.run({name: np.zeros((1, 3, *shape), np.uint8)})["probabilities"].argmax(1)
    assert [*map(int, re.findall(r"\d+", capsys.readouterr().out))] == black.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.float32) / 255, "must be .* of uint8, got float32"),
        (lambda x: x[:, :1], "got the shape .*its bands are red, green, blue"),
        (lambda x: x[:, :, :8], r"must be \(B, 3, 16, 16\)"),
        (lambda x: x[0], r"got the shape \(3, 16, 16\)"),
        (lambda x: x[:0], r"got the shape \(0, 3, 16, 16\)"),
    ],
)
def test_other_types_and_sizes_are_refused(loaded, change, message):
    export = loaded("eager").export
    pixels = np.zeros((2, 3, 16, 16), np.uint8)
    export.run({"image_resized": pixels})
    with pytest.raises(ShapeError, match=message):
        export.run({"image_resized": change(pixels)})
    for names in (["pixels"], ["image", "image_resized"], []):
        with pytest.raises(ShapeError, match="takes the inputs image or image_resized, got"):
            export.run(dict.fromkeys(names, pixels))


def test_a_changed_export_is_refused(exported, tmp_path, capsys):
    folder = shutil.copytree(exported(QUICKEST), tmp_path / "copy")
    assert main(["export", "--check", str(folder)]) == 0
    edited = record(folder)
    model = folder / "1" / ENGINES[QUICKEST.partition(",")[0]]
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunError, match="is not the exported file"):
        load_export(folder)
    model.write_bytes(content)
    check = folder / "1" / "check.npz"
    with np.load(check) as arrays:
        changed = {name: values + (0.01 if name == "output.resized.logits" else 0) for name, values in arrays.items()}
    np.savez(check, **changed)
    edited["files"].pop("check.npz")
    (folder / "1" / "export.json").write_text(json.dumps(sealed(edited)))
    with pytest.raises(RunError, match="output logits differs by"):
        load_export(folder)
    assert main(["export", "--check", str(folder)]) == 1
    assert main(["predict", str(folder), str(tmp_path)]) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "takes a run folder, or --check DIR"),
        (["RUN", "--check", "x"], "takes a run folder, or --check DIR"),
        (["RUN", "--threads", "0"], "--threads must be at least 1, got 0"),
        (
            ["RUN", "--format", "torch", "--precision", "bf16"],
            "--precision bf16 is not supported by torch; use --format openvino",
        ),
        (["RUN", "--out", "FILE"], "is a file; name a folder"),
        (["RUN", "--out", "OTHERS"], "holds files that do not belong to an export"),
    ],
)
def test_wrong_usage_is_one_line(run, tmp_path, capsys, words, message):
    (tmp_path / "others" / "1").mkdir(parents=True)
    (tmp_path / "others" / "1" / "model.xml").write_text("of somebody else")
    (tmp_path / "file").write_text("")
    names = {"RUN": run, "FILE": tmp_path / "file", "OTHERS": tmp_path / "others"}
    assert main(["export", *(str(names.get(word, word)) for word in words)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("vitrail: ")]) == 1
    assert [file.name for file in (tmp_path / "others").iterdir()] == ["1"]


def test_what_an_export_lacks_is_refused(exported, run, capsys):
    for words, message in (
        (["--tta", "mirror"], "--tta mirror is not supported for an export"),
        (["--device", "cuda"], "--device cuda is not supported for an export"),
    ):
        assert main(["predict", str(exported(QUICKEST)), str(run.parent / "pictures"), *words]) == 2
        assert message in capsys.readouterr().err


@pytest.fixture
def with_heatmap(exported):
    return exported(QUICKEST)


def test_an_export_is_explained_as_its_run_by_one_call_a_batch(with_heatmap, run, tmp_path, monkeypatch, capsys):
    sizes, inner = [], Export.run
    folder = str(run.parent / "pictures" / "val" / "dark")

    def counted(self, inputs):
        sizes.append({len(x) for x in inputs.values()})
        return inner(self, inputs)

    monkeypatch.setattr(Export, "run", counted)
    monkeypatch.setattr(Export, "check", lambda self: {})
    assert main(["explain", str(with_heatmap), folder, "--out", str(tmp_path / "export"), "--batch-size", "3"]) == 0
    assert sizes == [{3}, {1}]
    assert main(["explain", str(run), folder, "--out", str(tmp_path / "run"), "--method", "rollout"]) == 0
    maps = sorted(file.name for file in (tmp_path / "run" / "maps").glob("*_rollout.npy"))
    assert len(maps) == 4
    for name in maps:
        wanted, found = (np.load(tmp_path / one / "maps" / name) for one in ("run", "export"))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * wanted.max())
    wanted, found = (json.loads((tmp_path / one / "explanations.json").read_text()) for one in ("run", "export"))
    for own, other in zip(wanted["images"], found["images"], strict=True):
        assert other["predicted"] == own["predicted"]
        assert other["probability"] == pytest.approx(own["probability"], abs=1e-5)
    capsys.readouterr()


@pytest.mark.fast_cases("source1")
@pytest.mark.parametrize("source", [["--data.source", "folder"], ["--data.source=folder"], []])
def test_an_export_is_evaluated_on_named_images(with_heatmap, run, capsys, source):
    place = [*source, "--data.path", str(run.parent / "pictures")]
    assert main(["evaluate", str(with_heatmap), *place, "--split", "val"]) == 0
    found = capsys.readouterr().out
    assert main(["evaluate", str(run), "--split", "val"]) == 0
    accuracy = re.search(r"accuracy (0\.\d+|1\.0+)", capsys.readouterr().out).group(1)
    assert f"on val: accuracy {accuracy} (95 % interval" in found
    assert "8 images" in found


@pytest.mark.parametrize("kind", MODALITIES)
@pytest.mark.parametrize("way", ["recorded", "not recorded", "named"])
@pytest.mark.fast_cases("recorded-points", "named-video")
def test_sources_without_a_path_are_refused_for_an_export(kind, way, monkeypatch, capsys):
    """Their inputs may be those of the training, whether the run's or named; checked before anything is read."""
    for source in (name for name, path in SOURCES.items() if not path and first_stream(name) == kind):
        record = {"listing": {"source": source}} if way == "recorded" else {}
        card, export = SimpleNamespace(modality=MODALITIES[kind]), SimpleNamespace(record=record)
        exported = SimpleNamespace(card=card, export=export, reading=DataConfig())
        monkeypatch.setattr("vitrail.engines.load.find_export", lambda path: path)
        monkeypatch.setattr("vitrail.deploy.exported.load_exported", lambda path, found=exported: found)
        words = ["--data.source", source] if way == "named" else ["--data.batch_size", "8"]
        assert main(["evaluate", "out", *words]) == 2
        error = capsys.readouterr().err
        assert f"data.source {'digits' if way == 'not recorded' else source} has no path, and its" in error
        named = error.split("--data.source ")[1].split()
        assert named[0] == {"image": "folder", "video": "videos", "points": "points"}[kind]
    assert _listing({"listing": {}}, ["--data.source=folder"]) == {}


def test_labelled_images_are_listed_as_those_of_the_run(with_heatmap):
    assert load_export(with_heatmap).record["listing"] == {"source": "folder"}
    listing = {"source": "table", "table.label_column": "y", "classes.multi_label": True}
    assert _listing({"listing": listing}, ["--data.path", "x"]) == {
        "data": {"source": "table", "table": {"label_column": "y"}, "classes": {"multi_label": True}}
    }


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("explain", ["FILES", "--method", "gradcam"], "--method is not supported for an export"),
        ("explain", [], "has no images of its own"),
        ("evaluate", [], "has no images of its own"),
        ("evaluate", ["--corruptions"], "--corruptions is not supported for an export"),
    ],
)
def test_verbs_refuse_what_only_a_run_can(with_heatmap, run, tmp_path, capsys, verb, words, message):
    more = ["--out", str(tmp_path / "out")] if verb == "explain" else []
    words = [str(run.parent / "pictures") if word == "FILES" else word for word in words]
    assert main([verb, str(with_heatmap), *words, *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("eager_engines")
def test_an_export_without_heatmap_says_how_to_get_one(run, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "plain"), "--format", "torch", *QUICK]) == 0
    folder = str(run.parent / "pictures" / "val")
    assert main(["explain", str(tmp_path / "plain"), folder, "--out", str(tmp_path / "out")]) == 2
    assert "export the run with --include heatmap" in capsys.readouterr().err
