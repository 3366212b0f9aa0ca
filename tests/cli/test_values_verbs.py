"""Runs on images with pixels without data and with ranges decided by type, through all verbs."""

import json
import re
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import tifffile

from tests.rasters import write_classes, write_tiff
from vitrail.cli.main import main
from vitrail.errors import DataWarning

MODEL = ["--model.name", "vit", "--model.img_size", "16", "--model.patch_size", "8", "--model.embed_dim", "8",
         "--model.depth", "1", "--model.num_heads", "2"]  # fmt: skip
QUICK = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true",
         "--data.loader.num_workers", "0", "--run.tensorboard", "false", "--data.batch_size", "8"]  # fmt: skip
BANDS = ["--data.bands.names", "[vv, vh]"]


def data_of(root):
    return ["--data.source", "folder", "--data.path", str(root), *BANDS]


@pytest.fixture(scope="module")
def lossy(tmp_path_factory):
    """A run on images of which a third has no data."""
    root = tmp_path_factory.mktemp("lossy")
    rng = np.random.default_rng(0)

    def draw(label):
        x = rng.normal(1500 + 800 * label, 200, (2, 20, 20)).astype("int16")
        x[:, rng.random((20, 20)) < 0.3] = -9999
        return x

    write_classes(root / "d", draw, number=12, nodata=-9999)
    settings = [*data_of(root / "d"), "--data.values.range", "[0, 4000]", "--data.augment", "standard"]
    assert main(["train", *settings, *MODEL, *QUICK, "--run.dir", str(root / "run")]) == 0
    return root


