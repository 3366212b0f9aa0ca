"""A JPEG that is decoded at a reduced size and resized has the pixels of one that is decoded in full."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from tests.settings import data_config
from vitrail.data.band_files import gather
from vitrail.data.file_reader import file_readers
from vitrail.data.images import decode_picture, read_image, resize_picture

SIZES = [(375, 500), (500, 333), (401, 402), (800, 1067), (129, 600)]
ORIENTATIONS = range(1, 9)
# Mean levels; drafts to the size itself, with rounded crops, are 1.5 to 13 off here.
LIMIT = 1.2


def photograph(file, size, orientation=1, seed=0, mode="RGB"):
    """Write a JPEG with edges, slopes and soft noise at all scales, as a camera's."""
    rng = np.random.default_rng([*size, seed])
    height, width = size
    total = np.zeros((height, width, 3))
    for scale in (8, 16, 64):
        small = rng.integers(0, 256, (-(-height // scale) + 1, -(-width // scale) + 1, 3), dtype=np.uint8)
        total += np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    image = Image.fromarray((total / 3).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7)).convert(mode)
    exif = image.getexif()
    exif[274] = orientation
    image.save(file, quality=90, exif=exif)
    return file


def distance(found, wanted):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype == torch.uint8
    return float((found.int() - wanted.int()).abs().float().mean())


@pytest.mark.fast_cases("target1-crop")
@pytest.mark.parametrize("how", ["crop", "squash"])
@pytest.mark.parametrize("target", [(40, 40), (32, 56), (49, 31)])
def test_pixels_are_those_of_a_full_decoding(tmp_path, target, how):
    reduced = 0
    for size in SIZES:
        file = photograph(tmp_path / "photo.jpg", size)
        full = read_image(file)
        wanted = resize_picture(full, target, how)
        assert distance(read_image(file, size=target, resize=how), wanted) < LIMIT
        reduced += decode_picture(file, size=target).planes.shape != full.shape
    assert reduced >= 2


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.fast_cases("1", "5")
def test_turned_photographs_keep_their_frame(tmp_path, orientation):
    # At a half, both sides end with half a pixel; which side that is depends on the turn.
    file = photograph(tmp_path / "photo.jpg", (131, 201), orientation)
    full = read_image(file)
    assert full.shape[1:] == ((131, 201) if orientation < 5 else (201, 131))
    for target, how in (((16, 16), "crop"), ((14, 20), "crop"), ((20, 14), "squash")):
        picture = decode_picture(file, size=target)
        assert picture.reduced is not None
        assert picture.size == full.shape[1:]
        found = resize_picture(picture.planes, target, how, picture.reduced)
        assert distance(found, resize_picture(full, target, how)) < LIMIT


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_box_between_two_pixels_is_not_rounded(tmp_path, scale):
    file = photograph(tmp_path / "photo.jpg", (scale * 70 + 1, scale * 90 + 3), mode="L")
    target = (20, 20)
    picture = decode_picture(file, "gray", size=target)
    assert picture.reduced.scale == scale
    wanted = resize_picture(read_image(file, "gray"), target, "crop")
    exact = distance(resize_picture(picture.planes, target, "crop", picture.reduced), wanted)
    assert exact < LIMIT
    assert exact < distance(resize_picture(picture.planes, target, "crop"), wanted) or scale == 2


def test_a_large_photograph_is_not_decoded_in_full(tmp_path):
    file = photograph(tmp_path / "photo.jpg", (600, 800))
    assert decode_picture(file, size=(32, 32)).planes.shape[1:] == (150, 200)
    assert decode_picture(file, size=(32, 32)).pixels == 600 * 800
    assert decode_picture(file, size=(80, 80)).planes.shape[1:] == (300, 400)
    assert decode_picture(file).planes.shape[1:] == (600, 800)


@pytest.mark.parametrize("settings", [{"scale": 200.0}, {"values__nodata": 0.0}])
def test_pictures_with_a_range_or_no_data_are_decoded_in_full(tmp_path, settings):
    file = photograph(tmp_path / "photo.jpg", (375, 500))
    reader = file_readers(data_config(source="folder", path=str(tmp_path), **settings), (32, 32))["image"]
    assert reader._picture(file, "photo", (32, 32)).reduced is None


def test_bands_in_files_of_their_own_are_decoded_in_full(tmp_path):
    for name in ("red", "nir"):
        photograph(tmp_path / f"a_{name}.jpg", (375, 500), seed=len(name), mode="L")
    config = data_config(
        source="folder", path=str(tmp_path), bands__names=("red", "nir"), bands__files="_(?P<band>red|nir)"
    )
    reader = file_readers(config, (32, 32))["image"]
    stack, *_ = gather(reader.band_pattern, reader.bands, sorted(tmp_path.glob("*.jpg")))
    reader = dataclasses.replace(reader, stack=stack)
    assert reader._picture(tmp_path / "a_red.jpg", "a", (32, 32)).planes.shape == (2, 375, 500)
