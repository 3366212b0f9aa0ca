"""``vitrail features`` on tiny runs: what is measured, what is drawn, a page that needs no network, and misuse."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import vitrail
from tests.cli.test_verbs import fails
from vitrail.analyze.features import separation
from vitrail.cli.main import main
from vitrail.errors import ConfigError
from vitrail.explain.structure.features import layer_features, layers_of
from vitrail.models.registry import list_families
from vitrail.runs import RunFolder, load_trained

TINY = (
    "--model.name vit --model.img_size 8 --model.patch_size 4 --model.embed_dim 16 --model.depth 2 --model.num_heads 2 "
    "--trainer.max_epochs 1 --trainer.accelerator cpu --data.batch_size 400 --data.loader.num_workers 0 "
    "--run.tensorboard false"
).split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A classifier that was evaluated, and a pre-trained model."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", *TINY, "--run.dir", str(folder / "scratch")]) == 0
    assert main(["evaluate", str(folder / "scratch")]) == 0
    words = ["--task.name", "simmim", "--task.watch_every", "0"]
    assert main(["pretrain", *TINY, *words, "--run.dir", str(folder / "pre")]) == 0
    return folder


@pytest.mark.drawn
@pytest.mark.slow
def test_runs_side_by_side(runs, capsys):
    words = ["features", runs / "scratch", runs / "pre", "--layout", "pca", "tsne", "--most", "60"]
    assert main([str(word) for word in words]) == 0
    out = runs / "features"
    assert f"written to {out}" in capsys.readouterr().out
    table = pd.read_csv(out / "features.csv")
    assert table["run"].tolist() == ["scratch", "pre"]
    assert table["images"].tolist() == [60, 60]
    places = pd.read_csv(out / "coordinates.csv", dtype={"class": str})
    assert places.groupby(["run", "layout"]).size().tolist() == [60] * 4
    one, two = (places[(places["run"] == run) & (places["layout"] == "pca")] for run in ("scratch", "pre"))
    assert one["path"].tolist() == two["path"].tolist()
    # The coordinates are those of the images' own embeddings, and the classes the images' own.
    run = RunFolder(runs / "scratch")
    stored = run.read_predictions("test").assign(row=range(359)).set_index("path").loc[one["path"]]
    features = run.read_embeddings("test")[stored["row"]].astype(np.float64)
    centred = features - features.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    assert np.allclose(np.abs(centred @ axes.T), np.abs(one[["x", "y"]]), atol=1e-4)
    assert one["class"].tolist() == stored["target"].astype(str).tolist()
    silhouette, accuracy = separation(features.astype(np.float32), stored["target"].to_numpy())
    assert table["silhouette"][0] == pytest.approx(silhouette, abs=1e-5)
    assert table["knn_accuracy"][0] == pytest.approx(accuracy)
    for name in ("pca.png", "pca.svg", "tsne.png", "tsne.svg"):
        assert (out / name).stat().st_size > 1000


def test_the_page_needs_no_network(runs):
    assert main(["features", str(runs / "scratch"), "--layout", "pca", "--most", "20"]) == 0
    page = (runs / "scratch" / "features" / "features.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=.(?!data:)\w", page)
    content = json.loads(re.search(r"^const images = (.*);$", page, re.MULTILINE)[1])
    assert len(content["thumbnails"]) == len(content["told"]) == 20
    assert all(t.startswith("data:image/jpeg;base64,") for t in content["thumbnails"])
    figure = json.loads(re.search(r"^const figure = (.*);$", page, re.MULTILINE)[1])
    numbers = [n for trace in figure["data"] for n in trace["customdata"]]
    assert sorted(numbers) == list(range(20))
    for trace in figure["data"]:
        assert {content["told"][n]["label"] for n in trace["customdata"]} <= {trace["name"]}


@pytest.mark.fast_cases("embedding")
@pytest.mark.parametrize("layer", ["embedding", "blocks.0"])
def test_what_is_computed_is_what_was_stored(runs, tmp_path, layer):
    """Without an evaluation's embeddings they are computed; a level is the mean over its positions."""
    copy = shutil.copytree(runs / "scratch", tmp_path / "copy")
    run = RunFolder(copy)
    stored = {path: row for path, row in zip(run.read_predictions("test")["path"], run.read_embeddings("test"),
                                             strict=True)}  # fmt: skip
    run.embeddings("test").unlink()
    words = ["--layout", "pca", "--most", "30", "--layer", layer, "--out", str(tmp_path / "out")]
    assert main(["features", str(copy), *words]) == 0
    places = pd.read_csv(tmp_path / "out" / "coordinates.csv")
    features = np.stack([stored[path] for path in places["path"]])
    centred = features - features.mean(0)
    projected = np.abs(centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T)
    assert np.allclose(projected, np.abs(places[["x", "y"]]), atol=1e-4) == (layer == "embedding")


