"""Splits by hash: a new image moves no other, groups stay together, folds cover all, blocks share no pixel."""

import random
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.images import make_folder, save_image
from tests.settings import data_config
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.groups import groups_of
from vitrail.data.sources.base import Scene
from vitrail.data.split_checks import describe_split, divided_groups
from vitrail.data.splits import LEFT_OUT, block_split, hashed_split, position
from vitrail.errors import ConfigError, DataError

CLASSES = ("a", "b", "c")
FRACTIONS = {"test": 0.2, "val": 0.1}


def images(number, seed=0):
    rng = random.Random(seed)
    keys = [f"{seed}/{rng.random()}.jpg" for _ in range(number)]
    return keys, np.array([rng.choice([0, 0, 0, 1, 1, 2]) for _ in keys])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fold", [None, (2, 5)])
@pytest.mark.fast_cases("None-2", "fold1-0")
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
    splits = hashed_split(keys, targets, FRACTIONS, CLASSES)
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


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.fast_cases("7", "13", "14", "40")
def test_each_image_is_tested_in_one_fold_whatever_the_classes(seed):
    """Random numbers of classes, images, folds and groups, with and without a validation split beside the fold."""
    rng = random.Random(seed)
    sizes = [rng.choice([1, 2, 3, 4, 6, 9, 40]) for _ in range(rng.randint(1, 5))]
    targets = np.repeat(np.arange(len(sizes)), sizes)
    classes = tuple(f"class{i}" for i in range(len(sizes)))
    count, grouped, val = rng.randint(2, 10), rng.random() < 0.4, rng.choice([0, 0.1, 0.2])
    first = rng.choice(["test", "val"])
    units = [f"g{rng.randrange(12)}" if grouped else f"{seed}/{rng.random()}" for _ in targets]
    fractions = {"test": 0.2, "val": val} if first == "test" else {"val": val}
    fractions = {name: share for name, share in fractions.items() if share}
    seen, tested = Counter(), {}
    for number in range(count):
        try:
            splits = hashed_split(
                units, targets, fractions, classes, fold=(number, count), first=first, grouped=grouped
            )
        except DataError as error:
            told = str(error)
            assert re.search(r"too few for \d+ folds|folds would have no (image|group)|training would get no", told), (
                told
            )
            assert re.search(r"add (images|groups)|data.splitting.num_folds|data\.split stratified", told), told
            continue
        own = [row for row, split in enumerate(splits) if split == first]
        seen.update(own)
        tested[number] = {int(targets[row]) for row in own}
        assert own
        for target in range(len(sizes)):
            wanted = {"train"} if grouped else {"train", *(n for n in fractions if n != first)}
            assert wanted <= {splits[row] for row in np.flatnonzero(targets == target)}
        if grouped:
            assert len({(unit, split) for unit, split in zip(units, splits, strict=True)}) == len(set(units))
    assert all(times == 1 for times in seen.values())
    if len(tested) == count:
        assert len(seen) == len(targets)
        for target, size in enumerate(sizes):
            if not grouped:  # as many folds test a rare class as it has images
                assert sum(target in found for found in tested.values()) >= min(size, count)


def test_folds_of_few_images_are_refused_with_the_numbers():
    keys = [f"{i}.png" for i in range(12)]
    targets = np.repeat([0, 1], 6)
    with pytest.raises(DataError, match=r"class 'a' has 2 images: too few for 5 folds with test and val and train in"):
        hashed_split(keys[:8], np.repeat([0, 1], [2, 6]), FRACTIONS, CLASSES, fold=(0, 5))
    with pytest.raises(
        DataError, match=r"of 20 folds would have no image in test; set data.splitting.num_folds to at most 6"
    ):
        hashed_split(keys, targets, FRACTIONS, CLASSES, fold=(0, 20))
    groups = [f"g{i % 4}" for i in range(12)]
    with pytest.raises(
        DataError, match=r"1 of 5 folds would have no group in test; set data.splitting.num_folds to at most 4"
    ):
        hashed_split(groups, targets, FRACTIONS, CLASSES, fold=(0, 5), grouped=True)
    with pytest.raises(DataError, match=r"too few for 2 folds.*or data.splitting.num_folds 3"):
        hashed_split(keys[:3], np.zeros(3, int), FRACTIONS, CLASSES, fold=(0, 2))


