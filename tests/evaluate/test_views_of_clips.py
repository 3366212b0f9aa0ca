"""Evaluations of clips over other views than the run's: their names, their calibration, their intervals, exports."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vitrail.bootstrap import Bootstrap
from vitrail.cli.main import main
from vitrail.config import DataConfig
from vitrail.errors import ConfigError
from vitrail.evaluate.metrics import accuracy_interval
from vitrail.evaluate.run import other_views
from vitrail.evaluate.saved_predictions import Averaged, _clip_accuracy
from vitrail.models import create_model
from vitrail.runs import ModelCard, RunFolder, StreamCard, TrainedModel
from vitrail.runs.trained import write_trained

SETTINGS = {"num_frames": 2, "img_size": 8, "in_chans": 1, "tubelet_size": (1, 4, 4), "embed_dim": 12, "depth": 1,
            "num_heads": 2, "num_classes": 2}  # fmt: skip
STREAM = StreamCard(("gray",), (0.5,), (0.3,), (2, 8, 8))
CARD = ModelCard("vivit", SETTINGS, ("a", "b"), {"video": STREAM}, color="gray")
DATA = "{source: videos, path: inputs, color: gray, num_workers: 0, batch_size: 4, video: {fps: 25, folder_fps: 25}}"


@pytest.fixture
def trained():
    torch.manual_seed(0)
    return TrainedModel(create_model("vivit", **SETTINGS).eval(), CARD.normalization(), CARD)


@pytest.fixture
def run(tmp_path, monkeypatch, trained):
    """A run on clips of six frames, by the middle clip of each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vitrail.evaluate.run.measure_efficiency", lambda *args, **kwargs: {"parameters": 1})
    monkeypatch.setattr("vitrail.cli.evaluate._draw_mistakes", lambda *arguments: None)
    rng = np.random.default_rng(0)
    for root, split, label, clip in ((r, s, c, i) for r in ("inputs", "moved") for s in ("val", "test")
                                     for c in "ab" for i in "01"):  # fmt: skip
        folder = tmp_path / root / split / label / clip
        folder.mkdir(parents=True)
        for frame in range(6):
            Image.fromarray(rng.integers(0, 255, (8, 12), dtype=np.uint8)).save(folder / f"{frame}.png")
    run = RunFolder.create("run")
    run.recipe.write_text(f"data: {DATA}\nmodel: {{name: vivit, num_frames: 2, img_size: 8}}\nrun: {{dir: run}}\n")
    write_trained(run, trained.model.state_dict(), CARD)
    return run


def _evaluate(*words):
    assert main(["evaluate", "run", "--resamples", "100", *words]) == 0


def _views(run, name):
    return run.origin_of_predictions(name)["views"]


def test_other_views_have_their_own_results_and_calibration(run):
    other = ["--data.video.views", "3", "--data.video.crops", "1"]
    _evaluate()
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    _evaluate(*other)
    assert {file: file.read_bytes() for file in before} == before
    metrics = json.loads((run.evaluation / "test-3x1" / "metrics.json").read_text())
    assert metrics["name"] == "test-3x1"
    assert (_views(run, "test"), _views(run, "val")) == (None, None)
    assert _views(run, "test-3x1") == _views(run, "val-3x1") == {"views": 3, "crops": 1, "fps": 25.0}


@pytest.mark.parametrize(
    ("averaged", "suffix", "options"),
    [
        (Averaged(), "", ""),
        (Averaged("mirror"), "-mirror", " --tta mirror"),
        (Averaged("none", (4, 3)), "-4x3", " --data.video.views 4 --data.video.crops 3"),
        (Averaged("flips", (1, 3)), "-1x3-flips", " --data.video.views 1 --data.video.crops 3 --tta flips"),
    ],
)
def test_views_are_in_names_and_remedies(averaged, suffix, options):
    assert (averaged.suffix, averaged.options) == (suffix, options)


def test_other_data_is_calibrated_by_the_same_views(run):
    _evaluate()
    _evaluate("--data.path", "moved", "--data.video.crops", "3")
    assert _views(run, "val-1x3") == {"views": 1, "crops": 3, "fps": 25.0}
    (name,) = (name for name in run.evaluations() if name.startswith("other-moved-"))
    assert name.endswith("-1x3")
    conformal = json.loads((run.evaluation / name / "conformal.json").read_text())
    assert conformal["sets"]


# The fast tests have a trained export, in tests/deploy/test_export_clips_and_clouds.py.
@pytest.mark.slow
def test_an_export_averages_views_too(run, trained, monkeypatch, capsys):
    """Logits of the export are those of the model of the run."""
    seen = []

    def classify(batch):
        seen.append(len(batch["video"]) // len(batch["target"]))
        return trained.classify(batch)

    record = {"listing": {"source": "videos", "path": "inputs", "color": "gray"}}
    reading = DataConfig(source="videos", path="x", color="gray").changed({"video.fps": 25.0})
    exported = SimpleNamespace(card=CARD, reading=reading, classify=classify, export=SimpleNamespace(record=record))
    monkeypatch.setattr("vitrail.engines.load.find_export", lambda path: None if path == "run" else path)
    monkeypatch.setattr("vitrail.deploy.exported.load_exported", lambda path: exported)
    views = ["--data.video.views", "2", "--data.video.crops", "3"]
    _evaluate(*views)
    capsys.readouterr()
    folder = ["--data.path", "inputs", "--data.video.folder_fps", "25"]
    assert main(["evaluate", "exported", *folder, *views]) == 0
    accuracy = json.loads((run.evaluation / "test-2x3" / "metrics.json").read_text())["accuracy"]
    assert f"exported on test: accuracy {accuracy:.4f}" in capsys.readouterr().out
    assert set(seen) == {6}


def test_views_are_of_clips():
    image = ModelCard("vit", {}, ("a", "b"), {"image": StreamCard(("gray",), (0.5,), (0.3,), (8, 8))})
    own = DataConfig()
    assert other_views(image, own, own) is None
    for name in ("video.views", "video.crops"):
        with pytest.raises(
            ConfigError, match=r"data\.video\.views/crops takes clips, not images \(vit\); leave it out"
        ):
            other_views(image, own.changed({name: 3}), own)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("groups", [None, 3])
def test_equal_clips_have_an_interval_over_videos(share, groups):
    table = pd.DataFrame({"clips_correct": [share] * 12})
    names = None if groups is None else [str(i % groups) for i in range(12)]
    found = _clip_accuracy(table, Bootstrap(12, names, 100))["clips"]
    units = groups or 12
    assert (found["low"], found["high"]) == accuracy_interval(round(share * units), units)
