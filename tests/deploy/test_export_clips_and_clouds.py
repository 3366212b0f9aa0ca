"""Exports of clips and of point clouds: graph, record, README, gate and verbs, as those of images."""

import contextlib
import csv
import dataclasses
import io
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tests.cli.test_modalities import Place
from tests.deploy.eager import run_eagerly, without_memory
from tests.deploy.exporting import record
from vitrail.cli.main import main
from vitrail.cli.recipes import load_run_recipe
from vitrail.data.images import resize_picture
from vitrail.data.points.sampling import choose_points, scale_of, turn_back, turn_up
from vitrail.data.video.sampling import average_views
from vitrail.deploy.export import candidates
from vitrail.deploy.export.artefact import reading_settings
from vitrail.deploy.export.budget import Budget
from vitrail.deploy.export.clips import StoredClips
from vitrail.deploy.export.clouds import PlacePoints, StoredCoordinates
from vitrail.deploy.export.graph import ExportGraph
from vitrail.deploy.export.photographs import encoded_source, read_photographs
from vitrail.deploy.export.pixels import ResizeStored
from vitrail.deploy.export.readme import _reading
from vitrail.deploy.exported import load_exported
from vitrail.deploy.images import open_files
from vitrail.errors import ConfigError, ShapeError
from vitrail.explain import attention_rollout
from vitrail.runs import load_trained
from vitrail.runs.folder import RunFolder
from vitrail.runs.images import open_prepared
from vitrail.train.teacher import LoadedTeacher

SOURCES = {"video": "videos", "points": "points"}
WORDS = "--format torch --precision fp32 --budget 0s --threads 1 --include heatmap embedding sets ood".split()


@pytest.fixture(
    scope="module",
    params=[
        *((kind, "eager") for kind in SOURCES),
        *(pytest.param((kind, "torch"), marks=pytest.mark.slow) for kind in SOURCES),
    ],
    ids="-".join,
)
def place(request, tmp_path_factory):
    """A trained run and its export."""
    kind, engine = request.param
    found = Place(tmp_path_factory.mktemp(kind), kind)
    with run_eagerly() if engine == "eager" else without_memory():
        with contextlib.chdir(found.root), contextlib.redirect_stderr(io.StringIO()):
            assert main(["train", *found.data, "--run.dir", "run", "--run.tensorboard", "false"]) == 0
            assert main(["export", "run", "--out", "out", *WORDS]) == 0
        yield found


@pytest.fixture(scope="module")
def opened(place):
    """The run, its inputs as files, and the loaded export."""
    with contextlib.chdir(place.root):
        trained = load_trained("run")
        files = open_files(trained.card, load_run_recipe(RunFolder.open("run").recipe).data, ["inputs"])
        return trained, files, load_exported("out", threads=1)


def test_stored_and_prepared_inputs_give_what_the_run_gives(place, opened, monkeypatch):
    monkeypatch.chdir(place.root)
    trained, files, exported = opened
    export = exported.export
    stored = StoredClips(("gray",), torch.uint8, (0.0,), (255.0,), "levels", "crop", (12, 12), 4, None)
    if place.kind == "points":
        stored = StoredCoordinates(("x", "y", "z"), torch.float32, (), (), 24, "z", "sphere", "farthest")
    batch = files.batch(range(12))
    logits, embedding = trained.classify(batch)
    prepared = batch[place.kind].numpy()
    given = (prepared * 255).round().astype(np.uint8) if place.kind == "video" else prepared
    read = [read_photographs(encoded_source(files), {place.kind: stored}, i) for i in range(12)]
    own, suffix = np.concatenate([one[place.kind] for one in read]), "resized" if place.kind == "video" else "scaled"
    assert own.shape == ((12, 1, 4, 14, 16) if place.kind == "video" else (12, 24, 3))
    # A frame that the graph resizes has pixels that are another level of 255.
    for inputs, most in (({f"{place.kind}_{suffix}": given}, 1e-5), ({place.kind: own}, 1e-3)):
        outputs = export.run(inputs)
        assert np.abs(outputs["logits"] - logits.numpy()).max() < most
        assert np.abs(outputs["embedding"] - embedding.numpy()).max() < most
        # Of points as the graph places them: rounding decides which of two nearly equal values is the maximum.
        seen = batch | ({"points": PlacePoints(stored)(torch.from_numpy(own))} if "points" in inputs else {})
        rollout = attention_rollout(trained.model, *trained.inputs(seen)).map.numpy()
        assert outputs["heatmap"].shape == ((12, 4, 12, 12) if place.kind == "video" else (12, 24))
        # Of two points whose values are equal but for rounding, a maximum over points may take the other one.
        same = np.abs(outputs["heatmap"] - rollout) < most * rollout.max()
        assert same.mean() > 0.98 if place.kind == "points" else same.all()
    explained = exported.explain(batch)[1]["rollout"]
    assert list(explained) == [place.kind]
    # The clips here are resized already.
    assert np.abs(explained.map.numpy() - rollout).max() < 1e-5 * rollout.max() or place.kind == "points"


