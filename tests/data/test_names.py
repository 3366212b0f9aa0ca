"""Families of file names: found by their marks, kept in one split by the proposed setting."""

import random
import re

import pytest

from tests.images import save_image
from vitrail.cli.main import main
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.names import describe_families, find_families


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
    assert "data.group" in line


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
def test_plain_numbering_is_no_family(names):
    keys = [f"{label}/{name}.jpg" for label in "ab" for name in names]
    assert not find_families(keys)
    assert describe_families(keys, halves(keys)) == []


def test_families_across_given_splits_have_another_remedy():
    keys = [f"{split}/a/x{i}_jpg.rf.{'ab12' * 8}{split}.jpg" for split in ("train", "test") for i in range(4)]
    (line,) = describe_families(keys, {"train": range(4), "test": range(4, 8)}, given=True)
    assert "4 of 4 families" in line
    assert "data.group" not in line
    assert describe_families(keys, {"train": range(8)}) == []


def test_frames_of_clips_are_asked_about():
    keys = [f"{label}/clip_{c}/frame_{i:04d}.png" for label in "ab" for c in range(4) for i in range(6)]
    (line,) = describe_families(keys, halves(keys))
    assert "8 of 8 folders of consecutive frames" in line
    assert "--data.group '^(.*)/[^/]+$'" in line
    # Frames directly in a class folder are images of that class; short numbers are no frames.
    for plain in ([f"a/{i:05d}.png" for i in range(9)], [f"a/day{d}/{i}.png" for d in range(3) for i in range(9)]):
        assert describe_families(plain, halves(plain)) == []


@pytest.mark.parametrize("mark", ["_mask", "_seg", "_gt", "_mask_1", "-annotation"])
def test_masks_beside_their_images_are_named(mark):
    keys = [f"benign/benign ({i}){end}.png" for i in range(1, 9) for end in ("", mark)]
    lines = describe_families(keys, halves(keys))
    assert any("8 of 16 images are named like masks of others" in line for line in lines)
    assert describe_families([f"masked/no_mask_{i}.png" for i in range(8)], {"train": range(8)}) == []


@pytest.mark.parametrize("kind", ["keras", "roboflow", "chain", "before"])
def test_the_leak_is_gone_with_the_proposed_group(tmp_path, capsys, kind):
    rng = random.Random(3)
    for label in ("a", "b"):
        for i in range(14):
            for name in copies(kind, f"leaf{label}{i}", rng):
                save_image(tmp_path / label / f"{name}.jpg", (9, 9), seed=i)
    config = {"source": "folder", "path": str(tmp_path), "val_fraction": 0.2}
    open_data(DataConfig(**config), (8, 8))
    told = capsys.readouterr().err
    assert "of 28 families of names (112 images" in told
    pattern = re.search(r"--data\.group '(.*)' keeps", told).group(1)
    data = open_data(DataConfig(**config, group=pattern), (8, 8))
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
    assert re.search(r"\d+ of 24 families of names \(96 images.* lie in several splits: --data\.group", told)
