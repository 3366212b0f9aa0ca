"""Copies of training images in other splits are named before training, which they do not change."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.data.test_clip_audit import _write_frames
from tests.data.test_clip_copies import footage
from tests.data.test_near_duplicates import photo, recompressed
from tests.settings import data_config
from vitrail.cli.main import main
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.train import copies
from vitrail.train.copies import describe_copies

TINY = ["--model.name", "vit", "--model.img_size", "16", "--model.patch_size", "8", "--model.embed_dim", "8",
        "--model.depth", "1", "--model.num_heads", "2", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
        "--data.loader.num_workers", "0", "--run.tensorboard", "false", "--data.batch_size", "4",
        "--trainer.precision", "32-true"]  # fmt: skip


@pytest.fixture
def leaking(tmp_path):
    """Two validation images and one test image are copies of training images; one test image of a validation image."""
    rng = np.random.default_rng(0)
    images = {
        f"{split}/{name}/{i}.png": photo(1000 * s + 100 * c + i, (40, 48))
        for s, split in enumerate(("train", "val", "test"))
        for c, name in enumerate("ab")
        for i in range(6)
    }
    images["val/a/turned.jpg"] = recompressed(images["train/a/1.png"].transpose(Image.Transpose.ROTATE_90), rng)
    images["val/b/mirrored.png"] = images["train/b/2.png"].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    images["test/a/same.png"] = images["train/a/3.png"]
    images["test/b/small.png"] = images["val/b/4.png"].resize((36, 30))
    for path, image in images.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / path)
    return tmp_path


def test_copies_across_splits_are_counted(leaking):
    data = open_data(DataConfig(source="folder", path=str(leaking)), (16, 16))
    [line] = describe_copies(data, "r.yaml")
    assert line.startswith(
        "2 validation images are copies of training images, 1 test image is a copy of training images, "
        "1 test image is a copy of validation images"
    )
    assert "`vitrail data audit r.yaml --out audit.html --groups groups.csv`" in line
    assert (
        describe_copies(
            open_data(DataConfig(source="folder", path=str(leaking), splitting={"check_copies": False}), (16, 16)), ""
        )
        == []
    )


def test_training_states_copies_and_is_not_changed_by_looking(leaking, capsys):
    weights = {}
    for check in ("true", "false"):
        run = leaking.parent / f"{leaking.name}_{check}"
        data = ["--data.source", "folder", "--data.path", str(leaking), "--data.splitting.check_copies", check]
        assert main(["train", *data, *TINY, "--run.dir", str(run)]) == 0
        weights[check] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        said = "2 validation images are copies of training images" in capsys.readouterr().err
        assert said == (check == "true")
    assert weights["true"].keys() == weights["false"].keys()
    assert all(torch.equal(value, weights["false"][name]) for name, value in weights["true"].items())


def test_sources_give_the_same_thumbnails(leaking):
    """Files decoded small when they are opened, and the same files as rows of a Parquet file."""
    data = open_data(DataConfig(source="folder", path=str(leaking)), (32, 32))
    files = [leaking / key for key in data.source.keys]
    table = pd.DataFrame({"image": [{"bytes": f.read_bytes(), "path": str(f)} for f in files],
                          "label": [f.parent.name for f in files]})  # fmt: skip
    table.to_parquet(leaking / "t.parquet")
    other = open_data(
        DataConfig(source="parquet", path=str(leaking / "t.parquet"), images={"resize": "squash"}), (32, 32)
    )
    apart = np.abs(data.source.thumbnails().astype(int) - other.source.thumbnails())
    assert data.source.thumbnails().shape == (len(files), 32, 32)
    assert apart.mean() < 6
    cached = open_data(
        DataConfig(source="folder", path=str(leaking), loader={"cache": True}, spectral={"derive": "edges"}), (32, 32)
    )
    assert np.array_equal(cached.source.thumbnails(), data.source.thumbnails())


def test_rasters_without_a_known_range_have_thumbnails(tmp_path):
    """Radar in dB in one band, reflectance in another type: copies have equal thumbnails whatever the range."""
    import tifffile

    rng = np.random.default_rng(1)
    fields = np.kron(rng.normal(-12, 4, (8, 2, 8, 8)), np.ones((6, 6))).astype(np.float32)
    fields[1, :, :10] = np.nan
    for i, field in enumerate(fields):
        for split, pixels in (("train", field), ("val", np.rot90(field, axes=(1, 2)) if i < 2 else field * 0 - i)):
            path = tmp_path / split / "ab"[i % 2] / f"{i}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, np.ascontiguousarray(pixels))
    config = DataConfig(
        source="folder",
        path=str(tmp_path),
        bands={"names": ("vv", "vh")},
        values={"range": (-30.0, 10.0), "nodata": "nan"},
    )
    [line] = describe_copies(open_data(config, (16, 16)), "r.yaml")
    assert line.startswith("2 validation images are copies of training images")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A validation clip is a part of a training clip; one is another played backwards, with the same middle frame."""
    root = tmp_path_factory.mktemp("clips")
    for split, first in (("train", 0), ("val", 10), ("test", 20)):
        for i in range(4):
            _write_frames(root / split / "ab"[i % 2] / str(i), footage(first + i, first + i, frames=17))
    _write_frames(root / "val" / "a" / "part", footage(0, 0, frames=17)[7:])
    _write_frames(root / "val" / "b" / "backwards", footage(1, 1, frames=17)[::-1])
    return open_data(data_config(source="videos", path=str(root), color="gray"), (4, 16, 16))


def test_clips_are_compared_over_time(clips):
    [line] = describe_copies(clips, "r.yaml")
    assert line.startswith("1 validation image is a copy of training images (equal")


@pytest.mark.parametrize("most", [0, 1, 9])
def test_clips_for_which_no_time_is_left_are_counted(clips, monkeypatch, most):
    scan = copies.scan_clips_within
    decoded = []

    def scan_some(source, rows, seconds):
        decoded.extend(rows[:most])
        return scan(source, rows[:most], 60.0)

    monkeypatch.setattr(copies, "scan_clips_within", scan_some)
    line = describe_copies(clips, "r.yaml")[-1]
    verb = "is" if most == 1 else "are"
    assert line.startswith(f"{most} of 14 images {verb} compared to find copies in other splits, as many as 3 s of")
    # The same share of each split.
    shares = [len(set(decoded) & set(rows)) / len(rows) for rows in clips.splits.values()]
    assert max(shares) - min(shares) <= 1 / 4


def test_no_clip_is_decoded_when_the_time_is_up(clips, monkeypatch):
    monkeypatch.setattr(copies, "_SECONDS", -1.0)
    [line] = describe_copies(clips, "r.yaml")
    assert line.startswith("0 of 14 images are compared")
