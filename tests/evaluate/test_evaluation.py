"""An evaluation's files: with the model, from what it saved, with groups, and what is said where something lacks."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.images import make_folder, save_image
from vitrail.cli.main import main
from vitrail.cli.recipes import load_run_recipe
from vitrail.config import DataConfig
from vitrail.errors import ConfigError, DataError
from vitrail.evaluate.groups import groups_of_predictions
from vitrail.evaluate.out_of_distribution import measure_ood
from vitrail.evaluate.run import open_evaluation
from vitrail.evaluate.saved_predictions import Intervals
from vitrail.models import create_model
from vitrail.runs import ModelCard, RunFolder, StreamCard, TrainedModel
from vitrail.runs.trained import write_trained

CLASSES = ("dark", "light")
QUICK = ("--resamples", "100")
SETTINGS = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = make_folder(tmp_path_factory.mktemp("images"), splits=("train", "val", "test"), per_class=10)
    for split in ("val", "test"):  # some that nobody gets right
        save_image(root / split / "dark" / "11.png", level=180)
        save_image(root / split / "light" / "11.png", level=60)
    return root


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Neither timings nor pictures, but where a test looks at them."""
    if request.node.name != "test_all_that_predictions_tell":
        monkeypatch.setattr("vitrail.evaluate.run.measure_efficiency", lambda *args, **kwargs: {"parameters": 1})
        monkeypatch.setattr("vitrail.cli.evaluate._draw_mistakes", lambda *arguments: None)


def _run(folder, images, data=""):
    """A run as training leaves it, with a head that tells light from dark and nothing else trained."""
    run = RunFolder.create(folder)
    run.recipe.write_text(
        f"data: {{source: folder, path: {images}, img_size: 16, num_workers: 0, batch_size: 8{data}}}\n"
        f"model: {{name: vit, img_size: 16}}\nrun: {{dir: {folder}}}\n"
    )
    _write(run, seed=0)
    return run


def _write(run, seed):
    torch.manual_seed(seed)
    streams = {"image": StreamCard(("red", "green", "blue"), (0.5,) * 3, (0.3,) * 3, (16, 16))}
    card = ModelCard("vit", SETTINGS, CLASSES, streams)
    trained = TrainedModel(create_model("vit", **SETTINGS).eval(), card.normalization(), card)
    means = [trained.classify({"image": torch.full((1, 3, 16, 16), level)})[1][0] for level in (60 / 255, 180 / 255)]
    away = (means[1] - means[0]) / (means[1] - means[0]).square().sum()
    with torch.no_grad():
        trained.model.head.weight.copy_(torch.stack([-3 * away, 3 * away]))
        trained.model.head.bias.copy_(trained.model.head.weight @ (means[0] + means[1]) / -2)
    write_trained(run, trained.model.state_dict(), card)


@pytest.fixture
def run(tmp_path, images):
    return _run(tmp_path / "run", images)


def _json(file):
    return json.loads(file.read_text())


def fails(capsys, words, code, message):
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line), line


def test_all_that_predictions_tell(run, capsys):
    assert main(["evaluate", str(run), "--resamples", "200"]) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) <= 7
    assert {path.name for path in run.evaluation.iterdir()} >= {
        "metrics.json", "per_class.csv", "curves.csv", "confusion.csv",
        "confusion_normalized.csv", "confusion_clustered.csv",
        "calibration.json", "reliability.csv", "conformal.json", "selective.csv", "mistakes.csv", "mistakes.png",
    }  # fmt: skip
    metrics = _json(run.evaluation / "metrics.json")
    assert metrics["split"] == metrics["name"] == "test"
    assert metrics["roc_auc_micro"] > 0.5
    data = _json(run.balance)
    assert data["splits"] == {"train": 20, "val": 22, "test": 22}
    assert data["balance"]["dark"]["train"] + data["balance"]["light"]["train"] == 20
    assert metrics["efficiency"]["latency_ms"]["p50"] <= metrics["efficiency"]["latency_ms"]["p99"]
    assert metrics["intervals"]["resamples"] == 200
    assert metrics["intervals"]["unit"] == "image"
    low, high = metrics["intervals"]["measures"]["mcc"]
    assert low <= metrics["mcc"] <= high
    calibration = _json(run.evaluation / "calibration.json")
    assert calibration["temperature"]["fitted_on"] == "val"
    assert calibration["temperature"]["images"] == 22
    assert calibration["nll"] == pytest.approx(metrics["nll"])
    assert _json(run.evaluation / "conformal.json")["calibrated_on"] == "val"
    mistakes = pd.read_csv(run.evaluation / "mistakes.csv")
    assert len(mistakes) == 22 - round(22 * metrics["accuracy"])
    with Image.open(run.evaluation / "mistakes.png") as sheet:
        assert sheet.format == "PNG"
    table = pd.read_csv(run.evaluation / "per_class.csv")
    assert (table["recall_low"] <= table["recall"]).all()
    reliability = pd.read_csv(run.evaluation / "reliability.csv")
    assert reliability.groupby(["logits", "bins"])["count"].sum().tolist() == [22] * 4