def test_training_states_the_share_and_normalises_by_valid_pixels(lossy, capsys):
    assert main(["data", "stats", str(lossy / "run" / "recipe.yaml"), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    card = json.loads((lossy / "run" / "model.json").read_text())
    bands = measured["streams"]["image"]
    assert card["streams"]["image"]["mean"] == pytest.approx([band["mean"] for band in bands], abs=1e-5)
    assert all(0.4 < band["mean"] < 0.55 for band in bands)
    assert all(0.2 < band["no_data"] < 0.4 for band in bands)
    assert "no-data values, in 24 of 24 images" in measured["notes"][0]
    assert main(["data", "stats", str(lossy / "run" / "recipe.yaml")]) == 0
    assert "% of the values of vv, vh are no-data values" in capsys.readouterr().out


def test_every_verb_fills_pixels_without_data(lossy, tmp_path, capsys):
    run = str(lossy / "run")
    assert main(["evaluate", run, "--device", "cpu"]) == 0
    saved = pd.read_parquet(lossy / "run" / "predictions" / "test.parquet")
    assert np.isfinite(np.stack(saved["logits"])).all()
    assert main(["predict", run, str(lossy / "d" / "0"), "--out", str(tmp_path / "p.csv")]) == 0
    told = pd.read_csv(tmp_path / "p.csv")
    assert told["probability"].between(0.5, 1).all()
    # A file whose lost pixels hold the run's mean instead is the same image to the model.
    card = json.loads((lossy / "run" / "model.json").read_text())
    x = tifffile.imread(lossy / "d" / "0" / "0.tif").astype("float64")[:, :16, :16]
    means = np.array(card["streams"]["image"]["mean"])[:, None, None] * 4000
    write_tiff(tmp_path / "few" / "lost.tif", x.astype("float32"), nodata=-9999)
    write_tiff(tmp_path / "few" / "mean.tif", np.where(x == -9999, means, x).astype("float32"))
    assert main(["predict", run, str(tmp_path / "few"), "--out", str(tmp_path / "q.csv")]) == 0
    pair = pd.read_csv(tmp_path / "q.csv")["probability"]
    assert pair[0] == pytest.approx(pair[1], abs=1e-4)
    for words in (
        ["explain", run, "--out", str(tmp_path / "ex"), "--number", "2"],
        ["features", run, "--out", str(tmp_path / "f")],
        ["report", run, "--without", "features", "explanations"],
        ["data", "audit", str(lossy / "run" / "recipe.yaml"), "--out", str(tmp_path / "a.html")],
        ["data", "show", str(lossy / "run" / "recipe.yaml"), "--out", str(tmp_path / "s.png")],
        ["evaluate", run, "--attacks", "0.01", "--device", "cpu"],
    ):
        assert main(words) == 0, capsys.readouterr().err
    robust = json.loads((lossy / "run" / "evaluation" / "robustness.json").read_text())
    assert 0 <= robust["attacks"]["accuracy"] <= 1


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """A run on 16-bit images whose range their type decided."""
    root = tmp_path_factory.mktemp("typed")
    rng = np.random.default_rng(1)
    write_classes(root / "d", lambda label: rng.integers(500, 9000 + 5000 * label, (2, 16, 16)).astype("uint16"), 12)
    assert main(["train", *data_of(root / "d"), *MODEL, *QUICK, "--run.dir", str(root / "run")]) == 0
    return root


@pytest.mark.slow
def test_a_run_keeps_the_range_that_its_type_decided(typed, tmp_path, capsys):
    run = typed / "run"
    card = json.loads((run / "model.json").read_text())
    assert card["streams"]["image"]["value_type"] == "uint16"
    assert main(["predict", str(run), str(typed / "d" / "0"), "--out", str(tmp_path / "p.csv")]) == 0
    # Images that would be refused for training, dark as they are, are read by the run's range.
    dark = np.random.default_rng(2).integers(0, 200, (2, 16, 16))
    write_tiff(tmp_path / "dark.tif", dark.astype("uint16"))
    assert main(["predict", str(run), str(tmp_path / "dark.tif"), "--out", str(tmp_path / "q.csv")]) == 0
    capsys.readouterr()
    for kind in ("uint8", "int16", "float32", "int64"):
        write_tiff(tmp_path / f"{kind}.tif", dark.astype(kind))
        for verb in (["predict"], ["explain", "--out", str(tmp_path / "ex")]):
            assert main([verb[0], str(run), str(tmp_path / f"{kind}.tif"), *verb[1:]]) == 1
            said = capsys.readouterr().err
            assert re.search(rf"{kind}\.tif holds {kind} values and the run was trained on uint16", said), said


@pytest.mark.slow
def test_training_logs_the_maximum_and_what_fills_it(typed, tmp_path, capsys):
    assert main(["train", *data_of(typed / "d"), *MODEL, *QUICK, "--run.dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert re.search(r"^data\.scale: 65535, the largest uint16, becomes 1; .* fill 2\d\.\d% of that range$", said, re.M)


def test_training_warns_of_values_that_are_cut_off(typed, tmp_path, capsys):
    words = ["train", *data_of(typed / "d"), *MODEL, *QUICK, "--run.dir", str(tmp_path / "run")]
    with pytest.warns(DataWarning, match=r"^data\.scale: values of v.* \(0\.0% below, \d\.\d% above\)"):
        assert main([*words, "--data.scale", "13000"]) == 0
    capsys.readouterr()
    words = ["train", *data_of(typed / "d"), *MODEL, *QUICK, "--run.dir", str(tmp_path / "other")]
    assert main([*words, "--data.scale", "2000"]) == 1
    assert re.search(r"most values of v.* would be cut off; --data\.scale 14000 holds all", capsys.readouterr().err)
    assert not (tmp_path / "other").exists()


def test_warnings_about_data_are_plain_lines(typed, capsys, monkeypatch):
    def show(message, category, filename, lineno, file=None, line=None):
        print(warnings.formatwarning(message, category, filename, lineno), end="", file=sys.stderr)

    # Pytest collects warnings; here they are printed, as outside of it.
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        assert main(["data", "stats", *data_of(typed / "d"), "--data.scale", "13000", "--json"]) == 0
    done = capsys.readouterr()
    assert json.loads(done.out)["streams"]["image"][0]["cut_high"] > 0.01
    assert done.err.startswith("warning: data.scale: values of v")
