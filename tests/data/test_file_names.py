"""Families of file names: found by their marks, kept in one split by the proposed setting."""

import random
import re

import pytest

from tests.images import save_image
from tests.settings import data_config
from vitrail.cli.main import main
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.file_names import describe_band_files, describe_families, find_families


def halves(keys):
    return {"train": range(0, len(keys), 2), "val": range(1, len(keys), 2)}


def copies(kind, stem, rng):
    number = rng.randrange(1000, 9999)
    return {
        "keras": [f"{stem}_0_{rng.randrange(10**4)}" for _ in range(4)],
        "roboflow": [f"{stem}_jpg.rf.{rng.randbytes(16).hex()}" for _ in range(4)],
        "aug": [stem, *(f"{stem}_aug_{i}" for i in range(3))],
        "before": [stem, *(f"aug_{i}_{stem}" for i in range(3))],
        "flip": [f"{stem}{mark}" for mark in ("", "_flip", "-hflip", "_FLIP_LR")],
        "turned": [f"{stem}{mark}" for mark in ("", "_rot90", "_rotated_180", " rot-15")],
        "chain": [f"{stem}_flip_rot90", f"{stem}_aug_2 (3)", f"{stem} - Copy", stem],
        "manager": [stem, f"{stem} - Copy", f"{stem} - Copy (2)", f"{stem} (2)"],
        "copy": [stem, f"{stem}_copy", f"{stem} copy 2", f"{stem}-copy{number}"],
    }[kind]


KINDS = ["keras", "roboflow", "aug", "before", "flip", "turned", "chain", "manager", "copy"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".jpg", ".PNG", ""])
@pytest.mark.fast_cases(".jpg-keras", ".jpg-aug", "-before")
def test_each_family_is_found_and_kept_together_by_the_proposed_group(kind, suffix):
    rng = random.Random(kind)
    wanted = {}
    for label in ("blight", "healthy"):
        for i in range(9):
            stem = f"leaf_{label}-{i}" if i % 2 else f"IMG_{i:04d}"
            wanted |= {f"{label}/{name}{suffix}": f"{label}/{stem}" for name in copies(kind, stem, rng)}
    keys = list(wanted)
    rng.shuffle(keys)
    found = find_families(keys)
    assert [name.lower() for name in found.family] == [wanted[key].lower() for key in keys]
    groups = [re.search(found.pattern, key).group(1) for key in keys]
    for key, group in zip(keys, groups, strict=True):
        members = {g for k, g in zip(keys, groups, strict=True) if wanted[k] == wanted[key]}
        assert members == {group}
    (line,) = describe_families(keys, halves(keys))
    assert re.match(r"\d+ of 18 families of names \(72 images", line)
    assert "data.splitting.group" in line


@pytest.mark.parametrize(
    "names",
    [
        [f"img_{i}" for i in range(30)],
        [f"benign ({i})" for i in range(1, 30)],
        [f"scan_0_{i}" for i in range(30)],
        [f"plant{i // 3}_{i % 3}" for i in range(30)],
        [f"tile_dark_{i}" for i in range(30)],
        [f"rotterdam_{i}" for i in range(30)],
        [f"august_{i}" for i in range(30)],
        [f"{i:04d}" for i in range(30)],
    ],
    ids=lambda names: names[1],
)
@pytest.mark.fast_cases("benign (2)", "scan_0_1")
def test_plain_numbering_is_no_family(names):
    keys = [f"{label}/{name}.jpg" for label in "ab" for name in names]
    assert not find_families(keys)
    assert describe_families(keys, halves(keys)) == []


def test_families_across_given_splits_have_another_remedy():
    keys = [f"{split}/a/x{i}_jpg.rf.{'ab12' * 8}{split}.jpg" for split in ("train", "test") for i in range(4)]
    (line,) = describe_families(keys, {"train": range(4), "test": range(4, 8)}, given=True)
    assert "4 of 4 families" in line
    assert "data.splitting.group" not in line
    assert describe_families(keys, {"train": range(8)}) == []


def test_frames_of_clips_are_asked_about():
    keys = [f"{label}/clip_{c}/frame_{i:04d}.png" for label in "ab" for c in range(4) for i in range(6)]
    (line,) = describe_families(keys, halves(keys))
    assert "8 of 8 folders of consecutive frames" in line
    assert "--data.splitting.group '^(.*)/[^/]+$'" in line
    # Frames directly in a class folder are images of that class; short numbers are not frames.
    for plain in ([f"a/{i:05d}.png" for i in range(9)], [f"a/day{d}/{i}.png" for d in range(3) for i in range(9)]):
        assert describe_families(plain, halves(plain)) == []


@pytest.mark.parametrize("mark", ["_mask", "_seg", "_gt", "_mask_1", "-annotation"])
def test_masks_beside_their_images_are_named(mark):
    keys = [f"benign/benign ({i}){end}.png" for i in range(1, 9) for end in ("", mark)]
    lines = describe_families(keys, halves(keys))
    assert any("8 of 16 images are named like masks of others" in line for line in lines)
    assert describe_families([f"masked/no_mask_{i}.png" for i in range(8)], {"train": range(8)}) == []