def test_from_predictions_the_same_comes_out_without_the_model(run, capsys, monkeypatch):
    assert main(["evaluate", str(run), "--resamples", "200"]) == 0
    files = [path for path in run.evaluation.iterdir() if path.suffix in (".csv", ".json")]
    before = {path.name: path.read_text() for path in files}
    for path in files:
        if path.name != "metrics.json":
            path.unlink()

    def refuse(*args, **kwargs):
        raise AssertionError("the model was asked for")

    monkeypatch.setattr("vitrail.evaluate.run.load_classifier", refuse)
    monkeypatch.setattr("vitrail.runs.trained.create_model", refuse)
    monkeypatch.setattr("vitrail.data.dataset.open_source", refuse)
    assert main(["evaluate", str(run), "--resamples", "200", "--from-predictions"]) == 0
    assert {path.name: path.read_text() for path in files} == before
    assert main(["evaluate", str(run), "--from-predictions", "--split", "val"]) == 0
    assert "no temperature and no sets: the evaluated images are the validation images" in capsys.readouterr().out
    assert _json(run.evaluation / "metrics.json")["efficiency"] == {"parameters": 1}  # kept
    assert "efficiency" not in _json(run.evaluation / "val" / "metrics.json")
    fails(capsys, ["evaluate", run, "--from-predictions", "--split", "train"], 1, "no predictions of train; saved are")
    fails(capsys, ["evaluate", run, "--from-predictions", "--corruptions"], 2, "leave out --from-predictions")
    fails(capsys, ["evaluate", run, "--from-predictions", "--data.path", "x"], 2, "leave out --from-predictions")
    run.weights.write_bytes(run.weights.read_bytes() + b" ")
    fails(capsys, ["evaluate", run, "--from-predictions"], 1, "is of other weights")
    run.weights.unlink()  # predictions alone will do
    assert main(["evaluate", str(run), "--from-predictions"]) == 0


def test_without_a_validation_split_it_says_so(tmp_path, capsys):
    images = make_folder(tmp_path / "images", splits=("train", "test"), per_class=6)
    run = _run(tmp_path / "run", images, data=", val_fraction: 0")
    assert main(["evaluate", str(run), *QUICK]) == 0
    assert "no predictions of a validation split" in capsys.readouterr().out
    calibration = _json(run.evaluation / "calibration.json")
    assert calibration["temperature"] is None
    assert "trained with validation images" in calibration["why_no_temperature"]
    assert calibration["ece"] >= 0
    assert _json(run.evaluation / "conformal.json")["sets"] is None


def test_other_images_are_calibrated_on_the_runs_own(run, images, tmp_path, capsys):
    other = make_folder(tmp_path / "unseen", splits=(), per_class=4, seed=9)
    assert main(["evaluate", str(run), "--data.path", str(other), *QUICK]) == 0
    assert not run.balance.exists()  # these are not the images that the run was trained on
    (folder,) = (path for path in run.evaluation.iterdir() if path.is_dir())
    assert _json(folder / "calibration.json")["temperature"]["fitted_on"] == "val"
    assert "val" in run.saved_predictions()
    # Where the run's own images are gone, it is said.
    gone = _run(tmp_path / "gone", tmp_path / "nowhere")
    assert main(["evaluate", str(gone), "--data.path", str(other), *QUICK]) == 0
    assert "own images cannot be opened" in capsys.readouterr().out


