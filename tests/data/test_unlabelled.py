"""Images without labels, and shares of labels."""

from collections import Counter

import numpy as np
import pytest

from tests.images import make_folder, save_image
from tests.settings import data_config
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.splits import keep_labels
from vitrail.errors import ConfigError, DataError


def folder(root, number=30):
    for i in range(number):
        save_image(root / "abc"[i % 3] / f"{i}.png", seed=i)
    return root


def test_all_images_at_any_depth_without_a_class(tmp_path):
    save_image(folder(tmp_path, 18) / "top.png")
    save_image(tmp_path / "a" / "deep" / "er.jpg")
    data = open_data(DataConfig(source="unlabelled", path=str(tmp_path)), (16, 16))
    assert data.source.classes == ()
    assert len(data.source) == 20
    assert {"top.png", "a/deep/er.jpg"} <= set(data.source.keys)
    assert (data.source.targets == -1).all()
    # Some are held out to watch by, none for testing; a new image moves no other.
    assert set(data.splits) == {"train", "val"}
    held_out = {data.source.keys[i] for i in data.splits["val"]}
    save_image(tmp_path / "new.png")
    more = open_data(DataConfig(source="unlabelled", path=str(tmp_path)), (16, 16))
    assert held_out == {more.source.keys[i] for i in more.splits["val"]} - {"new.png"}
    (tmp_path / "new.png").unlink()
    exact = open_data(DataConfig(source="unlabelled", path=str(tmp_path), split="exact"), (16, 16))
    assert {name: len(indices) for name, indices in exact.splits.items()} == {"train": 18, "val": 2}
    folders = DataConfig(
        source="unlabelled", path=str(tmp_path), split="grouped", splitting={"group": "^[^/]*", "val_fraction": 0.3}
    )
    grouped = open_data(folders, (16, 16))
    places = [{grouped.source.keys[i].split("/")[0] for i in grouped.splits[name]} for name in ("train", "val")]
    assert not places[0] & places[1]
    fold = open_data(
        DataConfig(source="unlabelled", path=str(tmp_path), splitting={"fold": 1, "val_fraction": 0.0}), (16, 16)
    )
    assert set(fold.splits) == {"train", "val"}
    batch = next(iter(data.loader("train", shuffle_seed=0)))
    assert batch["image"].shape[1:] == (3, 16, 16)
    edges = open_data(DataConfig(source="unlabelled", path=str(tmp_path), spectral={"derive": "edges"}), (16, 16))
    assert edges.source.load([0])["spectral"].shape == (1, 2, 16, 16)
    whole = open_data(DataConfig(source="unlabelled", path=str(tmp_path), splitting={"val_fraction": 0.0}), (16, 16))
    assert list(whole.splits) == ["train"]


