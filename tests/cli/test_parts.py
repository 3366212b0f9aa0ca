"""Runs that label points, by every verb."""

import csv
import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from tests.deploy.eager import run_eagerly
from tests.deploy.exporting import QUICK, record
from tests.train.test_point_clouds import PARTS, SMALL, VNT
from tests.undrawn import _undrawn as _undrawn
from vitrail.cli.main import main
from vitrail.data.points.solids import CLASSES, make_solid
from vitrail.data.points.solids import PARTS as FACES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One epoch on 60 solids; each test has it as ``run`` in its working directory."""
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        drawn = ["--run.explain_images", "2", "--run.explain_method", "gradcam"]
        assert main(["train", *VNT, *SMALL, *PARTS, "--data.points.drop", "0.2", *drawn]) == 0
        assert main(["evaluate", "run"]) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def _here(run, monkeypatch):
    monkeypatch.chdir(run.parent)


def do(capsys, words, code=0):
    capsys.readouterr()
    assert main(words.split()) == code
    return capsys.readouterr()


def test_validation_measures_what_evaluate_does(run, capsys):
    card = json.loads((run / "model.json").read_text())
    assert card["settings"]["per_point"] is True
    assert "cone base" in card["classes"]
    with (run / "metrics.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    out = do(capsys, "evaluate run --split val").out
    folder = run / "evaluation" / "val"
    plain = json.loads((folder / "metrics.json").read_text())
    assert plain["miou"] == pytest.approx(float(row["val_miou"]), abs=1e-5)
    assert plain["accuracy"] == pytest.approx(float(row["val_accuracy"]), abs=1e-5)
    assert f"mIoU {plain['miou']:.4f} (95 % interval" in out
    assert {path.name for path in folder.iterdir()} >= {"parts.csv", "clouds.csv", "confusion.csv", "parts.png"}
    saved = pd.read_parquet(run / "predictions" / "val.parquet")
    true, labels = (np.concatenate(saved[name].to_list()) for name in ("parts", "predicted"))
    confusion = pd.read_csv(folder / "confusion.csv", index_col=0)
    np.testing.assert_array_equal(confusion, confusion_matrix(true, labels, labels=range(len(confusion))))
    scores = jaccard_score(true, labels, labels=np.unique(true), average="macro", zero_division=0)
    assert plain["miou"] == pytest.approx(scores)
    do(capsys, "evaluate run --split val --tta so3")
    turned = json.loads((run / "evaluation" / "val-so3" / "metrics.json").read_text())
    assert turned["miou"] == pytest.approx(plain["miou"], abs=1e-3)
    assert turned["points"] == plain["points"] == 24 * plain["images"]


@pytest.mark.slow
def test_features_are_means_over_the_points_of_a_cloud(run, capsys):
    assert (run / "figures" / "explanations" / "epoch_001.png").is_file()
    out = do(capsys, "features run --layout pca --out spaces").out
    table = pd.read_csv(run.parent / "spaces" / "features.csv")
    assert table["dimensions"].tolist() == [8]
    assert "embedding" in out
    assert set(pd.read_csv(run.parent / "spaces" / "coordinates.csv")["class"]) == set(CLASSES)
    do(capsys, "explain run --structure cka --number 6 --out learned")
    assert (run.parent / "learned" / "cka.csv").is_file()


def test_predict(run, capsys):
    cloud = np.random.default_rng(0).normal(size=(20, 3)) * 7 + 100
    np.savetxt("cloud.xyz", cloud)
    out = do(capsys, "predict run cloud.xyz --out points.csv --overlay drawn").out
    assert "20 points of 1 point cloud labelled; 1 picture and clouds.html in drawn" in out
    assert {path.name for path in (run.parent / "drawn").iterdir()} == {"cloud.png", "clouds.html"}
    table = pd.read_csv("points.csv")
    assert table.columns.tolist() == ["path", "x", "y", "z", "class", "probability"]
    assert np.allclose(table[["x", "y", "z"]], cloud, atol=1e-4)
    assert set(table["class"]) <= set(json.loads((run / "model.json").read_text())["classes"])


def test_report(run, capsys):
    do(capsys, "report run --out pages/report.html")
    page = (run.parent / "pages" / "report.md").read_text()
    for text in ("label points by 10 parts", "Weak parts", "figures/clouds_run.png", "## Efficiency", "IoU, mIoU",
                 "figures/explanations_run.png", "by part_rollout and gradcam"):  # fmt: skip
        assert text in page, text
    prose = page.partition("```yaml")[0]
    assert " image" not in prose
    assert re.findall(r"(?<![Pp]oint )(?<![\w/])clouds?\b(?![._])", prose) == []
    assert len(pd.read_csv(run.parent / "pages" / "tables" / "parts.csv")) == 10


def test_explain(run, capsys):
    do(capsys, "explain run --method part_rollout gradcam --number 1 --out own")
    content = json.loads((run.parent / "own" / "explanations.json").read_text())
    (entry,) = content["images"]
    assert sum(entry["points"].values()) == 24
    assert 0 <= entry["accuracy"] <= 1
    main_part, number = next(iter(entry["points"].items()))
    assert entry["methods"]["gradcam"]["target"] == f"{main_part} ({number} point{'s' * (number != 1)})"
    assert (run.parent / "own" / entry["panel"]).is_file()
    page = (run.parent / "own" / "clouds.html").read_text(encoding="utf-8")
    assert "true parts" in page
    np.savetxt("cloud.xyz", np.random.default_rng(0).normal(size=(20, 3)))
    do(capsys, "explain run cloud.xyz --target cone_base --out files", 2)
    assert "explained by part_rollout" in do(capsys, "explain run cloud.xyz --target 1 --out files").out
    (entry,) = json.loads((run.parent / "files" / "explanations.json").read_text())["images"]
    assert entry["accuracy"] is None
    assert entry["methods"]["part_rollout"]["target"].startswith("cone base (")


def test_export(run, capsys):
    with run_eagerly():
        do(capsys, f"export run --out out {' '.join(QUICK)} --include embedding heatmap")
        found = record(run.parent / "out")
        assert found["test"]["metric"] == "mIoU"
        assert found["test"]["agreement"] == 1
        measures = json.loads((run / "evaluation" / "metrics.json").read_text())
        assert found["test"]["original"] == pytest.approx([measures[f"miou{end}"] for end in ("", "_low", "_high")])
        assert "N x points x classes" in (run.parent / "out" / "1" / "README.md").read_text()
        np.savetxt("short.xyz", np.random.default_rng(0).normal(size=(20, 3)) * 7)  # fewer points than the model has
        tables = []
        for path in ("run", "out"):
            do(capsys, f"predict {path} short.xyz --out {path}.csv")
            tables.append(pd.read_csv(f"{path}.csv"))
        assert tables[0]["class"].tolist() == tables[1]["class"].tolist()
        np.testing.assert_allclose(tables[0]["probability"], tables[1]["probability"], atol=1e-5)
        do(capsys, "explain out short.xyz --out drawn_out")
        (entry,) = json.loads((run.parent / "drawn_out" / "explanations.json").read_text())["images"]
        assert sum(entry["points"].values()) == 20
        clouds = [make_solid(5, i, 24, 0.0, 0.0) for i in range(12)]
        np.savez("other.npz", points=np.stack([one.points for one in clouds]), label=[one.target for one in clouds],
                 classes=CLASSES, part_names=FACES, side=np.stack([one.parts for one in clouds]))  # fmt: skip
        data = "--data.source points --data.path other.npz --data.points.part side"
        lines = [do(capsys, f"evaluate {path} {data}").out.partition("mIoU")[2] for path in ("run", "out")]
        assert lines[0].partition("written")[0] == lines[1]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_an_export_of_reduced_precision_is_refused(capsys, precision):
    with run_eagerly():
        err = do(capsys, f"export run --out no --precision {precision} --budget 0s --threads 1", 1).err
    assert f"{precision}: labels of points are shown to be equal, in fp32 alone" in err


@pytest.mark.parametrize(
    "words",
    ["export run --include ood", "evaluate run --missing", "evaluate run --from-predictions"],
)
def test_refused(capsys, words):
    assert main(words.split()) != 0
    assert "labels points" in capsys.readouterr().err