def test_a_missing_band_is_its_mean_and_is_printed_by_its_drop(run, capsys):
    assert main(["evaluate", str(run), "--missing", *QUICK]) == 0
    table = pd.read_csv(run.evaluation / "missing.csv").iloc[1:].sort_values("drop", ascending=False, kind="stable")
    told = capsys.readouterr().out
    printed = [line.split()[:2] for line in told.splitlines() if line.startswith(("image ", "spectral "))]
    assert printed == table[["stream", "band"]].to_numpy().tolist()
    assert ("no band is shown to be needed on" in told) == (not (table["verdict"] == "needed").any())
    assert table["verdict"].iloc[0] in told
    evaluated = open_evaluation(
        run, DataConfig(source="folder", path=str(_path_of(run)), img_size=16, loader={"num_workers": 0})
    )
    batches = list(evaluated.images.loader("test"))
    everything, targets = (torch.cat([batch[name] for batch in batches]) for name in ("image", "target"))
    assert everything.shape[1] == 3
    everything[:, 1] = 0.5
    right = evaluated.trained.classify({"image": everything})[0].argmax(1) == targets
    assert table.set_index("band").loc["green", "accuracy"] == pytest.approx(right.double().mean().item())


def test_new_weights_make_new_predictions_and_drop_old_results(run):
    assert main(["evaluate", str(run), "--missing", *QUICK]) == 0
    assert (run.evaluation / "missing.csv").is_file()
    first = run.read_predictions("val")
    assert main(["evaluate", str(run), *QUICK]) == 0
    assert (run.evaluation / "missing.csv").is_file()
    _write(run, seed=1)
    assert main(["evaluate", str(run), *QUICK]) == 0
    second = run.read_predictions("val")
    assert (np.stack(first["logits"]) != np.stack(second["logits"])).any()
    assert not (run.evaluation / "missing.csv").exists()
    assert _json(run.evaluation / "robustness.json") == {}


def test_groups(run, capsys):
    assert main(["evaluate", str(run), "--groups", r"(\d)\.", *QUICK]) == 0
    assert "over 10 groups" in capsys.readouterr().out
    metrics = _json(run.evaluation / "metrics.json")
    assert metrics["intervals"]["unit"] == "group"
    pair = metrics["intervals"]["measures"]["accuracy"]
    assert pair is None or [metrics["accuracy_low"], metrics["accuracy_high"]] == pair
    fails(capsys, ["evaluate", run, "--groups", "plant_9"], 1, r"matches 0 of 22 paths")
    fails(capsys, ["evaluate", run, "--groups", "("], 2, "neither a column nor a regular expression")
    fails(capsys, ["evaluate", run, "--groups", r"(test)?"], 1, "at least 2 groups")


def test_groups_of_tables(tmp_path):
    pd.DataFrame({"path": ["a.png", "b.png"], "label": ["x", "y"], "plant": ["1", "2"]}).to_csv(
        tmp_path / "t.csv", index=False
    )
    data = DataConfig(source="table", path=str(tmp_path / "t.csv"))
    table = pd.DataFrame({"path": ["b.png", "a.png"], "group": ["p", "q"]})
    assert groups_of_predictions(table, "plant", data) == ["2", "1"]
    assert groups_of_predictions(table, None, data) == ["p", "q"]
    assert groups_of_predictions(table, "none", data) is None
    assert groups_of_predictions(table, r"(.)\.png", data) == ["b", "a"]
    assert groups_of_predictions(table[["path"]], None, data) is None
    with pytest.raises(DataError, match="no column has this name; did you mean 'plant'"):
        groups_of_predictions(table, "plants", data)
    with pytest.raises(DataError, match=r"1 image has no .plant. .first: c\.png"):
        groups_of_predictions(pd.DataFrame({"path": ["a.png", "c.png"]}), "plant", data)
    with pytest.raises(ConfigError, match="regular expression"):
        groups_of_predictions(table, "(", data)


