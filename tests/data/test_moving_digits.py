"""Clips of digits: the class is the direction of motion, which no single frame and no mean of frames shows."""

import math

import numpy as np
import pytest
import torch

from tests.settings import data_config
from vitrail.cli.main import main
from vitrail.data import open_data
from vitrail.data.sources.moving_digits import DIRECTIONS, MovingDigitsSource
from vitrail.figures.film_strip import film_strip, flat_maps


def _centres(clips):
    """Row and column of the centre of mass of each frame, ``(B, T, 2)``."""
    mass = clips[:, 0]
    total = mass.sum(dim=(2, 3))
    rows = (mass.sum(dim=3) * torch.arange(mass.shape[2])).sum(dim=2) / total
    columns = (mass.sum(dim=2) * torch.arange(mass.shape[3])).sum(dim=2) / total
    return torch.stack([rows, columns], dim=2)


@pytest.mark.slow_cases("size1-5")
@pytest.mark.parametrize(("size", "frames"), [((24, 24), 8), ((32, 48), 5), ((17, 17), 2)])
def test_digits_move_in_the_direction_of_their_class(size, frames):
    source = MovingDigitsSource((frames, *size))
    rows = [*range(64), *range(8000, 8032)]
    clips = source.read(rows)["video"]
    assert clips.shape == (96, 1, frames, *size)
    assert clips.min() >= 0
    assert clips.max() <= 1
    steps = _centres(clips)
    way = (steps[:, -1] - steps[:, 0]) / torch.tensor(size)
    angles = torch.atan2(way[:, 0], way[:, 1]) % (2 * math.pi)
    found = (angles / (2 * math.pi / 8)).round().long() % 8
    assert torch.equal(found, torch.from_numpy(source.targets[rows]))
    # Each step is as long as the others.
    lengths = steps.diff(dim=1).norm(dim=2)
    assert torch.allclose(lengths, lengths.mean(dim=1, keepdim=True).expand_as(lengths), rtol=0.15)


def test_a_clip_backwards_moves_in_the_opposite_direction():
    source = MovingDigitsSource((8, 24, 24))
    clips = source.read(range(16))["video"]
    there, back = _centres(clips), _centres(clips.flip(2))
    assert torch.allclose(there[:, -1] - there[:, 0], back[:, 0] - back[:, -1], atol=1e-4)
    assert DIRECTIONS[(DIRECTIONS.index("up-left") + 4) % 8] == "down-right"


def test_no_frame_shows_the_direction():
    """The middle frame lies where it lies in clips of all directions."""
    source = MovingDigitsSource((9, 24, 24))
    rows = np.arange(0, 8 * 120)
    centres = _centres(source.read(rows)["video"][:, :, 4:5])[:, 0]
    means = torch.stack([centres[torch.from_numpy(source.targets[rows]) == i].mean(dim=0) for i in range(8)])
    assert (means - means.mean(dim=0)).abs().max() < 0.25


def test_clips_of_a_digit_stay_in_one_split():
    data = open_data(data_config(source="moving_digits"), (4, 12, 12))
    owner = {}
    for split, rows in data.splits.items():
        for row in rows:
            assert owner.setdefault(data.source.groups[row], split) == split
    assert {"train", "val", "test"} <= set(data.splits)
    assert data.batch([0, 9])["video"].shape == (2, 1, 4, 12, 12)


def test_frames_side_by_side():
    clips = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(-1, -1, -1, 2, 3)
    strip = film_strip(clips)
    assert strip.shape == (1, 1, 4, 12)
    assert strip[0, 0, ::2, ::3].tolist() == [[0, 1, 2, 3], [4, 0, 0, 0]]
    maps = torch.rand(3, 2, 2)
    assert flat_maps(maps) is maps
    many = film_strip(torch.arange(80.0).view(1, 1, 80, 1, 1))
    assert many.flatten().tolist() == [5, 15, 25, 35, 45, 55, 65, 75]


TINY = [
    "--model.num_frames", "4", "--model.img_size", "12", "--model.tubelet_size", "[2,6,6]", "--model.embed_dim", "16",
    "--model.depth", "2", "--model.num_heads", "2", "--data.splitting.test_fraction", "0.9",
    "--data.splitting.val_fraction", "0.04", "--trainer.max_epochs", "1", "--run.explain_every", "1",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_from_training_to_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--model.name", "vivit", "--data.source", "moving_digits", "--run.dir", "run", *TINY]) == 0
    assert "4 frames of 12 x 12 pixels" in capsys.readouterr().err
    assert main(["evaluate", "run", "--split", "val"]) == 0
    assert main(["explain", "run", "--out", "maps", "--method", "gradcam"]) == 0
    files = sorted((tmp_path / "maps" / "maps").glob("*_gradcam.npy"))
    assert np.load(files[0]).shape == (4, 12, 12)
    assert main(["report", "run"]) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_model_of_images_is_refused_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--model.name", "vit", "--model.img_size", "16", "--model.patch_size", "4",
                 "--data.source", "moving_digits"]) == 2  # fmt: skip
    assert (
        "data.source moving_digits has clips, and the model takes images; choose a model of clips"
        in capsys.readouterr().err
    )
    assert main(["train", "--model.name", "vivit", "--data.source", "digits"]) == 2
    assert "data.source digits has images, and the model takes clips" in capsys.readouterr().err


def test_what_takes_images_alone_is_refused_for_clips(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clips = ["--model.name", "vivit", "--data.source", "moving_digits", *TINY[:-2]]
    assert main(["pretrain", "--task.name", "simmim", *clips]) == 2
    assert "task.name simmim takes images, not clips (model.name vivit); use task.name mae" in capsys.readouterr().err


@pytest.mark.slow
def test_the_recipe_reads_time(tmp_path, monkeypatch):
    """Unseen digits are classified by their motion; played backwards they belong to the opposite class."""
    from vitrail.cli.recipes import load_run_recipe
    from vitrail.runs import load_trained

    recipe = __file__.replace("tests/data/test_moving_digits.py", "recipes/moving_digits/vivit.yaml")
    monkeypatch.chdir(tmp_path)
    assert main(["train", recipe, "--run.dir", "run", "--trainer.max_epochs", "2"]) == 0
    trained = load_trained("run")
    data = open_data(trained.card.as_trained(load_run_recipe(recipe).data), (8, 24, 24))
    batch = data.batch(data.indices("test")[:512])
    predicted = trained.classify(batch)[0].argmax(dim=1)
    backwards = trained.classify({"video": batch["video"].flip(2)})[0].argmax(dim=1)
    assert (predicted == batch["target"]).float().mean() >= 0.99
    assert (backwards == (batch["target"] + 4) % 8).float().mean() >= 0.99