@pytest.mark.fast_cases("vit")
@pytest.mark.parametrize("name", ["vit", "swin", "maxvit", "hvt"])
def test_layers_of_every_family(name):
    model = vitrail.create_model(name, **list_families()[name].test_config).eval()
    inputs = [torch.randn(2, s.chans, *s.size) for s in model.streams]
    for number, layer in enumerate(layers_of(model)):
        features = layer_features(model, inputs, layer)
        if layer == "embedding":
            seen = []
            model.get_submodule(model.classifier).register_forward_pre_hook(
                lambda _, given, seen=seen: seen.append(given)
            )
            model(*inputs)
            assert torch.allclose(features, seen[0][0], atol=1e-5)
        else:
            level = model.forward_intermediates(*inputs, indices=[number], intermediates_only=True)[0]
            assert torch.allclose(features, level.mean((2, 3)), atol=1e-5)
    with pytest.raises(ConfigError, match=f"no layer 'nowhere'.*{layers_of(model)[0]}"):
        layer_features(model, inputs, "nowhere")


def test_separation():
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], 12)
    apart = (np.eye(3)[targets] + rng.normal(0, 0.01, (36, 3))).astype(np.float32)
    silhouette, accuracy = separation(apart, targets)
    assert silhouette > 0.9
    assert accuracy == 1
    mixed, chance = separation(rng.normal(size=(36, 3)).astype(np.float32), targets)
    assert mixed < 0.1
    assert chance < 0.8
    # By hand: one image, its mean distance to its own class and to the nearest other.
    unit = apart / np.linalg.norm(apart, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    means = np.stack([distance[:, targets == c].sum(1) / (12 - (targets == c)) for c in range(3)], axis=1)
    own = means[np.arange(36), targets]
    other = np.where(np.eye(3, dtype=bool)[targets], np.inf, means).min(1)
    assert silhouette == pytest.approx(((other - own) / np.maximum(own, other)).mean(), abs=1e-4)
    assert separation(apart[:13], targets[:13]) == (None, None)


def test_misuse(capsys, runs, tmp_path):
    scratch = runs / "scratch"
    fails(capsys, ["features", scratch, "--layout", "tnse"], 2, "no layout 'tnse'; did you mean 'tsne'")
    fails(capsys, ["features", scratch, "--layout", "pca", "pca"], 2, "named twice")
    fails(capsys, ["features", scratch, "--layer", "blocks.7"], 2, "no layer 'blocks.7'.*blocks.1, embedding")
    fails(capsys, ["features", scratch, "--most", "3"], 1, "3 images; a layout needs at least 5")
    fails(capsys, ["features", scratch, scratch, "--most", "9"], 2, "need different folder names")
    fails(capsys, ["features", tmp_path / "none"], 1, "no run folder at")
    copy = shutil.copytree(scratch, tmp_path / "leaves")
    card = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**card, "classes": [*"abcdefghij"]}))
    fails(capsys, ["features", copy], 1, "the run knows the classes a, b")


def test_umap_is_an_extra(capsys, runs, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fails(capsys, ["features", runs / "scratch", "--layout", "umap"], 1, r"pip install 'vitrail\[umap\]'")


def test_images_without_labels(capsys, runs, tmp_path):
    """They have no colours; the images of another run may be taken."""
    copy = shutil.copytree(runs / "pre", tmp_path / "blind")
    folder = tmp_path / "pile"
    folder.mkdir()
    from tests.images import save_image

    for i in range(6):
        save_image(folder / f"{i}.png", mode="L")
    recipe = (copy / "recipe.yaml").read_text()
    recipe = recipe.replace("source: digits", "source: unlabelled").replace("\n  path: null", f"\n  path: {folder}")
    (copy / "recipe.yaml").write_text(recipe.replace("color: rgb", "color: gray"))
    fails(capsys, ["features", copy], 1, "nothing to colour points by; --data-of RUN")
    words = ["--data-of", str(runs / "scratch"), "--layout", "pca", "--most", "20", "--out", str(tmp_path / "out")]
    assert main(["features", str(copy), *words]) == 0
    assert load_trained(copy).card.classes == ()
