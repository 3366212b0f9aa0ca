"""Data sets of the Hugging Face library: the same images and names, by split, whatever form they lie in."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.settings import data_config
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.errors import ConfigError, DataError, VitrailError

datasets = pytest.importorskip("datasets", reason="the hf extra is not installed")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def _pixels(number):
    return np.full((6, 7, 3), 9 * number + 1, np.uint8)


def _rows(numbers, **extra):
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "kind": datasets.ClassLabel(names=["emu", "cat"]),
            **{name: datasets.Value("string") for name in extra},
        }
    )
    columns = {"photo": [Image.fromarray(_pixels(i)) for i in numbers], "kind": [i % 2 for i in numbers], **extra}
    return datasets.Dataset.from_dict(columns, features=features)


def _open(path, **settings):
    settings = {"table__label_column": "kind", **settings}
    return open_data(data_config(source="hf", path=str(path), **settings), (6, 7))


def _levels(data, split):
    batches = list(data.loader(split))
    return sorted(int(v) for b in batches for v in (b["image"][:, 0, 0, 0] * 255).round())


def test_splits_and_classes_of_a_saved_dictionary(tmp_path):
    splits = {"train": _rows(range(12)), "validation": _rows(range(12, 16)), "test": _rows(range(16, 22))}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    data = _open(tmp_path / "saved")
    assert data.source.classes == ("emu", "cat")
    for split, numbers in (("train", range(12)), ("val", range(12, 16)), ("test", range(16, 22))):
        assert _levels(data, split) == [9 * i + 1 for i in numbers]
    batch = next(iter(data.loader("test")))
    assert torch.equal(batch["target"], ((batch["image"][:, 0, 0, 0] * 255).round().long() - 1) // 9 % 2)


def test_chosen_rows_keep_their_order(tmp_path):
    rows = _rows(range(20)).shuffle(seed=3).select(range(5, 17))
    wanted = sorted(int(np.asarray(row["photo"])[0, 0, 0]) for row in rows)
    rows.save_to_disk(str(tmp_path / "saved"))
    data = _open(tmp_path / "saved", splitting__val_fraction=0.0, splitting__test_fraction=0.0)
    assert _levels(data, "train") == wanted


def test_a_folder_of_images_through_the_library(tmp_path):
    for i in range(8):
        place = tmp_path / "photos" / "train" / ("emu", "cat")[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_pixels(i)).save(place)
    data = _open(
        tmp_path / "photos", table__label_column=None, splitting__val_fraction=0.0, splitting__test_fraction=0.0
    )
    assert data.source.classes == ("cat", "emu")
    assert _levels(data, "train") == [9 * i + 1 for i in range(8)]


def test_what_cannot_be_had(tmp_path):
    _rows(range(6)).save_to_disk(str(tmp_path / "saved"))
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(DataError, match=r"cannot load the data set 'nobody/nothing'.*data\.path"):
        _open("nobody/nothing")
    with pytest.raises(DataError, match=r"no column of images .*only text"):
        _open(tmp_path / "text")
    with pytest.raises(DataError, match="did you mean 'photo'"):
        _open(tmp_path / "saved", table__image_column="phot")
    with pytest.raises(DataError, match="did you mean 'kind'"):
        _open(tmp_path / "saved", table__label_column="kin")
    with pytest.raises(ConfigError, match=r"does not apply to data\.source parquet"):
        open_data(DataConfig(source="parquet", path=str(tmp_path), table={"subset": "x"}), (6, 7))


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(VitrailError, match=r"vitrail\[hf\]"):
        _open(tmp_path)