def _table(folder, groups, split=None, labels=None):
    rows = []
    for i, group in enumerate(groups):
        save_image(folder / f"{i}.png", seed=i)
        row = {"path": f"{i}.png", "label": (labels or "ab")[i % len(labels or "ab")], "group": group}
        rows.append(row if split is None else {**row, "split": split[i]})
    pd.DataFrame(rows).to_csv(folder / "t.csv", index=False)
    return {"source": "table", "path": str(folder / "t.csv")}


def test_a_column_of_groups_is_respected_by_default_and_leaks_are_reported(tmp_path):
    settings = _table(tmp_path, [f"field_{i // 4}" for i in range(48)])
    data = open_data(data_config(**settings), (8, 8))
    assert data.config.split == "grouped"
    assert divided_groups(data) == (0, 12)
    line = describe_split(data)[0]
    assert re.match(
        r"each of 12 groups lies in one split: train \d+, val \d+ \(field_.*\), test \d+ \(field_.*\)$", line
    )
    data = open_data(data_config(**settings, split="stratified"), (8, 8))
    assert data.config.split == "stratified"
    divided, number = divided_groups(data)
    assert number == 12
    assert divided > 6
    (line,) = describe_split(data)
    assert line.startswith(f"{divided} of 12 groups lie in several splits: metrics on val and test are overestimated")
    assert "--data.split grouped keeps" in line
    (line,) = describe_split(data, of_run=True)
    assert "data." not in line
    without = open_data(DataConfig(), (8, 8))
    assert without.config.split == "stratified"
    assert describe_split(without) == []


def test_groups_of_a_given_split_and_of_uneven_sizes(tmp_path):
    split = ["train"] * 30 + ["val"] * 5 + ["test"] * 5
    data = open_data(data_config(**_table(tmp_path, [f"g{i % 20}" for i in range(40)], split)), (8, 8))
    assert "10 of 20 groups lie in several splits" in describe_split(data)[0]
    assert "give each group one split in the data" in describe_split(data)[0]
    large = next(name for name in (f"large{i}" for i in range(99)) if position(name) < 0.2)  # a test group
    groups = [f"g{i}" if i < 25 else large for i in range(73)]
    lines = describe_split(open_data(data_config(**_table(tmp_path, groups), splitting__val_fraction=0.05), (8, 8)))
    assert any("test has 7" in line and f"its largest group {large!r} has 48 of its" in line for line in lines)


def test_a_class_that_no_held_out_group_has_is_named(tmp_path):
    groups = [f"g{i // 3}" for i in range(36)]
    settings = _table(tmp_path, groups)
    table = pd.read_csv(settings["path"])
    plain = open_data(data_config(**settings), (8, 8))
    of = {groups[row] for row in plain.indices("train")}
    table.loc[table["group"] == sorted(of)[0], "label"] = "rare"
    table.to_csv(settings["path"], index=False)
    lines = describe_split(open_data(data_config(**settings), (8, 8)))
    assert "test has no image of rare (3 images in all); they are not evaluated there" in lines
    table.loc[0, "group"] = ""
    table.to_csv(settings["path"], index=False)
    with pytest.raises(DataError, match=r"1 image has no group.*\(data\.split stratified\)"):
        open_data(data_config(**settings), (8, 8))
    assert open_data(data_config(**settings, split="stratified"), (8, 8)).config.split == "stratified"


@pytest.mark.parametrize("seed", range(4))
def test_groups_stay_together_whatever_comes_later(seed):
    targets = images(800, seed)[1]
    groups = [f"g{i % 97}" for i in range(800)]
    splits = hashed_split(groups, targets, FRACTIONS, CLASSES, grouped=True)
    assert all(len({s for s, g in zip(splits, groups, strict=True) if g == name}) == 1 for name in set(groups))
    assert set(splits) == {"train", "val", "test"}
    assert hashed_split(groups[:500], targets[:500], FRACTIONS, CLASSES, grouped=True) == splits[:500]
    with pytest.raises(DataError, match="the data has 2 groups: too few"):
        hashed_split(["x", "y"] * 5, np.zeros(10, int), FRACTIONS, CLASSES, grouped=True)
    lonely = ["of c" if target == 2 else group for target, group in zip(targets, groups, strict=True)]
    with pytest.raises(DataError, match="training would get no image of c: all are in groups of other splits"):
        hashed_split(lonely, targets, {"test": position("of c") + 1e-9}, CLASSES, grouped=True)