def test_faults_are_named(tmp_path):
    def opened(path):
        return open_data(DataConfig(source="unlabelled", path=path and str(path)), (16, 16))

    with pytest.raises(ConfigError, match=r"unlabelled needs data.path, the folder of images"):
        opened(None)
    with pytest.raises(DataError, match="no folder of images"):
        opened(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        opened(tmp_path / "empty")
    root = folder(tmp_path / "x", 12)
    (root / "notes.png").write_text("no image")
    (root / "b" / "cut.png").write_bytes((root / "a" / "0.png").read_bytes()[:60])
    with pytest.raises(DataError, match="2 of 14 files are not readable images"):
        opened(root)
    with pytest.raises(
        ConfigError,
        match=r"data.classes.label_fraction 0.5 applies only to labelled sources, not to data.source unlabelled",
    ):
        open_data(
            DataConfig(
                source="unlabelled", path=str(root), classes={"label_fraction": 0.5}, errors={"on_unreadable": "skip"}
            ),
            (16, 16),
        )
    skipped = open_data(DataConfig(source="unlabelled", path=str(root), errors={"on_unreadable": "skip"}), (16, 16))
    assert len(skipped.source.keys) == len(skipped.source.targets) == 12
    assert {name for name, _ in skipped.source.left_out} == {"notes.png", "b/cut.png"}
    with pytest.raises(DataError, match="whose images look set apart"):
        opened(make_folder(tmp_path / "y", splits=("train", "Validation")))


def test_a_share_of_the_labels():
    keys = [f"k{i}" for i in range(300)]
    targets = np.array([0] * 200 + [1] * 90 + [2] * 10)
    splits = ["val" if i % 10 == 0 else "train" for i in range(300)]
    kept = {}
    for fraction in (0.05, 0.3, 1.0):
        result = keep_labels(keys, targets, splits, fraction, seed=3)
        assert [i for i in range(300) if result[i] == "val"] == list(range(0, 300, 10))
        kept[fraction] = {i for i in range(300) if result[i] == "train"}
    assert Counter(targets[sorted(kept[0.05])].tolist()) == {0: 9, 1: 4, 2: 1}  # of 180, 81 and 9
    assert Counter(targets[sorted(kept[0.3])].tolist()) == {0: 54, 1: 24, 2: 3}
    assert kept[0.05] < kept[0.3] < kept[1.0]
    again = keep_labels(keys, targets, splits, 0.05, seed=3)
    assert {i for i in range(300) if again[i] == "train"} == kept[0.05]
    other = keep_labels(keys, targets, splits, 0.05, seed=4)
    assert {i for i in range(300) if other[i] == "train"} != kept[0.05]
    # One image more moves at most the last of its class.
    more = keep_labels([*keys, "new"], np.append(targets, 0), [*splits, "train"], 0.05, seed=3)
    assert len(kept[0.05] ^ {i for i in range(301) if more[i] == "train"}) <= 2


def test_two_files_an_image(tmp_path):
    folder(tmp_path / "rgb", 12)
    for i in range(12):
        save_image(tmp_path / "nir" / "abc"[i % 3] / f"{i}.png", mode="L", seed=i)
    config = DataConfig(
        source="unlabelled",
        path=str(tmp_path / "rgb"),
        spectral={"path": str(tmp_path / "nir"), "names": ("nir",)},
        bands={"use": ("red", "blue")},
    )
    streams = open_data(config, (8, 8)).source.load([0, 5])
    assert {name: tuple(x.shape) for name, x in streams.items()} == {"image": (2, 2, 8, 8), "spectral": (2, 1, 8, 8)}


@pytest.mark.fast_cases("rule0")
@pytest.mark.parametrize("rule", [{}, {"split": "exact"}, {"split": "grouped"}, {"splitting__fold": 1}])
def test_a_share_of_the_labels_with_every_rule(tmp_path, rule):
    """Several labels an image: each keeps images, and what is held out stays."""
    rng = np.random.default_rng(1)
    lines = ["path,label,group"]
    for i in range(60):
        save_image(tmp_path / f"{i}.png", (9, 9), seed=i)
        lines.append(f"{i}.png,{';'.join(name for name in 'xyz' if rng.random() < 0.5)},{i // 2}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    config = {"source": "table", "path": str(tmp_path / "table.csv"), "table__label_separator": ";", **rule}
    whole = open_data(data_config(**config), (8, 8))
    part = open_data(data_config(**config, classes__label_fraction=0.3), (8, 8))
    assert {n: part.splits[n] for n in ("val", "test")} == {n: whole.splits[n] for n in ("val", "test")}
    assert sorted(part.splits["train"] + part.splits["unlabelled"]) == whole.splits["train"]
    assert len(part.splits["train"]) == pytest.approx(0.3 * len(whole.splits["train"]), abs=3)
    assert (part.source.targets[part.splits["train"]].sum(0) > 0).all()


def test_a_share_of_the_digits():
    data = open_data(DataConfig(classes={"label_fraction": 0.1, "label_seed": 1}), (8, 8))
    whole = open_data(DataConfig(), (8, 8))
    assert sorted(data.splits["train"] + data.splits["unlabelled"]) == whole.splits["train"]
    assert {n: data.splits[n] for n in ("val", "test")} == {n: whole.splits[n] for n in ("val", "test")}
    assert len(data.splits["train"]) == pytest.approx(0.1 * len(whole.splits["train"]), abs=5)
    assert data.fingerprint() != whole.fingerprint()
    for wrong in (0.0, 1.5, -0.1):
        with pytest.raises(ConfigError, match=r"data.classes.label_fraction must be above 0 and at most 1"):
            DataConfig(classes={"label_fraction": wrong})
