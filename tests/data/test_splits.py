"""Splits by hash: a new image moves no other, groups stay together, folds cover all, blocks share no pixel."""

import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.images import make_folder, save_image
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.sources.base import Scene
from vitrail.data.splits import LEFT_OUT, block_split, groups_of, hashed_split, position
from vitrail.errors import ConfigError, DataError

CLASSES = ("a", "b", "c")
FRACTIONS = {"test": 0.2, "val": 0.1}


def images(number, seed=0):
    rng = random.Random(seed)
    keys = [f"{seed}/{rng.random()}.jpg" for _ in range(number)]
    return keys, np.array([rng.choice([0, 0, 0, 1, 1, 2]) for _ in keys])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fold", [None, (2, 5)])
def test_a_new_image_moves_no_other(seed, fold):
    keys, targets = images(600, seed)
    before = hashed_split(keys[:500], targets[:500], FRACTIONS, CLASSES, fold=fold)
    after = hashed_split(keys, targets, FRACTIONS, CLASSES, fold=fold)
    assert after[:500] == before
    order = random.Random(seed).sample(range(600), 600)
    shuffled = hashed_split([keys[i] for i in order], targets[order], FRACTIONS, CLASSES, fold=fold)
    assert shuffled == [after[i] for i in order]


def test_shares_are_about_the_wanted_ones():
    keys, targets = images(6000)
    splits = np.array(hashed_split(keys, targets, FRACTIONS, CLASSES))
    for target in range(3):
        own = splits[targets == target]
        for name, share in FRACTIONS.items():
            assert abs((own == name).sum() - share * len(own)) < 4 * np.sqrt(len(own) * share * (1 - share))
    assert abs(np.mean([position(k) for k in keys]) - 0.5) < 4 / np.sqrt(12 * 6000)


@pytest.mark.parametrize("seed", range(6))
def test_small_classes_are_in_every_split(seed):
    keys, targets = images(3 * 4, seed)
    targets = np.repeat([0, 1, 2, 2], 3)
    for fold in (None, (0, 10)):
        splits = hashed_split(keys, targets, FRACTIONS, CLASSES, fold=fold)
        for target in range(3):
            assert {s for s, t in zip(splits, targets, strict=True) if t == target} == {"train", "val", "test"}
    with pytest.raises(DataError, match="class 'a' has 2 images: too few to give test and val and train one each"):
        hashed_split(keys[:9], np.array([0, 0, 1, 1, 1, 2, 2, 2, 2]), FRACTIONS, CLASSES)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_folds_are_disjoint_and_cover_everything(count):
    keys, targets = images(900)
    seen = Counter()
    for number in range(count):
        splits = hashed_split(keys, targets, {"test": 0.2, "val": 0.1}, CLASSES, fold=(number, count))
        seen.update(key for key, split in zip(keys, splits, strict=True) if split == "test")
        assert abs(splits.count("val") - 90) < 45
    assert seen == Counter(keys)


@pytest.mark.parametrize("seed", range(4))
def test_groups_stay_together_whatever_comes_later(seed):
    targets = images(800, seed)[1]
    groups = [f"g{i % 97}" for i in range(800)]
    splits = hashed_split(groups, targets, FRACTIONS, CLASSES, grouped=True)
    assert all(len({s for s, g in zip(splits, groups, strict=True) if g == name}) == 1 for name in set(groups))
    assert set(splits) == {"train", "val", "test"}
    assert hashed_split(groups[:500], targets[:500], FRACTIONS, CLASSES, grouped=True) == splits[:500]
    with pytest.raises(DataError, match="there are 2 groups: too few"):
        hashed_split(["x", "y"] * 5, np.zeros(10, int), FRACTIONS, CLASSES, grouped=True)
    lonely = ["of c" if target == 2 else group for target, group in zip(targets, groups, strict=True)]
    with pytest.raises(DataError, match="training would get no image of c: all are in groups of other splits"):
        hashed_split(lonely, targets, {"test": position("of c") + 1e-9}, CLASSES, grouped=True)


