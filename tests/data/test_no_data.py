"""Pixels without a measurement: out of statistics, no bleeding when resized, filled with the mean in batches."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image

from tests.rasters import BANDS, write_classes, write_tiff
from tests.settings import data_config
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.images import decode_picture
from vitrail.data.no_data import fill_no_data, no_data_mask
from vitrail.data.rasters import open_raster, resize_tensor
from vitrail.data.value_range import ValueRule
from vitrail.errors import DataError, DataWarning

SIZE = (8, 8)


def folder(root, size=SIZE, **settings):
    return open_data(data_config(source="folder", path=str(root), bands__names=BANDS, **settings), size)


KINDS = [("int16", -9999, "-9999"), ("uint16", 65535, "65535"), ("uint16", 0, "0"), ("float32", np.nan, "nan"),
         ("float32", -9999, "-9999.0"), ("float32", np.float32(-3.4028235e38), "-3.4028234663852886e+38"),
         ("int32", -2147483648, "-2147483648"), ("uint8", 255, "255"), ("float64", -1e308, "-1e+308")]  # fmt: skip


@pytest.mark.parametrize(("kind", "mark", "text"), KINDS)
@pytest.mark.parametrize("way", ["tag", "setting", "array"])
@pytest.mark.fast_cases("array-uint16-65535-65535", "array-float32-nan-nan", "array-float64--1e+308--1e+308")
def test_marked_pixels_are_no_measurements(tmp_path, kind, mark, text, way):
    rng = np.random.default_rng(0)
    x = rng.uniform(50, 150, (12, 2, 8, 8)).astype(kind)
    lost = rng.random((12, 8, 8)) < 0.3
    x[:, 1][lost] = mark
    settings = {} if way == "tag" else {"values__nodata": text if text == "nan" else float(text)}
    if way == "array":
        np.savez(tmp_path / "x.npz", images=x, labels=np.arange(12) % 2)
        config = data_config(source="arrays", path=str(tmp_path / "x.npz"), bands__names=BANDS, scale=200, **settings)
        data = open_data(config, SIZE)
        order = list(range(12))
    else:
        stack = iter(x)
        write_classes(tmp_path / "d", lambda c: next(stack), nodata=text if way == "tag" else None, number=6)
        data = folder(tmp_path / "d", scale=200, **settings)
        order = [6 * int(key[0]) + int(key[2]) for key in data.source.keys]
    rows = data.indices("train")
    own = [order[i] for i in rows]
    band, other = data.measure().streams["image"][1], data.measure().streams["image"][0]
    valid = x[own, 1][~lost[own]].astype(float) / 200
    assert band.mean == pytest.approx(valid.mean(), abs=1e-5)
    assert band.std == pytest.approx(valid.std(), abs=1e-5)
    assert band.no_data == pytest.approx(lost[own].mean(), abs=1e-6)
    assert (other.no_data, band.cut_low, band.cut_high) == (0, 0, 0)
    assert abs(band.percentiles["50"] - np.median(valid)) < 2 / 4080 + 0.01
    mean = data.statistics()["image"][0]
    filled = open_data(data.config, SIZE, fill={"image": mean})
    (batch,) = list(filled.batches(rows, 64))
    where = torch.from_numpy(lost[own])
    assert torch.allclose(batch["image"][:, 1][where], torch.tensor(mean[1], dtype=torch.float32))
    assert not batch["image"].isnan().any()
    assert torch.equal(batch["image"], filled.batch(rows)["image"])
    assert torch.equal(batch["image"], filled.load(rows)["image"])


def test_declarations_can_be_ignored_and_added_to(tmp_path):
    x = np.full((2, 8, 8), 100, "int16")
    x[:, :2], x[:, 2] = -9999, 0
    write_classes(tmp_path / "d", lambda c: x, nodata=-9999)
    shares = {}
    for name, nodata in (("files", None), ("more", 0.0)):
        shares[name] = folder(tmp_path / "d", scale=200, values__nodata=nodata).measure().streams["image"][0].no_data
    assert shares == {"files": 2 / 8, "more": 3 / 8}
    ignored = folder(tmp_path / "d", values__range=(-10000.0, 200.0), values__nodata=())
    assert ignored.measure().streams["image"][0].no_data == 0


def test_nan_is_refused_unless_it_is_declared(tmp_path):
    x = np.random.default_rng(1).random((2, 8, 8)).astype("float32")
    x[0, 0, 0], x[1, 3, 3] = np.nan, np.inf
    write_classes(tmp_path / "d", lambda c: x)
    with pytest.raises(
        DataError, match=r"not finite \(1 NaN and 1 infinite\).*--data.values.nodata '\[nan, inf, -inf\]'"
    ):
        folder(tmp_path / "d", scale=1)
    with pytest.raises(DataError, match=r"not finite \(1 infinite\).*--data.values.nodata '\[inf, -inf\]'"):
        folder(tmp_path / "d", scale=1, values__nodata="nan")
    data = folder(tmp_path / "d", scale=1, values__nodata=("nan", "inf"))
    assert data.source.load([0])["image"].isnan().sum() == 2


def test_images_without_much_data_are_named(tmp_path):
    x = np.random.default_rng(2).integers(1, 200, (2, 8, 8)).astype("uint8")
    write_classes(tmp_path / "d", lambda c: x, nodata=0)
    empty = x.copy()
    empty[:, :5] = 0
    write_tiff(tmp_path / "d" / "1" / "2.tif", empty, nodata=0)
    with pytest.warns(
        DataWarning, match=r"1 image is mostly no data: 1/2\.tif; remove them, or check data.values.nodata"
    ):
        data = folder(tmp_path / "d")
    assert any(
        "of the values of vv, vh are no-data values, in 1 of 6 images" in note for note in data.source.value_notes
    )


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_gives_pixels_without_data_no_weight(mode):
    rng = np.random.default_rng(3)
    x = torch.full((1, 32, 32), 0.6)
    x[:, :, :13] = torch.nan
    small = resize_tensor(x, (8, 8), "squash", mode)
    assert torch.allclose(small[:, :, 4:], torch.tensor(0.6), atol=1e-5)
    known = ~small.isnan()
    assert torch.allclose(small[known], torch.tensor(0.6), atol=1e-5)
    assert small[:, :, :3].isnan().all()
    # Against the weighted mean of disjoint squares, where bilinear shrinking has no other weights.
    y = torch.from_numpy(rng.random((2, 6, 6)).astype("float32"))
    assert torch.equal(resize_tensor(y, (3, 3), "squash"), torch.nn.functional.interpolate(
        y[None], size=(3, 3), mode="bilinear", antialias=True)[0])  # fmt: skip


def test_masks_of_a_file_are_no_images(tmp_path):
    rng = np.random.default_rng(4)
    x, mask = rng.integers(1, 99, (2, 12, 10)).astype("uint16"), rng.random((12, 10)) < 0.8
    for orientation in (None, 6):
        path = write_tiff(tmp_path / "m.tif", x, mask=mask, orientation=orientation)
        raster = open_raster(path, 2)
        turned = np.rot90(x, -1, (1, 2)) if orientation else x
        assert np.array_equal(raster.values, turned)
        assert np.array_equal(raster.invalid, ~(np.rot90(mask, -1) if orientation else mask))


def test_an_alpha_band_beyond_the_named_ones_is_a_mask(tmp_path):
    x = np.random.default_rng(5).integers(1, 99, (12, 10, 3)).astype("uint16")
    x[:, :, 2] = np.arange(10) > 3
    options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unspecified", "unassalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", x, **options)
    raster = open_raster(tmp_path / "a.tif", 2)
    assert np.array_equal(raster.values, x.transpose(2, 0, 1)[:2])
    assert np.array_equal(raster.invalid, x[:, :, 2] == 0)
    whole = open_raster(tmp_path / "a.tif", 3)  # named as a band, it is one
    assert len(whole.values) == 3
    assert whole.invalid is None


def test_pictures_know_masks_alpha_and_declared_values(tmp_path):
    rng = np.random.default_rng(6)
    x = rng.integers(1, 255, (12, 10, 4)).astype("uint8")
    x[:, :, 3] = np.where(np.arange(10) > 3, 255, 0)
    Image.fromarray(x, "RGBA").save(tmp_path / "a.png")
    picture = decode_picture(tmp_path / "a.png", "rgb", convert=True)
    assert np.array_equal(picture.invalid, x[:, :, 3] == 0)
    rgb = x[:, :, :3].copy()
    rgb[:3], rgb[5, 5, 0] = 0, 0  # one band at 0 is not a mark
    tifffile.imwrite(tmp_path / "n.tif", rgb, photometric="rgb", extratags=[(42113, "s", 0, "0", True)])
    picture = decode_picture(tmp_path / "n.tif", "rgb")
    assert np.array_equal(picture.invalid, np.arange(12)[:, None].repeat(10, 1) < 3)
    assert decode_picture(tmp_path / "n.tif", "rgb", no_data=()).invalid is None
    mask = rng.random((12, 10)) < 0.7
    with tifffile.TiffWriter(tmp_path / "m.tif") as file:
        file.write(x[:, :, :3], photometric="rgb", metadata=None)
        file.write(x[::2, ::2, :3], photometric="rgb", subfiletype=1, metadata=None)
        file.write(mask, subfiletype=4, photometric="minisblack", metadata=None)
    picture = decode_picture(tmp_path / "m.tif", "rgb")
    assert np.array_equal(picture.planes.numpy(), x[:, :, :3].transpose(2, 0, 1))
    assert np.array_equal(picture.invalid, ~mask)


@pytest.mark.parametrize("small", [True, False])
def test_tables_of_images_hold_transparent_ones(tmp_path, small, monkeypatch):
    if not small:
        monkeypatch.setattr("vitrail.data.sources.embedded._SMALL", 0)
    rng = np.random.default_rng(7)
    rows = []
    for i in range(12):
        x = rng.integers(0, 255, (8, 8, 4)).astype("uint8")
        x[:, :, 3] = 255
        if i == 5:
            x[:4, :, 3] = 0
        buffer = io.BytesIO()
        Image.fromarray(x, "RGBA").save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows, "label": np.arange(12) % 2}), tmp_path / "x.parquet")
    config = DataConfig(source="parquet", path=str(tmp_path / "x.parquet"), errors={"on_band_mismatch": "convert"})
    data = open_data(config, SIZE)
    streams = data.source.load(list(range(12)))["image"]
    assert streams[5, :, :4].isnan().all()
    assert streams.isnan().sum() == 3 * 4 * 8
    assert data.source.has_no_data


def test_a_scene_is_not_refused_for_nan_outside_of_its_labels(tmp_path):
    rng = np.random.default_rng(8)
    cube = rng.random((20, 20, 3)).astype("float32")
    plane = rng.integers(1, 3, (20, 20))
    plane[0, 0], cube[0, 0] = 0, np.nan
    np.savez(tmp_path / "s.npz", cube=cube, labels=plane)
    config = DataConfig(source="arrays", path=str(tmp_path / "s.npz"), scale=1, arrays={"patch": 3, "block": 5})
    data = open_data(config, (3, 3))
    assert data.source.load([0])["image"].isnan().sum() == 3
    assert data.source.values["image"].tally.no_data.sum() == 3
    cube[4, 4] = np.nan
    np.savez(tmp_path / "s.npz", cube=cube, labels=plane)
    with pytest.raises(DataError, match=r"not finite \(3 NaN\).*--data.values.nodata 'nan'"):
        open_data(config, (3, 3))


def test_values_of_another_type_are_no_marks():
    rule = ValueRule(no_data=(-9999.0, 300.0, 0.5, float("nan")))
    assert no_data_mask(np.arange(256, dtype="uint8").reshape(1, 16, 16), rule) is None


def test_filling_without_means_takes_each_images_own():
    x = torch.rand(3, 2, 5, 5)
    x[0, 0, 0], x[1] = torch.nan, torch.nan
    filled = fill_no_data(x)
    assert torch.allclose(filled[0, 0, 0], x[0, 0, 1:].mean())
    assert torch.equal(filled[1], torch.zeros(2, 5, 5))
    assert fill_no_data(filled) is filled
