"""Forms of TIFF files: each is read, or gives one line and can be skipped."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.rasters import BANDS, write_classes, write_tiff
from tests.settings import data_config
from vitrail.data import open_data
from vitrail.data.images import image_size, read_image
from vitrail.data.rasters import open_raster
from vitrail.errors import DataError

RNG = np.random.default_rng(0)


def as_compressed(path, code):
    """The same file, which says that its pixels are compressed in another way."""
    raw = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offsets = [page.tags["Compression"].valueoffset for page in file.pages]
    for offset in offsets:
        raw[offset : offset + 2] = code.to_bytes(2, "little")
    path.write_bytes(raw)


def as_many_sizes(path):
    with tifffile.TiffWriter(path) as file:
        file.write(RNG.integers(0, 99, (16, 16)).astype("uint16"), photometric="minisblack", metadata=None)
        file.write(RNG.integers(0, 99, (8, 9)).astype("uint16"), photometric="minisblack", metadata=None)


FAULTS = {
    **{str(code): lambda path, code=code: as_compressed(path, code) for code in
       (2, 3, 5, 6, 7, 99, 32773, 32946, 34712, 34887, 34892, 34925, 50000, 50001, 50002, 50003, 65000, 65535)},
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "header": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "sizes": as_many_sizes,
    "no pages": lambda path: path.write_bytes(b"II*\0\0\0\0\0"),
    "metadata": lambda path: write_tiff(path, RNG.random((2, 16, 16)).astype("float32"), scale=["x", "y"]),
    "nodata": lambda path: write_tiff(path, RNG.random((2, 16, 16)).astype("float32"), nodata="nothing"),
    "too large": lambda path: write_tiff(path, RNG.integers(0, 99, (2, 40, 40)).astype("uint16")),
    "mask": lambda path: write_tiff(path, np.ones((2, 16, 16), "uint16"), mask=np.ones((8, 8), bool)),
}  # fmt: skip


@pytest.mark.fast_cases("2", "34887", "34892", "50000", "mask", "metadata", "nodata", "sizes")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line_and_can_be_skipped(tmp_path, fault):
    write_classes(tmp_path / "d", lambda c: RNG.integers(0, 99, (2, 16, 16)).astype("uint16"), number=4)
    FAULTS[fault](tmp_path / "d" / "0" / "0.tif")
    config = {
        "source": "folder",
        "path": str(tmp_path / "d"),
        "bands__names": BANDS,
        "scale": 100,
        "images__max_pixels": 1000,
    }
    with pytest.raises(DataError, match=r"1 of 8 files.*0/0\.tif") as told:
        open_data(data_config(**config), (8, 8))
    assert "\n" not in str(told.value)
    if fault in ("5", "7", "50000", "34887", "50001"):
        assert "pip install 'vitrail[rasters]'" in str(told.value)
    data = open_data(data_config(**config, errors__on_unreadable="skip"), (8, 8))
    assert [key for key, _ in data.source.left_out] == ["0/0.tif"]
    assert len(data.source) == 7


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.fast_cases("None-7", "zlib-1")
def test_orientation_is_that_of_pictures(tmp_path, orientation, compression):
    x = RNG.integers(0, 255, (9, 5, 3)).astype("uint8")
    Image.fromarray(x).save(tmp_path / "x.png", exif=_orientation(orientation))
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "x.tif", x, photometric="rgb", extratags=tag, compression=compression)
    seen = read_image(tmp_path / "x.png").numpy()
    assert np.array_equal(open_raster(tmp_path / "x.tif").values, seen)
    assert np.array_equal(read_image(tmp_path / "x.tif").numpy(), seen)
    assert image_size(tmp_path / "x.tif") == image_size(tmp_path / "x.png") == seen.shape[1:]


def _orientation(value):
    exif = Image.Exif()
    exif[274] = value
    return exif


@pytest.mark.parametrize("shape", [(1, 1, 50), (1, 50, 1), (3, 1, 50), (3, 50, 1), (1, 1, 1), (4, 1, 1), (2, 1, 2)])
@pytest.mark.parametrize("form", ["planes", "interleaved", "pages"])
@pytest.mark.parametrize("described", [True, False])
@pytest.mark.fast_cases("True-planes-shape2", "False-planes-shape0", "False-pages-shape6")
def test_thin_images_keep_their_shape(tmp_path, shape, form, described):
    x = RNG.integers(0, 999, shape).astype("uint16")
    options = {"photometric": "minisblack", **({} if described else {"metadata": None})}
    path = tmp_path / "x.tif"
    if form == "pages":
        with tifffile.TiffWriter(path) as file:
            for band in x:
                file.write(band, contiguous=False, photometric="minisblack", metadata=None)
    elif form == "interleaved" and len(x) > 1:
        tifffile.imwrite(path, x.transpose(1, 2, 0), planarconfig="contig", **options)
    elif len(x) > 1:
        tifffile.imwrite(path, x, planarconfig="separate", **options)
    else:
        tifffile.imwrite(path, x[0], **options)
    assert np.array_equal(open_raster(path).values, x)


def test_stacks_of_imagej_are_bands(tmp_path):
    x = RNG.integers(0, 999, (6, 7, 5)).astype("uint16")
    tifffile.imwrite(tmp_path / "x.tif", x, imagej=True, metadata={"axes": "ZYX"})
    assert np.array_equal(open_raster(tmp_path / "x.tif").values, x)


def pyramid(path, shape=(64, 48), levels=3, mask=None):
    x = RNG.integers(0, 999, shape).astype("uint16")
    with tifffile.TiffWriter(path) as file:
        file.write(x, photometric="minisblack", metadata=None)
        if mask is not None:
            file.write(mask, subfiletype=4, photometric="minisblack", metadata=None)
        for level in range(1, levels + 1):
            file.write(x[:: 2**level, :: 2**level], photometric="minisblack", subfiletype=1, metadata=None)
            if mask is not None:
                small = mask[:: 2**level, :: 2**level]
                file.write(small, subfiletype=5, photometric="minisblack", metadata=None)
    return x


@pytest.mark.parametrize("masked", [True, False])
def test_overviews_are_no_images_and_stand_in_for_large_ones(tmp_path, masked):
    mask = RNG.random((64, 48)) < 0.8 if masked else None
    path = tmp_path / "x.tif"
    x = pyramid(path, mask=mask)
    whole = open_raster(path)
    assert np.array_equal(whole.values[0], x)
    assert (whole.invalid is None) if mask is None else np.array_equal(whole.invalid, ~mask)
    for wanted, step in (((16, 12), 4), ((17, 12), 2), ((60, 40), 2), ((2, 2), 8)):
        small = open_raster(path, max_pixels=1000, size=wanted)
        assert np.array_equal(small.values[0], x[::step, ::step])
        assert mask is None or np.array_equal(small.invalid, ~mask[::step, ::step])
    with pytest.raises(
        DataError, match=r"64 x 48 = 3072 pixels, more than data.images.max_pixels 10; .*raise data.images.max_pixels"
    ):
        open_raster(path, max_pixels=10)


@pytest.mark.parametrize(
    "options", [{"rowsperstrip": 5}, {"tile": (16, 16)}, {"tile": (16, 32), "compression": "zlib"}]
)
@pytest.mark.parametrize("form", ["planes", "interleaved", "pages"])
@pytest.mark.fast_cases("interleaved-options0", "pages-options2")
def test_every_nth_pixel_of_large_rasters_is_read_by_strips(tmp_path, options, form):
    x = RNG.integers(1, 999, (3, 60, 50)).astype("uint16")
    mask = RNG.random((60, 50)) < 0.8
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        if form == "pages":
            for band in x:
                file.write(band, contiguous=False, photometric="minisblack", metadata=None, **options)
        else:
            planar = {"planes": ("separate", x), "interleaved": ("contig", x.transpose(1, 2, 0))}[form]
            file.write(planar[1], planarconfig=planar[0], photometric="minisblack", metadata=None, **options)
        file.write(mask, subfiletype=4, photometric="minisblack", metadata=None, rowsperstrip=8)
    for most, step in ((2999, 2), (750, 2), (600, 3)):
        small = open_raster(tmp_path / "x.tif", max_pixels=most)
        assert np.array_equal(small.values, x[:, ::step, ::step])
        assert np.array_equal(small.invalid, ~mask[::step, ::step])
    with pytest.raises(DataError, match=r"60 x 50 = 3000 pixels, more than data.images.max_pixels 100"):
        open_raster(tmp_path / "x.tif", max_pixels=100)


def test_large_pictures_are_reduced_where_their_format_allows_it(tmp_path):
    x = np.kron(RNG.integers(0, 255, (20, 16, 3)), np.ones((20, 20, 1))).astype("uint8")
    Image.fromarray(x).save(tmp_path / "x.jpg", quality=95)
    Image.fromarray(x).save(tmp_path / "x.png")
    whole = read_image(tmp_path / "x.jpg", size=(20, 16)).float()
    for most in (400 * 320, 50_000, 10_000, 2_000):
        small = read_image(tmp_path / "x.jpg", size=(20, 16), max_pixels=most).float()
        assert (small - whole).abs().mean() < 12
    for name, most in (("x.jpg", 500), ("x.png", 400 * 320 - 1)):
        with pytest.raises(DataError, match=rf"400 x 320 = 128000 pixels, more than data.images.max_pixels {most}"):
            read_image(tmp_path / name, max_pixels=most)


def test_a_raised_limit_admits_what_pillow_alone_would_not(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.fromarray(np.zeros((60, 60), "uint8")).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="could be decompression bomb"):
        read_image(tmp_path / "x.png", "gray")
    assert read_image(tmp_path / "x.png", "gray", max_pixels=3600).shape == (1, 60, 60)
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.fast_cases("1-False", "6-True")
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_mask_beside_an_image_takes_its_pixels_out(tmp_path, named, orientation):
    """As GDAL writes it: NAME.tif.msk, 0 where there is no data."""
    for label in "xy":
        for i in range(3):
            path = tmp_path / label / f"{i}.tif"
            path.parent.mkdir(exist_ok=True)
            image, mask = RNG.integers(50, 200, (16, 16, 3)).astype("uint8"), np.full((16, 16), 255, "uint8")
            image[:4], mask[:4] = 0, 0
            turned = [(274, "H", 1, orientation, True)]
            tifffile.imwrite(path, image, photometric="rgb", metadata=None, extratags=turned)
            tifffile.imwrite(f"{path}.msk", mask, photometric="minisblack", metadata=None)
    names = {"bands__names": ("r", "g", "b")} if named else {}
    data = open_data(data_config(source="folder", path=str(tmp_path), **names), (16, 16))
    image = data.source.load([0])["image"][0]
    assert image.isnan().float().mean() == 0.25
    assert image[~image.isnan()].min() >= 50 / 255
    assert image[:, :4].isnan().all() if orientation == 1 else image[:, :, -4:].isnan().all()
    (tmp_path / "x" / "0.tif.msk").write_bytes(b"II*\0")
    with pytest.raises(DataError, match=r"1 of 6 files .*0\.tif\.msk is not a readable TIFF"):
        open_data(data_config(source="folder", path=str(tmp_path), **names), (16, 16))