def test_robustness_from_the_command_line(run, capsys):
    words = [
        "--corruptions",
        "fog",
        "pixelate",
        "--missing",
        "--attacks",
        "0.02",
        "0.1",
        "--sample",
        "9",
        "--seed",
        "3",
        *QUICK,
    ]
    assert main(["evaluate", str(run), *words]) == 0
    corruptions = pd.read_csv(run.evaluation / "corruptions.csv", keep_default_na=False)
    assert corruptions["corruption"].tolist() == ["none", *["fog"] * 5, *["pixelate"] * 5]
    assert corruptions["severity"].tolist() == [0, *range(1, 6), *range(1, 6)]
    assert (corruptions["images"] == 9).all()
    assert ((corruptions["low"] <= corruptions["accuracy"]) & (corruptions["accuracy"] <= corruptions["high"])).all()
    missing = pd.read_csv(run.evaluation / "missing.csv", keep_default_na=False)
    assert missing["band"].tolist() == ["none", "red", "green", "blue"]
    attacks = pd.read_csv(run.evaluation / "attacks.csv", keep_default_na=False)
    assert attacks["attack"].tolist() == ["none", "fgsm", "fgsm", "pgd", "pgd"]
    assert attacks["epsilon"].tolist() == [0, 0.02, 0.1, 0.02, 0.1]
    assert attacks["accuracy"].iloc[-1] <= attacks["accuracy"].iloc[0]
    summary = _json(run.evaluation / "robustness.json")
    assert summary["corruptions"]["of_each"]["fog"] == pytest.approx(corruptions["accuracy"].iloc[1:6].mean())
    assert {part["weights"] for part in summary.values()} == {run.weights_hash()}
    told = capsys.readouterr().out
    assert "pixelate" in told
    fails(capsys, ["evaluate", run, "--corruptions", "foggy"], 2, "did you mean 'fog'")
    fails(capsys, ["evaluate", run, "--attacks", "8"], 2, "8 of 255 is 0.0314")
    fails(capsys, ["evaluate", run, "--attacks", "--tta", "mirror"], 2, "without --tta mirror")
    fails(capsys, ["evaluate", run, "--sample", "3"], 2, "is for --corruptions")


def _path_of(run):
    return re.search(r"path: ([^,]+),", run.recipe.read_text()).group(1)


@pytest.mark.fast_cases("True")
@pytest.mark.parametrize("learned", [False, True])
def test_a_missing_stream(tmp_path, images, learned):
    streams = {
        "image": StreamCard(("red", "green", "blue"), (0.5,) * 3, (0.3,) * 3, (16, 16)),
        "spectral": StreamCard(("edge_x", "edge_y"), (0.5,) * 2, (0.1,) * 2, (16, 16)),
    }
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2),
                "num_classes": 2, "spectral_chans": 2,
                "missing_spectral": "learned" if learned else "error"}  # fmt: skip
    run = RunFolder.create(tmp_path / "run")
    run.recipe.write_text(
        f"data: {{source: folder, path: {images}, img_size: 16, num_workers: 0, spectral: edges}}\n"
        f"model: {{name: hvt, img_size: 16}}\nrun: {{dir: {run}}}\n"
    )
    model = create_model("hvt", **settings)
    write_trained(run, model.state_dict(), ModelCard("hvt", settings, CLASSES, streams, spectral="edges"))
    assert main(["evaluate", str(run), "--missing", "--corruptions", "gaussian_noise", "--sample", "6", *QUICK]) == 0
    table = pd.read_csv(run.evaluation / "missing.csv", keep_default_na=False).set_index(["stream", "band"])
    assert table.loc[("spectral", "all"), "how"] == ("left out" if learned else "means of its bands")
    assert table.loc[("image", "all"), "how"] == "means of its bands"
    assert len(table) == 1 + 3 + 1 + 2 + 1


def test_other_kinds_of_images(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    folder = tmp_path / "noise"
    folder.mkdir()
    for i, shape in enumerate([(20, 20, 3)] * 7 + [(20, 20)]):
        file = folder / ("gray.png" if len(shape) == 2 else f"{i}.png")
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(file)
    fails(capsys, ["evaluate", run, "--ood", folder], 1, r"--ood .*noise: .*gray\.png.*on_band_mismatch")
    fails(capsys, ["evaluate", run, "--ood", tmp_path / "x"], 1, "no folder of images")
    fails(capsys, ["evaluate", run, "--ood", folder, "--ood-source", "digits"], 2, "data.source with a path")
    fails(capsys, ["evaluate", run, "--ood-source", "folder"], 2, "give that too")
    words = ["--ood", str(folder), "--data.errors.on_band_mismatch", "convert"]
    assert main(["evaluate", str(run), *QUICK, *words]) == 0
    report = _json(run.evaluation / "ood.json")
    assert report["images_other"] == 8
    assert report["images_train"] == 20
    assert set(report["scores"]) == {"msp", "max_logit", "energy", "mahalanobis", "knn"}
    assert report["scores"]["mahalanobis"]["auroc"] > 0.9  # noise beside plain squares
    assert "mahalanobis" in capsys.readouterr().out
    # The outputs of the training images are those of before; without the gray image there is one less of the others.
    before = run.predictions("train").stat().st_mtime_ns
    (folder / "gray.png").unlink()
    data = load_run_recipe(run.recipe).data
    assert measure_ood(open_evaluation(run, data), data, str(folder), intervals=Intervals(100))["images_other"] == 7
    assert run.predictions("train").stat().st_mtime_ns == before
