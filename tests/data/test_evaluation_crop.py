import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tests.cli.test_verbs import SMALL
from tests.images import embed_images, make_folder, save_image
from tests.settings import data_config
from vitrail.cli import inspect
from vitrail.cli.main import main
from vitrail.data.dataset import open_data
from vitrail.data.images import read_image
from vitrail.errors import ConfigError, DataError
from vitrail.runs.trained import load_trained


def _config(source, folder, **settings):
    if source == "folder":
        settings["path"] = str(make_folder(folder))
    elif source == "parquet":
        embed_images(folder / "x.parquet", [i % 2 for i in range(40)])
        settings["path"] = str(folder / "x.parquet")
    elif source == "arrays":
        rng = np.random.default_rng(0)
        np.savez(
            folder / "x.npz", images=rng.integers(0, 255, (40, 20, 26, 3)).astype(np.uint8), labels=np.arange(40) % 2
        )
        settings["path"] = str(folder / "x.npz")
    elif source == "synthetic_leaves":
        settings["leaves__num_images"] = 40
    return data_config(source=source, batch_size=4, **settings)


@pytest.mark.parametrize("source", ["folder", "parquet", "arrays", "digits", "synthetic_leaves"])
@pytest.mark.parametrize(("crop_pct", "size"), [(0.875, (16, 16)), (0.7, (13, 18))])
@pytest.mark.fast_cases("0.875-size0-digits", "0.7-size1-parquet", "0.7-size1-arrays", "0.7-size1-synthetic_leaves")
def test_evaluation_sees_the_centre_and_training_all(tmp_path, source, crop_pct, size):
    config = _config(source, tmp_path, images__crop_pct=crop_pct, loader__num_workers=0)
    data = open_data(config, size)
    larger = (math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct))
    whole = open_data(_config(source, tmp_path / "again" if source == "folder" else tmp_path), larger)
    top, left = (larger[0] - size[0]) // 2, (larger[1] - size[1]) // 2
    rows = data.indices("val")[:3]
    expected = {k: x[..., top : top + size[0], left : left + size[1]] for k, x in whole.source.load(rows).items()}
    batch, first = data.batch(rows), next(iter(data.loader("val")))
    for name, x in expected.items():
        assert torch.equal(data.load(rows)[name], x)
        assert torch.equal(batch[name], x)
        assert torch.equal(first[name][:3], x)
    training = next(iter(data.loader("train", shuffle_seed=0)))
    for name, x in whole.source.load(training["index"].tolist()).items():
        small = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        assert training[name].shape == small.shape
        assert (training[name] - small).abs().mean() < 0.03
        assert torch.equal(data.load(training["index"].tolist(), whole=True)[name], training[name])


@pytest.mark.slow
def test_worker_processes_crop_too(tmp_path):
    config = _config("folder", tmp_path, images__crop_pct=0.8)
    alone, processes = (
        [b["image"] for b in open_data(config.changed({"loader.num_workers": n}), (12, 12)).loader("val")]
        for n in (0, 1)
    )
    assert all(map(torch.equal, alone, processes))


@pytest.mark.parametrize("value", [0.0, -0.5, 1.01])
def test_shares_out_of_range_are_refused(value):
    with pytest.raises(ConfigError, match=r"data\.images\.crop_pct must be above 0 and at most 1"):
        data_config(images__crop_pct=value)


def test_a_source_that_does_not_resize_is_refused():
    data = open_data(data_config(images__crop_pct=0.5), (8, 8))
    data.source._images = data.source._images[..., :7, :7]
    with pytest.raises(DataError, match=r"set data\.images\.crop_pct 1"):
        data.load([0])


def _inspected(monkeypatch, *words):
    inputs = {}

    def walk(model, given, *_, **__):
        inputs["image"] = given[0]
        raise KeyboardInterrupt

    monkeypatch.setattr("vitrail.models.profile.walk", walk)
    with pytest.raises(KeyboardInterrupt):
        inspect.main(list(words))
    return inputs["image"]


@pytest.mark.parametrize("shape", [(30, 90), (90, 31)])
def test_inspect_crops_a_photo_without_a_run(tmp_path, monkeypatch, shape):
    photo = save_image(tmp_path / "photo.png", shape)
    settings = ("patch_size=8", "embed_dim=8", "depth=1", "num_heads=2")
    words = [word for setting in settings for word in ("--set", setting)]
    seen = _inspected(monkeypatch, "vit", "--img-size", "16", *words, "--image", str(photo))
    assert torch.allclose(seen[0], read_image(photo, size=(16, 16)).float() / 127.5 - 1, atol=1e-6)


def test_a_run_keeps_its_margin_everywhere(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "images", splits=("train", "val"), per_class=4)
    run = tmp_path / "run"
    assert main(["train", *SMALL, "--data.source", "folder", "--data.path", str(folder), "--data.img_size", "16",
                 "--data.images.crop_pct", "0.8",
                 "--run.dir", str(run)]) == 0  # fmt: skip
    card = json.loads((run / "model.json").read_text())
    assert card["crop_pct"] == 0.8
    trained, photo = load_trained(run), save_image(tmp_path / "photo.png", (50, 70))
    seen = read_image(photo, size=(20, 20))[:, 2:18, 2:18].float()[None] / 255
    expected = trained.model(*trained.normalize({"image": seen})).softmax(1)[0].detach()
    assert main(["predict", str(run), str(photo), "--out", str(tmp_path / "p.csv")]) == 0
    row = pd.read_csv(tmp_path / "p.csv").iloc[0]
    assert row["probability"] == pytest.approx(float(expected.max()), abs=1e-5)

    inspected = _inspected(monkeypatch, str(run), "--image", str(photo))
    assert torch.equal(inspected, trained.normalize({"image": seen})[0])
    # Runs of before have no margin.
    del card["crop_pct"]
    (run / "model.json").write_text(json.dumps(card))
    assert load_trained(run).card.crop_pct == 1.0
