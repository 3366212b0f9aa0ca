"""Images recognised by content: under any name and in any order, copies told apart, whatever the kind of data."""

import hashlib
import random
import shutil

import numpy as np
import pytest

from tests.images import embed_images, make_folder
from tests.settings import data_config
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.dataset import split_by_rule
from vitrail.data.identity import NEW, KnownImages


class _Source:
    def __init__(self, contents, keys):
        self.keys, self._contents = keys, contents

    def __len__(self):
        return len(self.keys)

    def digests(self):
        return [hashlib.sha256(str(content).encode()).digest() for content in self._contents]


def _known(contents, keys, splits):
    return KnownImages(tuple(_Source(contents, keys).digests()), tuple(keys), tuple(splits))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.fast_cases("6", "10", "19")
def test_whatever_is_renamed_shuffled_added_or_removed(seed):
    rng = random.Random(seed)
    number = rng.randint(1, 40)
    contents = [rng.randrange(number) for _ in range(number)]  # some more than once
    keys = [f"{i}.png" for i in range(number)]
    splits = [rng.choice(["train", "val", "test", ""]) for _ in range(number)]
    known = _known(contents, keys, splits)
    kept = [i for i in rng.sample(range(number), number) if rng.random() < 0.8]
    new = [f"new{i}" for i in range(rng.randint(0, 5))]
    names = [keys[i] if rng.random() < 0.5 else f"renamed{i}" for i in kept] + new
    found = known.recognise(_Source([*(contents[i] for i in kept), *new], names))
    assert found.num_known == len(kept)
    assert found.complete == (not new)
    assert found.num_missing == number - len(kept)
    rows = found.rows.tolist()
    assert all(row == -1 for row in rows[len(kept) :])
    assert len(set(rows[: len(kept)])) == len(kept)  # each copy is another of the known ones
    for place, i in enumerate(kept):
        assert contents[rows[place]] == contents[i]
        if names[place] == keys[i]:
            assert rows[place] == i
    assert found.splits()[len(kept) :] == [NEW] * len(new)
    order = found.sort_by_run(range(len(names)))
    assert [rows[i] for i in order][: len(kept)] == sorted(rows[: len(kept)])


def test_a_copy_of_a_training_image_counts_as_one():
    known = _known(["a", "a", "b"], ["1", "2", "3"], ["test", "train", "test"])
    # By name each is itself; without, what was trained on comes first, and more copies than known count as trained on.
    assert known.recognise(_Source(["a"], ["1"])).splits() == ["test"]
    assert known.recognise(_Source(["a"], ["x"])).splits() == ["train"]
    assert known.recognise(_Source(["a", "a", "a"], ["x", "y", "z"])).splits() == ["train", "test", "train"]
    assert known.recognise(_Source(["c", "d"], ["1", "z"])).count_namesakes() == 1


def test_files_of_another_format_are_namesakes():
    known = _known(["a", "b"], ["x/1.png", "x/2.png"], ["train", "test"])
    assert known.recognise(_Source(["c", "d"], ["x/1.jpg", "y/2.jpg"])).count_namesakes() == 1


def _record(data):
    splits = [""] * len(data.source)
    for name, rows in data.splits.items():
        for row in rows:
            splits[row] = name
    return KnownImages(tuple(data.source.digests()), tuple(data.source.keys), tuple(splits))


def _arrays(path, order):
    rng = np.random.default_rng(0)
    images, labels = rng.random((60, 6, 6, 3), dtype=np.float32), np.arange(60) % 3
    np.savez(path, images=images[order], labels=labels[order])


