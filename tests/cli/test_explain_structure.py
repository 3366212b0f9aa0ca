"""``vitrail explain --structure``: pictures and tables are what the library says; every misuse is one clear line."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from tests.cli.test_verbs import SMALL, fails
from tests.images import make_folder
from vitrail.cli.main import main
from vitrail.data.images import read_image
from vitrail.explain import all_features, attention_distances, cka_matrix, position_similarities
from vitrail.runs import load_trained


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), splits=("train", "val"), per_class=8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, images):
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("x", "0"), ("y", "1")):
        assert main(["train", "--data.source", "folder", "--data.path", str(images), *SMALL, "--run.seed", seed,
                     "--run.dir", str(root / name)]) == 0  # fmt: skip
    return root


def _inputs(trained, images):
    files = sorted(file for file in (images / "val").rglob("*") if file.is_file())
    raw = torch.stack([read_image(file, size=(16, 16)).float() / 255 for file in files])
    return trained.normalize({"image": raw})


def test_all_structures_of_a_run(runs, images, capsys):
    assert main(["explain", str(runs / "x"), "--structure", "all", "--split", "val"]) == 0
    folder = runs / "x" / "structure"
    names = [
        "projection_filters",
        "position_similarity",
        "attention_distance",
        "attention_entropy",
        "head_focus",
        "cka",
    ]
    assert capsys.readouterr().out.startswith(", ".join(names))
    index = json.loads((folder / "structure.json").read_text())
    assert list(index["structures"]) == names
    for name in names:
        assert {f.suffix for f in folder.glob(f"{name}.*")} == {".png", ".svg", ".csv"}
    trained = load_trained(runs / "x")
    inputs = _inputs(trained, images)
    table = pd.read_csv(folder / "attention_distance.csv")
    expected = attention_distances(trained.model, *inputs)
    assert list(table["layer"].unique()) == [d.layer for d in expected]
    for d in expected:
        rows = table[table["layer"] == d.layer]
        assert np.allclose(rows["mean"], d.distance.mean(0), rtol=1e-4)
        assert np.allclose(rows["std"], d.distance.std(0, correction=0), atol=1e-4)
        assert np.allclose(rows["uniform"], d.uniform, rtol=1e-5)
    features = all_features(trained.model, inputs)
    cka = pd.read_csv(folder / "cka.csv").pivot(index="layer", columns="other_layer", values="cka")
    assert np.allclose(cka.loc[list(features), list(features)], cka_matrix(features, features), atol=1e-4)
    (positions,) = position_similarities(trained.model)
    table = pd.read_csv(folder / "position_similarity.csv")
    assert len(table) == 16
    for row in table.itertuples():
        at = row.row - 1, row.column - 1, row.to_row - 1, row.to_column - 1
        assert row.similarity == pytest.approx(float(positions.similarity[at]), abs=1e-5)


def test_two_runs_and_the_report(runs, images, capsys):
    run = str(runs / "x")
    assert main(["explain", run, "--structure", "cka", "--other", str(runs / "y"), "--split", "val"]) == 0
    first, second = (all_features(t.model, _inputs(t, images)) for t in map(load_trained, (run, runs / "y")))
    table = pd.read_csv(runs / "x" / "structure" / "cka_y.csv")
    cka = table.pivot(index="layer", columns="other_layer", values="cka").loc[list(first), list(second)]
    assert np.allclose(cka, cka_matrix(first, second), atol=1e-4)
    assert main(["evaluate", run]) == 0
    assert main(["report", run]) == 0
    assert "What the model learned" in (runs / "x" / "report.html").read_text()
    text = (runs / "x" / "report.md").read_text()
    assert "](<structure/cka_y.png>)" in text


@pytest.mark.slow_cases("words1-has no relative positions; .* structures of this model: projection_")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--structure", "ckaa"], "no structure 'ckaa'; did you mean 'cka'\\?; structures: projection_filters, "),
        (["--structure", "relative_positions"], "has no relative positions; .* structures of this model: projection_"),
        (["--structure", "cka", "cka"], "named twice"),
        (["--structure", "cka", "--method", "rollout"], "--method explains predictions"),
        (["--structure", "head_focus", "--other", "x"], "second model of --structure cka"),
        (["--other", "x", "--out", "y"], "second model of --structure cka"),
        (["--structure", "projection_filters", "--split", "val"], "needs no images"),
        ([], "--out DIR is missing"),
    ],
)
def test_misuse_is_one_clear_line(runs, capsys, words, message):
    fails(capsys, ["explain", runs / "x", *words], 2, message)


def test_structures_are_listed(capsys):
    assert main(["explain", "--structures"]) == 0
    assert "position_similarity" in capsys.readouterr().out
