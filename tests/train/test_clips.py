"""Clips from pre-training to evaluation by the command line."""

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vitrail.cli.main import main
from vitrail.report.page import _facts
from vitrail.tasks.classification import _resized

DATA = [
    "--data.source",
    "videos",
    "--data.path",
    "inputs",
    "--data.color",
    "gray",
    "--data.video.fps",
    "25",
    "--data.video.folder_fps",
    "25",
]
MODEL = ["--model.name", "vivit", "--model.num_frames", "4", "--model.img_size", "12", "--model.tubelet_size",
         "[2,4,4]", "--model.embed_dim", "16", "--model.depth", "1", "--model.num_heads", "2"]  # fmt: skip
FAST = ["--data.batch_size", "8", "--data.loader.num_workers", "0", "--trainer.max_epochs", "1",
        "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--run.explain_images", "0"]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Clips of two classes as folders of frames, and a pre-trained run on them."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for label in ("wave left", "wave right"):
        for clip in range(12):
            path = folder / "inputs" / label / str(clip)
            path.mkdir(parents=True)
            for frame in range(8):
                pixels = rng.integers(0, 255, (12, 20), dtype=np.uint8)
                Image.fromarray(pixels).save(path / f"{frame}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["pretrain", *DATA, *MODEL, *FAST, "--task.name", "mae", "--task.decoder_depth", "1"]
        with contextlib.redirect_stderr(io.StringIO()) as err:
            assert main([*words, "--task.mask_ratio", "0.6", "--run.dir", "pretrained"]) == 0
    assert "next: vitrail train --model.weights pretrained --data.source videos --data.path DIR" in err.getvalue()
    return folder


@pytest.fixture
def place(root, monkeypatch):
    monkeypatch.chdir(root)
    return root


@pytest.mark.slow
def test_pretraining_measures_the_features_of_clips(place):
    columns = (place / "pretrained" / "metrics.csv").read_text().splitlines()
    row = dict(zip(columns[0].split(","), columns[-1].split(","), strict=True))
    assert float(row["train_loss"]) > 0
    assert 0 <= float(row["knn_accuracy"]) <= 1
    assert float(row["alignment"]) > 0


def test_training_starts_from_it_and_evaluation_averages_views(place, capsys):
    settings = ["--data.video.views", "2", "--data.video.crops", "3", "--data.augment", "standard"]
    assert main(["train", *DATA, *settings, *MODEL, *FAST, "--model.weights", "pretrained", "--run.dir", "run"]) == 0
    err = capsys.readouterr().err
    assert "flip_horizontal of data.augment standard is off: classes say a direction (wave left, wave right)" in err
    assert main(["evaluate", "run", "--resamples", "100"]) == 0
    out = capsys.readouterr().out
    assert "single clips: accuracy" in out
    assert "averages the logits of 2 x 3 clips of each video" in out
    metrics = json.loads((place / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics["clips"].items() >= {"views": 2, "crops": 3, "fps": 25.0}.items()
    # Results over other views of the same run are beside its own.
    assert main(["evaluate", "run", "--resamples", "100", "--data.video.views", "3", "--data.video.crops", "1"]) == 0
    assert "averages the logits of 3 x 1 clip of each" in capsys.readouterr().out
    assert (place / "run" / "evaluation" / f"{metrics['name']}-3x1" / "metrics.json").is_file()
    (fact,) = (fact for fact in _facts([SimpleNamespace(metrics=metrics)]) if "clips" in fact["name"])
    assert fact["note"] == "accuracy averages 2 x 3 clips of each video"
    assert main(["evaluate", "run", "--resamples", "100", "--from-predictions"]) == 0
    assert "averages the logits of 2 x 3 clips" in capsys.readouterr().out


@pytest.mark.slow
def test_clips_grow_in_height_and_width(place):
    words = ["train", *DATA, *MODEL, *FAST, "--trainer.progressive_sizes", "[8]", "--run.dir", "grown"]
    words[words.index("--trainer.max_epochs") + 1] = "2"
    assert main(words) == 0
    clips = torch.arange(2.0 * 3 * 4 * 12 * 16).view(2, 3, 4, 12, 16)
    (small,) = _resized({"video": clips}, (6, 8)).values()
    expected = [F.interpolate(frame, size=(6, 8), mode="bilinear", antialias=True) for frame in clips.unbind(2)]
    assert torch.equal(small, torch.stack(expected, dim=2))