@pytest.mark.parametrize("how", ["crop", "squash"])
def test_frames_are_resized_as_the_pipeline_resizes_them(how):
    generator = torch.Generator().manual_seed(0)
    for size, wanted in (((37, 53), (16, 16)), ((9, 40), (12, 20)), ((50, 24), (20, 12)), ((16, 16), (16, 16))):
        clips = torch.randint(0, 256, (2, 3, 4, *size), generator=generator, dtype=torch.uint8)
        stored = StoredClips(("r", "g", "b"), torch.uint8, (0.0,), (255.0,), "levels", how, wanted, 4, None)
        found = (ResizeStored(stored)(clips) * 255).round()
        frames = [[resize_picture(clip[:, t], wanted, how) for t in range(4)] for clip in clips]
        pipeline = torch.stack([torch.stack(own, dim=1) for own in frames]).float()
        assert (found - pipeline).abs().max() <= 1
        assert (found == pipeline).float().mean() >= 0.999


@pytest.mark.parametrize("up", ["x", "y", "z"])
@pytest.mark.parametrize("scale", ["sphere", "rms", "none", 2.5])
@pytest.mark.fast_cases("sphere-z", "none-x", "2.5-x")
def test_clouds_are_placed_as_the_pipeline_places_them(up, scale):
    rng = np.random.default_rng(0)
    stored = StoredCoordinates(("x", "y", "z"), torch.float32, (), (), 16, up, scale, "farthest")
    clouds = rng.normal(size=(4, 16, 3)) * 7 + 20
    clouds[1, 9:] = np.nan
    found = PlacePoints(stored)(torch.from_numpy(clouds).float()).numpy()
    for cloud, own in zip(clouds, found, strict=True):
        real = turn_up(cloud[np.isfinite(cloud[:, 0])], up)
        real = real - real.mean(axis=0)
        assert np.isnan(own[len(real) :]).all()
        assert np.abs(own[: len(real)] - real / scale_of(real, scale)).max() < 5e-6
        assert (turn_back(turn_up(cloud, up), up) == cloud)[: len(real)].all()
    placed = torch.from_numpy(found)
    again = PlacePoints(stored)(stored.invert(placed, (2, 3)))
    torch.testing.assert_close(again, placed, rtol=0, atol=5e-6, equal_nan=True)


def test_the_verbs_give_the_decisions_of_the_run(place, capsys, monkeypatch):
    monkeypatch.chdir(place.root)
    tables = []
    for path in ("run", "out"):
        assert main(["predict", path, "inputs"]) == 0
        tables.append(list(csv.DictReader(io.StringIO(capsys.readouterr().out))))
    assert [row["class"] for row in tables[0]] == [row["class"] for row in tables[1]]
    probabilities = [[float(row["probability"]) for row in table] for table in tables]
    assert np.allclose(*probabilities, atol=0.2)  # the export divides logits by its temperature
    assert main(["evaluate", "out", "--data.source", SOURCES[place.kind], "--data.path", "inputs"]) == 0
    targets = [row["path"].split("/")[1] for row in tables[0]]
    right = np.mean([row["class"] == target for row, target in zip(tables[0], targets, strict=True)])
    (first, *others) = capsys.readouterr().out.splitlines()
    assert f"accuracy {right:.4f}" in first
    assert first.endswith(f"12 {'clips' if place.kind == 'video' else 'point clouds'}")
    assert others == ["  the middle clip of each video"] * (place.kind == "video")


