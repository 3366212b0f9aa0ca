"""Image folders: every layout that is understood, and every fault that is refused."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests.images import make_folder, save_image
from tests.settings import data_config
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.images import read_image
from vitrail.errors import ConfigError, DataError


def folder(path, **settings):
    return open_data(data_config(source="folder", path=str(path), **settings), (12, 16))


def test_split_folders(tmp_path):
    data = folder(make_folder(tmp_path, per_class=4))
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 8, "val": 8, "test": 8}
    assert data.source.classes == ("dark", "light")
    for split, indices in data.splits.items():
        assert all(data.source.keys[i].startswith(f"{split}/") for i in indices)
    batch = next(iter(data.loader("val")))
    assert batch["image"].shape == (8, 3, 12, 16)
    assert batch["image"].dtype == torch.float32
    assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
    # The classes differ in brightness, so labels and images belong together.
    means = batch["image"].mean((1, 2, 3))
    assert (means[batch["target"] == 0].max() < means[batch["target"] == 1].min()).item()


def test_a_folder_without_splits_is_split_by_class_and_always_the_same_way(tmp_path):
    make_folder(tmp_path, splits=(), per_class=10)
    data = folder(tmp_path, splitting__val_fraction=0.2, splitting__test_fraction=0.1, split="exact")
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 14, "val": 4, "test": 2}
    for indices in data.splits.values():
        assert np.bincount(data.source.targets[indices]).tolist() == [len(indices) // 2] * 2
    assert sorted(i for indices in data.splits.values() for i in indices) == list(range(20))
    assert (
        folder(tmp_path, splitting__val_fraction=0.2, splitting__test_fraction=0.1, split="exact").splits == data.splits
    )


def test_train_alone_is_split_too_and_test_may_be_set_apart(tmp_path):
    make_folder(tmp_path / "a", splits=("train",), per_class=4)
    assert set(folder(tmp_path / "a").splits) == {"train", "val", "test"}
    make_folder(tmp_path / "b", splits=("train", "test"), per_class=10)
    data = folder(tmp_path / "b", split="exact")
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 18, "val": 2, "test": 20}
    make_folder(tmp_path / "c", splits=("train", "val"), per_class=2)
    assert set(folder(tmp_path / "c").splits) == {"train", "val"}


def test_palette_and_opaque_images_are_what_they_show(tmp_path):
    colors = np.random.default_rng(3).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    gif = tmp_path / "a.gif"
    image = Image.fromarray(colors).quantize(16)
    image.save(gif)
    assert np.array_equal(read_image(gif).numpy().transpose(1, 2, 0), np.array(image.convert("RGB")))
    opaque = tmp_path / "b.png"
    Image.fromarray(np.dstack([colors, np.full((12, 16), 255, np.uint8)])).save(opaque)
    assert np.array_equal(read_image(opaque).numpy().transpose(1, 2, 0), colors)


def test_orientation_is_read_from_the_file(tmp_path):
    colors = np.random.default_rng(4).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(colors)
    exif = image.getexif()
    exif[274] = 6  # the camera was turned: show it rotated by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png").numpy().transpose(1, 2, 0), np.rot90(colors, -1))


@pytest.mark.parametrize("shape", [(37, 91), (90, 41), (12, 16), (5, 5), (224, 225)])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_every_size_is_brought_to_the_wanted_one(tmp_path, shape, resize):
    path = save_image(tmp_path / "x.jpg", shape)
    for size in ((12, 16), (33, 7), (64, 64)):
        assert read_image(path, size=size, resize=resize).shape == (3, *size)


def test_center_crop_keeps_the_center(tmp_path):
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, 30:60] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", size=(10, 10)).float().mean() > 245
    squashed = read_image(tmp_path / "x.png", size=(10, 10), resize="squash").float()
    assert 60 < squashed.mean() < 110


@pytest.mark.parametrize(
    ("mode", "color", "bands"), [("L", "rgb", 1), ("CMYK", "rgb", 4), ("RGBA", "rgb", 4), ("RGB", "gray", 3)]
)
def test_other_bands_are_refused_or_converted_on_request(tmp_path, mode, color, bands):
    path = save_image(tmp_path / f"x.{'tif' if mode == 'CMYK' else 'png'}", mode=mode, level=100)
    with pytest.raises(DataError, match=rf"has {bands} band.*on_band_mismatch convert"):
        read_image(path, color)
    assert read_image(path, color, convert=True).shape[0] == {"rgb": 3, "gray": 1}[color]


def test_files_that_are_no_images_are_all_named_before_training(tmp_path):
    make_folder(tmp_path, per_class=2)
    (tmp_path / "train" / "dark" / "empty.png").write_text("")
    (tmp_path / "val" / "light" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tmp_path / "val" / "light" / ".DS_Store").write_text("litter")
    with pytest.raises(DataError, match=r"2 of 14 files") as caught:
        folder(tmp_path)
    assert "empty.png" in str(caught.value)
    assert "broken.jpg" in str(caught.value)


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_deep_images_are_never_clipped(tmp_path, kind, color):
    array = (np.arange(120).reshape(10, 12) / 119 * (1 if kind == "float32" else 60000)).astype(kind)
    path = tmp_path / ("x.png" if kind == "uint16" else "x.tif")
    Image.fromarray(array).save(path)
    for convert in (False, True):
        with pytest.raises(DataError, match="more than 8 bits a band"):
            read_image(path, color, (8, 8), convert=convert)


def test_faults_inside_files_are_found_before_training(tmp_path):
    make_folder(tmp_path, per_class=2)
    broken = save_image(tmp_path / "test" / "dark" / "half.jpg", (90, 90))
    broken.write_bytes(broken.read_bytes()[:-800])
    (tmp_path / "val" / "dark" / "dangling.png").symlink_to("/nonexistent.png")
    with pytest.raises(DataError, match=r"2 of 14 files.*") as caught:
        folder(tmp_path)
    assert "half.jpg" in str(caught.value)
    assert "dangling.png" in str(caught.value)


def test_linked_folders_and_other_spellings_of_splits(tmp_path):
    make_folder(tmp_path / "a", splits=("Train", "VAL"), per_class=4)
    make_folder(tmp_path / "more", classes=("x", "y"), splits=(), per_class=2)
    (tmp_path / "a" / "Train" / "dark" / "linked").symlink_to(tmp_path / "more" / "x")
    assert {k: len(v) for k, v in folder(tmp_path / "a").splits.items()} == {"train": 10, "val": 8}


def test_a_class_that_train_lacks_is_refused(tmp_path):
    make_folder(tmp_path, per_class=3)
    (tmp_path / "val" / "dark").rename(tmp_path / "val" / "drak")
    with pytest.raises(DataError, match="val has the classes drak that train lacks"):
        folder(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    path = save_image(tmp_path / "x.jpg", (90, 90))
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(DataError, match=r"x\.jpg is not a readable image \(.*truncated"):
        read_image(path, size=(12, 12))


def test_faulty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="no folder of images"):
        folder(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"needs data\.path"):
        open_data(DataConfig(source="folder"), (8, 8))
    with pytest.raises(ConfigError, match="did you mean 'folder'"):
        open_data(DataConfig(source="foldr"), (8, 8))
    with pytest.raises(ConfigError, match="does not apply"):
        open_data(DataConfig(path="x"), (8, 8))
    with pytest.raises(DataError, match="no class folders"):
        folder(tmp_path)
    make_folder(tmp_path / "outer" / "inner", per_class=2)
    with pytest.raises(DataError, match=r"one class only \(inner\).*inner the folder that you mean"):
        folder(tmp_path / "outer")
    make_folder(tmp_path / "empty", per_class=2)
    (tmp_path / "empty" / "train" / "void").mkdir()
    with pytest.raises(DataError, match="void holds no file"):
        folder(tmp_path / "empty")
    make_folder(tmp_path / "few", splits=(), per_class=2)
    with pytest.raises(DataError, match="'dark' has 2 images: too few"):
        folder(tmp_path / "few")
    make_folder(tmp_path / "foreign", classes=("dark", "other"), per_class=2)
    config = DataConfig(source="folder", path=str(tmp_path / "foreign"))
    with pytest.raises(DataError, match="classes other that are unknown to the run"):
        open_data(config, (8, 8), ("dark", "light"))
    with pytest.raises(DataError, match=r"no 'test' split, only train, val"):
        folder(make_folder(tmp_path / "two", splits=("train", "val"), per_class=2)).indices("test")


def test_worker_processes_give_the_same_batches(tmp_path):
    make_folder(tmp_path, per_class=5)
    batches = [
        [b["image"] for b in folder(tmp_path, loader__num_workers=n, batch_size=5).loader("train", shuffle_seed=3)]
        for n in (0, 2)
    ]
    assert len(batches[0]) == 2
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def _png_of_16_bits(path, array):
    """Pillow writes none."""
    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = [struct.pack(">I", len(c)) + t + c + struct.pack(">I", zlib.crc32(t + c)) for t, c in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("convert", [False, True])
def test_colours_of_16_bits_are_not_cut_to_8(tmp_path, suffix, convert):
    """Pillow keeps their upper half: 12-bit data would become all but black."""
    path = tmp_path / f"x.{suffix}"
    array = np.random.default_rng(1).integers(0, 4096, (9, 11, 3)).astype(np.uint16)
    if suffix == "png":
        _png_of_16_bits(path, array)
    else:
        tifffile.imwrite(path, array, photometric="rgb")
    with pytest.raises(DataError, match=r"more than 8 bits a band .*scale it to 8 bits"):
        read_image(path, convert=convert)


def test_a_phone_s_picture_is_its_first_image(tmp_path):
    """Phones put previews and depth behind a JPEG; that makes no animation of it."""
    images = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (40, 200)]
    images[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=images[1:])
    assert abs(read_image(tmp_path / "x.jpg").float().mean() - 40) < 2
    images[0].save(tmp_path / "x.gif", save_all=True, append_images=images[1:])
    with pytest.raises(DataError, match=r"holds 2 images .*where rgb"):
        read_image(tmp_path / "x.gif")


def test_folders_named_like_splits(tmp_path):
    """What a model learns must never be which split an image is from."""
    make_folder(tmp_path / "a", splits=("Training", "Testing"), per_class=4)
    data = folder(tmp_path / "a")
    assert data.source.classes == ("dark", "light")
    assert set(data.splits) == {"train", "val", "test"}
    make_folder(tmp_path / "vehicles", classes=("train", "boat", "plane"), splits=(), per_class=4)
    with pytest.raises(DataError, match=r"folders train, .* named like splits, beside boat; plane; rename them"):
        folder(tmp_path / "vehicles")
    make_folder(tmp_path / "b", splits=(), per_class=4)
    save_image(tmp_path / "b" / "test" / "unknown.png")
    with pytest.raises(DataError, match=r"folders test, .* named like splits, beside dark; light; rename them"):
        folder(tmp_path / "b")
