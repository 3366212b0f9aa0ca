"""Duplicates against brute force and against copies that were made on purpose; leaks, conflicts, constant bands."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageEnhance

from vitrail.config import DataConfig
from vitrail.data.audit import audit, merge_groups
from vitrail.data.perceptual_hash import DisjointSets, connected_components, perceptual_hashes


def test_clusters_are_the_connected_rows():
    assert connected_components(np.array([[0, 3], [3, 9], [4, 5]])) == [[0, 3, 9], [4, 5]]
    groups = DisjointSets(range(6))
    assert [groups.join(*pair) for pair in ((5, 3), (3, 1), (1, 5))] == [True, True, False]
    assert [groups.root(i) for i in range(6)] == [0, 1, 2, 1, 4, 1]


def photo(seed, size=(96, 128)):
    """A smooth scene with some detail."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (7, 9, 3)).astype(np.uint8)).resize(
        size[::-1], Image.Resampling.BICUBIC
    )
    noise = rng.normal(0, 8, (*size, 3))
    return Image.fromarray(np.clip(np.asarray(small) + noise, 0, 255).astype(np.uint8))


def recompressed(image, quality=60):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def test_hashes_survive_what_copies_go_through():
    def small(image):
        gray = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX), dtype=np.float32) / 255
        return torch.from_numpy(gray)

    originals = [photo(i) for i in range(12)]
    changes = (recompressed, lambda i: i.resize((64, 48)), brighter, lambda i: i)
    for change in changes:
        a = perceptual_hashes(torch.stack([small(i) for i in originals]))
        b = perceptual_hashes(torch.stack([small(change(i)) for i in originals]))
        assert np.bitwise_count(a ^ b).max() <= 8
        others = np.bitwise_count(a[:, None] ^ b[None])[~np.eye(12, dtype=bool)]
        assert others.min() > 8
    flat = perceptual_hashes(torch.full((2, 32, 32), 0.4) + torch.tensor([0.0, 0.002])[:, None, None])
    assert flat.tolist() == [0, 0]


def brighter(image):
    return ImageEnhance.Brightness(image).enhance(1.12)