def test_a_pattern_in_the_name_makes_groups(tmp_path):
    for plant in range(6):
        for name in ("dark", "light"):
            save_image(tmp_path / name / f"plant{plant}_view{plant % 3}.png", level=100)
            save_image(tmp_path / name / f"plant{plant}_other.png", level=100)
    settings = {"source": "folder", "path": str(tmp_path), "split": "grouped", "splitting__val_fraction": 0.25}
    data = open_data(data_config(**settings, splitting__group=r"plant(\d+)_"), (8, 8))
    of_split = {name: {data.source.keys[i].split("plant")[1].split("_")[0] for i in rows}
                for name, rows in data.splits.items()}  # fmt: skip
    assert sum(map(len, of_split.values())) == len(set.union(*of_split.values())) == 6
    with pytest.raises(DataError, match=r"is found in 12 of 24 paths; dark/plant0_other\.png"):
        open_data(data_config(**settings, splitting__group=r"view\d"), (8, 8))
    with pytest.raises(ConfigError, match="is not a valid regular expression"):
        open_data(data_config(**settings, splitting__group="("), (8, 8))
    with pytest.raises(DataError, match=r"needs a column 'group' in a table, or data\.splitting\.group"):
        open_data(data_config(**settings), (8, 8))
    whole = groups_of(SimpleNamespace(groups=None, keys=["p1/x", "p22/x"]), r"p\d+")
    assert whole == ["p1", "p22"]


def test_a_column_makes_groups(tmp_path):
    make_folder(tmp_path / "f", splits=(), per_class=15)
    rows = [{"path": f"f/{p.parent.name}/{p.name}", "label": p.parent.name, "plant": f"p{i % 9}"}
            for i, p in enumerate(sorted((tmp_path / "f").rglob("*.*")))]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    data = open_data(
        DataConfig(source="table", path=str(tmp_path / "t.csv"), split="grouped", splitting={"group": "plant"}), (8, 8)
    )
    assert sum(len({data.source.groups[i] for i in rows}) for rows in data.splits.values()) == 9


def test_the_test_images_of_a_folder_stay_its_test_images(tmp_path):
    make_folder(tmp_path, splits=("train", "test"), per_class=8)
    seen = []
    for fold in range(4):
        data = open_data(
            DataConfig(source="folder", path=str(tmp_path), splitting={"fold": fold, "num_folds": 4}), (8, 8)
        )
        assert all(data.source.keys[i].startswith("test/") for i in data.indices("test"))
        assert len(data.indices("test")) == 16
        seen += [data.source.keys[i] for i in data.indices("val")]
    assert len(seen) == len(set(seen)) == 16


def test_a_new_file_moves_no_other_file(tmp_path):
    make_folder(tmp_path, splits=(), per_class=12)
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
@pytest.mark.fast_cases("None-1", "1-1")
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
    with pytest.raises(ConfigError, match=r"data.splitting.fold applies only to data without a val split"):
        open_data(DataConfig(source="folder", path=str(tmp_path), splitting={"fold": 0}), (8, 8))
    with pytest.raises(ConfigError, match=r"data\.split block is for the patches"):
        open_data(DataConfig(split="block"), (8, 8))
    with pytest.raises(ConfigError, match=r"data\.split exact has no folds"):
        open_data(DataConfig(split="exact", splitting={"fold": 1}), (8, 8))


def test_groups_that_differ_in_spelling_alone_are_reported(tmp_path):
    settings = _table(tmp_path, [f"{'Pp'[i % 2]}{i // 4}" for i in range(48)])
    line = describe_split(open_data(data_config(**settings), (8, 8)))[0]
    assert line.startswith("24 groups differ from others only in letter case, blanks, '_' or '-', for example 'P")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "fractions", [{"test": 0.2, "val": 0.1}, {"test": 0.4, "val": 0.2}, {"test": 0.25, "val": 0.25}]
)
@pytest.mark.fast_cases("fractions0-2", "fractions2-5")
def test_few_groups_come_as_near_to_the_shares_as_they_can(seed, fractions):
    """Twelve groups of about one size: no share is off by more than half a group and a little."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(11, 15, 12)
    units = [f"field {seed}-{i}" for i, size in enumerate(sizes) for _ in range(size)]
    targets = rng.integers(0, 3, len(units))
    found = hashed_split(units, targets, fractions, ["a", "b", "c"], grouped=True)
    for split, share in fractions.items():
        assert abs(found.count(split) / len(units) - share) <= 0.6 / 12 + 0.01
    assert all(len({s for u, s in zip(units, found, strict=True) if u == unit}) == 1 for unit in set(units))
    order = rng.permutation(len(units))
    again = hashed_split([units[i] for i in order], targets[order], fractions, ["a", "b", "c"], grouped=True)
    assert dict(zip(units, found, strict=True)) == dict(zip([units[i] for i in order], again, strict=True))