def test_a_pattern_in_the_name_makes_groups(tmp_path):
    for plant in range(12):
        for name in ("dark", "light"):
            save_image(tmp_path / name / f"plant{plant}_view{plant % 3}.png", level=100)
            save_image(tmp_path / name / f"plant{plant}_other.png", level=100)
    settings = {"source": "folder", "path": str(tmp_path), "split": "grouped", "val_fraction": 0.25}
    data = open_data(DataConfig(**settings, group=r"plant(\d+)_"), (8, 8))
    of_split = {name: {data.source.keys[i].split("plant")[1].split("_")[0] for i in rows}
                for name, rows in data.splits.items()}  # fmt: skip
    assert sum(map(len, of_split.values())) == len(set.union(*of_split.values())) == 12
    with pytest.raises(DataError, match=r"is found in 24 of 48 paths; dark/plant0_other\.png"):
        open_data(DataConfig(**settings, group=r"view\d"), (8, 8))
    with pytest.raises(ConfigError, match="no regular expression"):
        open_data(DataConfig(**settings, group="("), (8, 8))
    with pytest.raises(DataError, match=r"needs a column 'group' in a table, or data\.group"):
        open_data(DataConfig(**settings), (8, 8))
    whole = groups_of(SimpleNamespace(groups=None, keys=["p1/x", "p22/x"]), r"p\d+")
    assert whole == ["p1", "p22"]


def test_a_column_makes_groups(tmp_path):
    make_folder(tmp_path / "f", splits=(), per_class=15)
    rows = [{"path": f"f/{p.parent.name}/{p.name}", "label": p.parent.name, "plant": f"p{i % 9}"}
            for i, p in enumerate(sorted((tmp_path / "f").rglob("*.*")))]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    data = open_data(DataConfig(source="table", path=str(tmp_path / "t.csv"), split="grouped", group="plant"), (8, 8))
    assert sum(len({data.source.groups[i] for i in rows}) for rows in data.splits.values()) == 9


def test_the_test_images_of_a_folder_stay_its_test_images(tmp_path):
    make_folder(tmp_path, splits=("train", "test"), per_class=20)
    seen = []
    for fold in range(4):
        data = open_data(DataConfig(source="folder", path=str(tmp_path), fold=fold, num_folds=4), (8, 8))
        assert all(data.source.keys[i].startswith("test/") for i in data.indices("test"))
        assert len(data.indices("test")) == 40
        seen += [data.source.keys[i] for i in data.indices("val")]
    assert len(seen) == len(set(seen)) == 40


def test_a_new_file_moves_no_other_file(tmp_path):
    make_folder(tmp_path, splits=(), per_class=40)
    config = DataConfig(source="folder", path=str(tmp_path))

    def where():
        data = open_data(config, (8, 8))
        return {data.source.keys[i]: name for name, rows in data.splits.items() for i in rows}

    before = where()
    for i in range(5):
        save_image(tmp_path / "dark" / f"new{i}.png", seed=i)
    after = where()
    assert {key: after[key] for key in before} == before
    assert len(after) == len(before) + 5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fold", [None, 1])
def test_patches_of_different_splits_share_no_pixel(seed, fold):
    rng = np.random.default_rng(seed)
    size, patch, stride = int(rng.integers(60, 90)), int(rng.integers(2, 9)), int(rng.integers(1, 4))
    block = int(rng.integers(8, 15))
    rows = np.arange(0, size - patch + 1, stride)
    corners = np.stack(np.meshgrid(rows, rows, indexing="ij"), -1).reshape(-1, 2)
    corners = corners[rng.random(len(corners)) < 0.8]  # not every centre has a label
    targets = rng.integers(0, 3, len(corners))
    folds = None if fold is None else (fold, 4)
    splits = block_split(Scene(corners, patch, block), targets, FRACTIONS, CLASSES, fold=folds)
    owner = {}
    for (top, left), split in zip(corners.tolist(), splits, strict=True):
        if split != LEFT_OUT:
            for y in range(top, top + patch):
                for x in range(left, left + patch):
                    assert owner.setdefault((y, x), split) == split
    counts = Counter(splits)
    kept = sum(counts.values()) - counts[LEFT_OUT]
    assert counts["train"] > 0.4 * kept
    assert counts["test"] > 0.05 * kept
    assert counts["val"] > 0.02 * kept


def test_rules_without_a_meaning_are_refused(tmp_path):
    make_folder(tmp_path, per_class=3)
    with pytest.raises(ConfigError, match=r"data\.fold has no meaning for data that is split already"):
        open_data(DataConfig(source="folder", path=str(tmp_path), fold=0), (8, 8))
    with pytest.raises(ConfigError, match=r"data\.split block is for the patches"):
        open_data(DataConfig(split="block"), (8, 8))
    with pytest.raises(ConfigError, match=r"data\.split exact has no folds"):
        open_data(DataConfig(split="exact", fold=1), (8, 8))