def test_an_export_averages_over_views_as_its_run(place, opened, capsys, monkeypatch):
    if place.kind != "video":
        pytest.skip("clouds have one view")
    monkeypatch.chdir(place.root)
    trained, views = opened[0], {"video.views": 2, "video.crops": 3}
    data = load_run_recipe(RunFolder.open("run").recipe).data.changed(views)
    assert views.items() <= reading_settings(data).items()
    images = open_prepared(trained.card, data, split=False)
    found = [(trained.classify(batch)[0], batch["target"]) for batch in images.loader("all")]
    assert all(len(logits) == 6 * len(target) for logits, target in found)
    correct = torch.cat([average_views(logits, len(target)).argmax(1) == target for logits, target in found])
    words = [word for name, number in views.items() for word in (f"--data.{name}", str(number))]
    assert main(["evaluate", "out", "--data.source", "videos", "--data.path", "inputs", *words]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert f"accuracy {correct.float().mean():.4f}" in first
    assert second == "  mean logits of 2 x 3 clips of each video"


def test_the_record_states_how_inputs_are_chosen_and_prepared(place):
    found = record(place.root / "out")
    how = found["preparation"][place.kind]
    assert (
        found["candidates"][0]["verdict"]["photographs"]["images"] == found["candidates"][0]["verdict"]["images"] == 2
    )
    assert found["test"]["agreement"] == 1
    if place.kind == "video":
        assert (how["frames"], how["frames_per_second"], how["size"]) == (4, None, [12, 12])
        assert "(i + 0.5) / 4 of the duration" in how["sampling"]
        assert [entry["shape"] for entry in found["inputs"]] == [[None, 1, 4, None, None], [None, 1, 4, 12, 12]]
    else:
        assert (how["points"], how["scale"], how["up"]) == (24, "sphere", "z")
        assert "24 different points: each point the farthest" in how["sampling"]
        assert [entry["shape"] for entry in found["inputs"]] == [[None, 24, 3]] * 2


def test_the_code_of_the_readme_reads_inputs_as_the_run_does(place, opened, tmp_path):
    files = opened[1]
    code = re.findall(r"```python\n(.*?)```", (place.root / "out" / "1" / "README.md").read_text(), re.DOTALL)[1]
    names = {}
    if place.kind == "points":
        shutil.copy(place.root / place.file, tmp_path / "cloud.xyz")
        with contextlib.chdir(tmp_path):
            exec(code, names)
        cloud, chosen = np.loadtxt(place.root / place.file), names["chosen"]
        assert len(set(chosen)) == 24
        assert np.allclose(names["points"], (cloud[chosen] - cloud[0])[None], atol=1e-6)
        return
    frames = [np.asarray(frame) for frame in range(5)]
    lines = [line for line in code.splitlines() if line.startswith("chosen")]
    exec("\n".join(lines), {"frames": frames}, names)
    assert names["chosen"] == files.source._indices[0].choose(4, 0, files.source._indices[0].duration, None)


def test_other_numbers_of_frames_and_points_are_refused(place, opened):
    export = opened[2].export
    entry = export.record["inputs"][0]
    short = {"video": np.zeros((1, 1, 3, 20, 20), np.uint8), "points": np.zeros((1, 23, 3), np.float32)}[place.kind]
    wanted = {"video": r"\(B, 1, 4, H, W\) of uint8", "points": r"\(B, 24, 3\) of float32"}[place.kind]
    with pytest.raises(ShapeError, match=wanted):
        export.run({entry["name"]: short})
    right = np.zeros([size or 20 for size in [2, *entry["shape"][1:]]], entry["dtype"])
    with pytest.raises(ShapeError, match="in this order, got"):
        export.run({entry["name"]: right}, {entry["name"]: ("other",)})


def test_an_export_of_vector_neurons_is_invariant_to_rotations(place, opened):
    if place.kind == "video":
        pytest.skip("clips have no rotations")
    clouds = np.random.default_rng(0).normal(size=(1, 24, 3)).astype(np.float32) * (1, 2, 3)
    turned = [clouds[0] @ Rotation.random(random_state=i).as_matrix().T + 5 for i in range(8)]
    export = opened[2].export
    logits = export.run({"points": np.stack([clouds[0], *turned]).astype(np.float32)})["logits"]
    assert np.abs(logits - logits[0]).max() <= 1e-5 * max(1.0, np.abs(logits).max())


def test_int8_of_clouds_is_refused_with_a_reason(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "convert", lambda *_: None)
    trained, *_ = opened
    graph = ExportGraph(trained, dict.fromkeys(trained.card.streams, torch.float32))
    one = candidates.Variant("onnx", "int8")

    def quantize(*_):
        raise ConfigError("quantised")

    (built,) = candidates.build_candidates(None, graph, lambda engine: {}, [one], tmp_path, 1, quantize, Budget(60))
    video = trained.card.modality.name == "video"
    assert built.failure.startswith("quantised" if video else "rounded coordinates have other nearest points")


def test_an_image_size_is_refused(place, capsys, monkeypatch):
    monkeypatch.chdir(place.root)
    assert main(["export", "run", "--out", "any", "--image-size", "any"]) == 2
    assert "export --image-size takes images" in capsys.readouterr().err


def _cloud_entry(stream, bands, count):
    return {"name": stream, "stream": stream, "entry": "clouds", "bands": bands, "shape": [None, count, len(bands)]}


@pytest.mark.parametrize("distinct", [1, 7, 24, 60])
@pytest.mark.parametrize("how", ["farthest", "random"])
@pytest.mark.parametrize("bands", [(), ("feature2", "feature0"), ("height", "ring")])
@pytest.mark.fast_cases("bands0-random-60", "bands1-farthest-60", "bands2-random-7")
def test_the_code_for_clouds_chooses_among_different_points_as_the_run_does(
    distinct, how, bands, tmp_path, monkeypatch
):
    rng, count = np.random.default_rng(distinct), 24
    points = np.concatenate([rng.normal(size=(distinct, 3)) + 5e5, rng.random((distinct, 3))], axis=1).round(4)
    rows = points[np.concatenate([np.arange(distinct), rng.integers(0, distinct, 40)])]
    rows[distinct:, 3:] += 1  # the attributes of a repeated point are those of its first row
    np.savetxt(tmp_path / "cloud.xyz", rows)
    entries = [_cloud_entry("points", "xyz", count), *([_cloud_entry("features", bands, count)] if bands else [])]
    facts = {"inputs": entries, "preparation": {"points": {"points": count, "subsample": how}}}
    names = {}
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", _reading(facts), re.DOTALL).group(1), names)
    found, real = names["points"][0], min(count, distinct)
    assert (found.shape, found.dtype) == ((count, 3), np.float32)
    assert np.isnan(found[real:]).all()
    # The run's first point is random.
    first_at_zero = SimpleNamespace(integers=lambda n: 0, choice=lambda n, *_, **__: names["chosen"])
    chosen = choose_points(rows[:, :3], count, how, first_at_zero)
    order = np.argsort(names["chosen"])
    assert np.allclose(found[:real][order], rows[chosen, :3] - rows[0, :3], atol=1e-4)
    if bands:
        columns = [5, 3] if bands[0] == "feature2" else [3, 4]
        assert np.allclose(names["features"][0, :real][order], rows[chosen][:, columns])
        assert (names["features"][0, real:] == 0).all()


@pytest.mark.slow_cases("video-eager")
def test_an_export_teaches_as_its_run(place, opened, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place.root)
    trained, files, _ = opened
    student = dataclasses.replace(trained.card, classes=trained.card.classes[::-1])
    of_run, of_export = (LoadedTeacher(path, student) for path in ("run", "out"))
    streams = {name: x for name, x in files.batch(range(5)).items() if name in trained.card.streams}
    expected = trained.classify(streams)[0].flip(1)
    assert (of_run(streams) - expected).abs().max() < 1e-5
    assert (of_export(streams) - expected).abs().max() < 1e-5
    if place.kind == "video":
        # Augmented frames have values between levels and outside of 0..1, progressive sizes are others.
        augmented = {"video": streams["video"] * 1.3 - 0.1}
        levels = {"video": (augmented["video"].clamp(0, 1) * 255).round() / 255}
        assert (of_export(augmented) - of_run(levels)).abs().max() < 1e-5
        larger = {"video": streams["video"].repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)}
        assert (of_run(larger) - expected).abs().max() < 0.05
    words = [*place.data, "--task.name", "distill", "--task.teacher", "out", "--run.tensorboard", "false"]
    assert main(["train", *words, "--run.dir", str(tmp_path / "student")]) == 0
    capsys.readouterr()
    name, noun = ("num_frames", "frames") if place.kind == "video" else ("num_points", "points")
    count = int(place.settings[name])
    words[words.index(f"--model.{name}") + 1] = str(2 * count)
    assert main(["train", *words, "--run.dir", str(tmp_path / "other")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"of {count} {noun}, and the student of {2 * count}; set --model.{name} {count}" in line