@pytest.mark.fast_cases("chain")
@pytest.mark.parametrize("kind", ["keras", "roboflow", "chain", "before"])
def test_the_leak_is_gone_with_the_proposed_group(tmp_path, capsys, kind):
    rng = random.Random(3)
    for label in ("a", "b"):
        for i in range(14):
            for name in copies(kind, f"leaf{label}{i}", rng):
                save_image(tmp_path / label / f"{name}.jpg", (9, 9), seed=i)
    config = {"source": "folder", "path": str(tmp_path), "splitting__val_fraction": 0.2}
    open_data(data_config(**config), (8, 8))
    told = capsys.readouterr().err
    assert "of 28 families of names (112 images" in told
    pattern = re.search(r"--data.splitting.group '(.*)' keeps", told).group(1)
    data = open_data(data_config(**config, splitting__group=pattern), (8, 8))
    assert "families" not in capsys.readouterr().err
    stems = {
        split: {re.search(r"leaf[ab]\d+", data.source.keys[i]).group() for i in rows}
        for split, rows in data.splits.items()
    }
    assert set(stems) == {"train", "val", "test"}
    assert not stems["train"] & stems["test"]
    assert not stems["train"] & stems["val"]
    assert not stems["val"] & stems["test"]


def test_the_audit_names_families(tmp_path, capsys):
    rng = random.Random(4)
    for label in ("a", "b"):
        for i in range(12):
            for k, name in enumerate(copies("roboflow", f"leaf{i}", rng)):
                save_image(tmp_path / label / f"{name}.jpg", (16, 16), seed=100 * i + k)
    main(["data", "audit", "--data.source", "folder", "--data.path", str(tmp_path)])
    told = capsys.readouterr().err
    assert re.search(r"\d+ of 24 families of names \(96 images.* lie in several splits: --data.splitting.group", told)


@pytest.mark.parametrize(
    "marks",
    [("", "~2", "~3"), ("", "-edited"), ("", "_90deg", "_270deg", "_flipLR"), ("", "_new30degFlipLR")],
    ids=lambda marks: marks[-1],
)
def test_marks_of_photo_tools_and_public_sets(marks):
    keys = [f"{label}/RS_HL {i}{mark}.JPG" for label in "ab" for i in range(9) for mark in marks]
    found = find_families(keys)
    assert len({re.search(found.pattern, key).group(1) for key in keys}) == 18
    assert all(found.family)


@pytest.mark.parametrize("before", ["flip_", "rotated_", "crop_1_", "rot_"])
@pytest.mark.parametrize("stem", ["leaf{}", "{}"])
@pytest.mark.fast_cases("{}-flip_", "{}-rot_")
def test_words_before_a_name_are_marks_where_the_name_is_there(before, stem):
    keys = [f"a/{mark}{stem.format(i)}.jpg" for i in range(8) for mark in ("", before)]
    found = find_families(keys)
    assert [name.rpartition("/")[2] for name in found.family] == [stem.format(i) for i in range(8) for _ in "ab"]
    assert not find_families([key for key in keys if before in key])


def test_the_copies_of_augmentor_are_families():
    rng = random.Random(5)
    keys = [
        f"a/a_original_leaf{i}.jpg_{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}.jpg"
        for i in range(6)
        for h in (rng.randbytes(16).hex() for _ in range(3))
    ]
    assert [name.split("leaf")[1][0] for name in find_families(keys).family] == [
        str(i) for i in range(6) for _ in "abc"
    ]


def test_copies_in_another_split_than_their_original():
    keys = [f"{split}/a/leaf{i}{mark}.jpg" for i in range(8) for split, mark in (("train", ""), ("test", "_aug_1"))]
    splits = {"train": range(0, 16, 2), "test": range(1, 16, 2)}
    (line,) = describe_families(keys, splits, given=True)
    assert "8 of 8 families of names" in line


@pytest.mark.parametrize(
    "names",
    [
        [f"{{}}_0_{n}" for n in (31, 870, 2204, 4409, 9001)],
        [f"{{}}_aug_{n}" for n in range(9)],
        [f"{year}_{month}_{day}" for year in (2020, 2021) for month in ("Jul", "Aug", "Sep") for day in range(3)],
        [f"{month}_{day}_{year}" for year in (2020, 2021) for month in ("jul", "aug") for day in range(3)],
        [f"sample{i}_30deg" for i in range(9)],
    ],
    ids=lambda names: names[1],
)
def test_series_dates_and_measurements_are_no_families(names):
    keys = [f"{label}/{name.format(label)}.jpg" for label in ("cat", "dog") for name in names]
    assert not find_families(keys)


def test_names_are_read_where_images_are_files_alone(capsys):
    config = DataConfig(source="synthetic_leaves", leaves={"num_images": 60})
    assert not open_data(config, (16, 16)).source.named
    assert "consecutive frames" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "bands", [("GRE", "NIR", "RED", "REG"), ("G", "NIR", "R", "RE"), ("NIR", "RE", "red"), ("R", "G", "B"), "12345"]
)
def test_bands_of_cameras_are_proposed_where_a_few_lack_or_have_more(bands):
    keys = [f"a/IMG_{i:04d}_{band}.tif" for i in range(9) for band in bands]
    lines = [
        describe_band_files(some) for some in (keys, keys[1:], [*keys, *(f"a/IMG_{i:04d}_thumb.jpg" for i in range(9))])
    ]
    assert [len(line) for line in lines] == [1, 1, 1]
    pattern = re.search(r"--data.bands.files '(.*?)' --data", lines[0][0]).group(1)
    assert {re.search(pattern, key.rpartition("/")[2])["band"] for key in keys} == set(bands)
    assert describe_band_files([f"a/knee{i}_{side}.png" for i in range(9) for side in "RL"]) == []