@pytest.mark.slow_cases("folder")
@pytest.mark.parametrize("kind", ["folder", "parquet", "arrays", "scene"])
def test_data_of_every_kind_that_moved_keeps_its_split(tmp_path, kind):
    rng = np.random.default_rng(1)
    more = {}
    if kind == "folder":
        make_folder(tmp_path / "here", splits=(), per_class=20)
        place, other = tmp_path / "here", tmp_path / "there"
    elif kind == "parquet":
        embed_images(tmp_path / "here.parquet", [0, 1] * 20)
        place, other = tmp_path / "here.parquet", tmp_path / "there.parquet"
    else:
        place, other = tmp_path / "here.npz", tmp_path / "there.npz"
        more = {"scale": 1.0, "arrays__cube": "images", "arrays__labels": "labels"}
        if kind == "scene":
            more |= {"arrays__patch": 3, "arrays__block": 4}
            np.savez(place, images=rng.random((40, 40, 4), dtype=np.float32), labels=rng.integers(0, 3, (40, 40)))
        else:
            _arrays(place, np.arange(60))
    config = data_config(source="arrays" if kind == "scene" else kind, path=str(place), **more)
    before = open_data(config, (8, 8))
    known = _record(before)
    if kind == "folder":
        for number, file in enumerate(sorted(place.rglob("*.*"), key=lambda f: hashlib.md5(f.name.encode()).digest())):
            target = other / file.parent.name / f"{number:03d}_renamed{file.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, target)
    elif kind == "arrays":
        _arrays(other, rng.permutation(60))
    else:
        place.rename(other)
    moved = data_config(source=config.source, path=str(other), **more)
    for size in ((8, 8), (5, 7)):  # whatever the size that images are brought to
        after = open_data(moved, size, before.source.classes, split=False, known=known)
        assert after.recognition.complete
        assert list(after.splits) == list(before.splits)
        digests = [data.source.digests() for data in (before, after)]
        for split in before.splits:
            wanted, got = ([d[i] for i in data.splits[split]] for d, data in zip(digests, (before, after), strict=True))
            assert got == wanted  # in the same order
        assert after.fingerprint() == before.fingerprint()
    again = split_by_rule(after)
    if kind in ("folder", "arrays"):
        assert again.fingerprint() != before.fingerprint()  # the rule goes by names


def test_what_came_later_goes_by_the_rule_and_moves_nothing(tmp_path):
    make_folder(tmp_path, splits=(), per_class=12)
    config = DataConfig(source="folder", path=str(tmp_path))
    before = open_data(config, (8, 8))
    known = _record(before)
    make_folder(tmp_path / "more", splits=(), per_class=6, seed=5)
    for name in ("dark", "light"):
        for file in sorted((tmp_path / "more" / name).iterdir()):
            file.rename(tmp_path / name / f"more_{file.name}")
        (tmp_path / "more" / name).rmdir()
    (tmp_path / "more").rmdir()
    after = open_data(config, (8, 8), known=known)
    assert len(after.source) == 36
    assert after.recognition.num_known == 24
    rule = open_data(config, (8, 8))
    for split, rows in after.splits.items():
        names = {after.source.keys[i] for i in rows}
        old = {before.source.keys[i] for i in before.splits[split]}
        assert old <= names
        assert names - old == {rule.source.keys[i] for i in rule.splits[split] if "more_" in rule.source.keys[i]}
    elsewhere = open_data(config, (8, 8), split=False, known=known)
    assert len(elsewhere.indices(NEW)) == 12
    assert len(elsewhere.indices("all")) == 36
    assert elsewhere.recognition.counts(elsewhere.indices("test")) == {"test": len(before.indices("test"))}


def test_the_fingerprint_is_of_contents_classes_and_splits(tmp_path):
    make_folder(tmp_path, splits=("train", "val"), per_class=4)
    config = DataConfig(source="folder", path=str(tmp_path))
    before = open_data(config, (8, 8))
    file = next((tmp_path / "train" / "dark").iterdir())
    renamed = file.rename(file.with_name(f"zz{file.suffix}"))
    after = open_data(config, (8, 8))
    assert after.fingerprint() == before.fingerprint()
    assert after.listing() != before.listing()
    renamed.rename(tmp_path / "val" / "dark" / renamed.name)
    assert open_data(config, (8, 8)).fingerprint() != before.fingerprint()