@pytest.fixture
def spoiled(tmp_path):
    """Two classes of 15 photos each in train, val and test, and every fault once."""
    for split, start in (("train", 0), ("val", 100), ("test", 200)):
        for c, name in enumerate(("ant", "bee")):
            for i in range(5):
                path = tmp_path / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                photo(start + 10 * c + i).save(path)
    train, val, test = (tmp_path / s for s in ("train", "val", "test"))
    (train / "ant" / "copy.png").write_bytes((train / "ant" / "0.png").read_bytes())
    (val / "ant" / "leak.png").write_bytes((train / "ant" / "1.png").read_bytes())
    recompressed(Image.open(train / "bee" / "2.png").resize((64, 48))).save(test / "bee" / "near.jpg")
    (train / "bee" / "other.png").write_bytes((train / "ant" / "3.png").read_bytes())
    (train / "bee" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    array = np.asarray(photo(5)).copy()
    array[..., 1] = 7
    Image.fromarray(array).save(train / "bee" / "flat.png")
    Image.new("RGB", (30, 20)).save(train / "ant" / "black.png")
    Image.new("RGB", (30, 20), (1, 1, 1)).save(test / "ant" / "black.png")
    return tmp_path


def test_every_fault_is_found_and_nothing_else(spoiled):
    found, data = audit(DataConfig(source="folder", path=str(spoiled)))
    assert [name for name, _ in found.unreadable] == ["train/bee/broken.jpg"]
    exact = {frozenset(g.keys) for g in found.duplicates if g.kind == "exact"}
    assert exact == {
        frozenset({"train/ant/0.png", "train/ant/copy.png"}),
        frozenset({"train/ant/1.png", "val/ant/leak.png"}),
        frozenset({"train/ant/3.png", "train/bee/other.png"}),
    }
    near = {frozenset(g.keys) for g in found.duplicates if g.kind == "near"}
    assert near == {frozenset({"train/bee/2.png", "test/bee/near.jpg"})}
    assert {frozenset(g.splits) for g in found.leaks} == {frozenset({"train", "val"}), frozenset({"train", "test"})}
    assert [set(g.labels) for g in found.conflicts] == [{"ant", "bee"}]
    assert found.split_leaks
    assert found.balance == {"ant": {"train": 7, "val": 6, "test": 6}, "bee": {"train": 7, "val": 5, "test": 6}}
    assert found.images == len(data.source) == 37
    constant = {(key, band) for key, _, band in found.constant}
    blacks = {(f"{s}/ant/black.png", band) for s in ("train", "test") for band in ("red", "green", "blue")}
    assert constant == {("train/bee/flat.png", "green")} | blacks
    assert dict(found.sizes) == {(96, 128): 34, (20, 30): 2, (48, 64): 1}
    assert found.empty_bands == []


def test_a_sound_set_has_no_leak_and_an_empty_band_is_told(tmp_path):
    for name in ("ant", "bee"):
        for i in range(6):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            array = np.asarray(photo(40 * (name == "bee") + i)).copy()
            array[..., 2] = i  # blue holds nothing in any image
            Image.fromarray(array).save(path)
    found, _ = audit(DataConfig(source="folder", path=str(tmp_path)))
    assert not found.split_leaks
    assert found.duplicates == []
    assert found.empty_bands == [("image", "blue")]
    assert found.constant == []


def test_groups_across_given_splits_leak(spoiled):
    rows = [{"path": str(p), "label": p.parent.name, "split": p.parent.parent.name, "group": p.stem}
            for p in sorted(spoiled.rglob("?.png"))]  # fmt: skip
    pd.DataFrame(rows).to_csv(spoiled / "t.csv", index=False)
    found, _ = audit(DataConfig(source="table", path=str(spoiled / "t.csv")))
    assert found.shared_groups == {str(i): ("test", "train", "val") for i in range(5)}
    assert found.split_leaks
    assert found.leaks == []


def test_a_copy_in_two_groups_joins_them(tmp_path):
    """Five fields of photos; one photo of the first field lies, mirrored, in the third."""
    rows = []
    for i in range(20):
        photo(300 + i).save(tmp_path / f"{i}.png")
        rows.append({"path": f"{i}.png", "label": "ab"[i % 2], "group": f"field{i // 4}"})
    photo(301).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "8.png")
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    found, data = audit(DataConfig(source="table", path=str(tmp_path / "t.csv"), split="grouped"))
    assert [(g.keys, g.relations) for g in found.duplicates] == [(("1.png", "8.png"), ("", "mirrored"))]
    groups = merge_groups(found, data)
    assert groups == {i: "field0" if i // 4 == 2 else f"field{i // 4}" for i in range(20)}


def test_look_alikes_are_no_duplicates(tmp_path):
    """The same coarse scene with other detail: the hashes are close, the pixels disagree."""
    rng = np.random.default_rng(5)
    for split, seed in (("train", 0), ("val", 1)):
        for name in ("ant", "bee"):
            for i in range(4):
                path = tmp_path / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                photo(1000 + 100 * seed + 10 * (name == "bee") + i).save(path)
    scene = np.asarray(photo(77), dtype=float)
    for split in ("train", "val"):
        blocks = rng.normal(0, 45, (24, 32, 1)).repeat(4, 0).repeat(4, 1)
        Image.fromarray(np.clip(scene + blocks, 0, 255).astype(np.uint8)).save(tmp_path / split / "ant" / "scene.png")
    found, _ = audit(DataConfig(source="folder", path=str(tmp_path)), distance=15)
    assert found.duplicates == []
    assert [pair.keys for pair in found.possible_leaks] == [("train/ant/scene.png", "val/ant/scene.png")]
    assert not found.split_leaks
    distance = found.possible_leaks[0].distance
    assert audit(DataConfig(source="folder", path=str(tmp_path)), distance=distance - 1)[0].look_alikes == []


def test_the_page_shows_kinds_true_colours_and_possible_leaks(tmp_path):
    """Five bands in the order of files: red, green and blue are found by name; dark reflectances are stretched."""
    import base64
    import re

    import tifffile

    from vitrail.report.audit import write_audit

    rng = np.random.default_rng(3)

    def save(split, number, values):
        path = tmp_path / split / "ab"[number % 2] / f"{split}{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, np.ascontiguousarray(values).astype(np.uint16))

    for i in range(8):
        shades = np.asarray(photo(700 + i, (48, 48)).convert("L"), dtype=float)
        # Little light, all of it red; blue comes first in the file.
        values = np.stack([shades * 0.2, shades * 0.3, shades * 2 + 100, shades, shades])
        save("train" if i < 4 else "val", i, values)
        if i == 0:
            save("val", 8, np.rot90(values, 2, axes=(1, 2)))
        if i == 1:
            save("val", 9, values + np.kron(rng.uniform(0, 250, (5, 12, 12)), np.ones((4, 4))))
    bands = {"names": ("blue", "green", "red", "nir", "swir")}
    config = DataConfig(source="folder", path=str(tmp_path), scale=10000.0, images={"resize": "squash"}, bands=bands)
    found, data = audit(config, distance=15)
    page = write_audit(found, data, tmp_path / "audit.html").read_text()
    assert "<em>turned 180</em>" in page
    first = re.search(r'data:image/jpeg;base64,([^"]+)', page)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(first[1]))), dtype=float)
    assert pixels.shape[2] == 3
    assert pixels[..., 0].max() > 230
    assert pixels[..., 0].mean() > 2 * pixels[..., 2].mean()
    assert len(found.possible_leaks) == page.count("of 64 bits differ")
    assert ("Possible leaks" in page) == bool(found.possible_leaks)
