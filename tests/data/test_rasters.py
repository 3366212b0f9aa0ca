"""TIFF files of any number of bands, second files, and bands by name."""

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from tests.settings import data_config
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.rasters import open_raster, resize_tensor
from vitrail.errors import ConfigError, DataError

NAMES = ("blue", "green", "red", "nir", "swir")


def bands_of(kind, number=5, size=(10, 14), seed=0):
    rng = np.random.default_rng(seed)
    top = {"uint8": 255, "uint16": 65535, "float32": 1.0}[kind]
    return (rng.random((number, *size)) * top).astype(kind)


def make_rasters(root, kind="uint16", number=5, per_class=2, splits=("train", "val")):
    arrays = {}
    for split in splits:
        for c, name in enumerate(("a", "b")):
            for i in range(per_class):
                path = root / split / name / f"{i}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                arrays[f"{split}/{name}/{i}.tif"] = array = bands_of(kind, number, seed=hash((split, c, i)) % 10**6)
                tifffile.imwrite(path, array, photometric="minisblack", planarconfig="separate")
    return arrays


def opened(root, size=(10, 14), **settings):
    return open_data(data_config(source="folder", path=str(root), **settings), size)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("layout", ["interleaved", "planes", "pages"])
@pytest.mark.parametrize("number", [1, 2, 3, 5, 8])
@pytest.mark.fast_cases("3-planes-uint8", "3-planes-uint16", "8-pages-float32")
def test_every_layout_and_depth_is_read_as_it_was_written(tmp_path, kind, layout, number):
    array = bands_of(kind, number)
    path = tmp_path / "x.tif"
    if number == 1:
        tifffile.imwrite(path, array[0], photometric="minisblack")
    elif layout == "interleaved":
        tifffile.imwrite(path, array.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    elif layout == "planes":
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig="separate")
    else:
        tifffile.imwrite(path, array, photometric="minisblack")
    read = open_raster(path).values
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)


SCALES = [
    ("uint8", None, 255),
    ("uint16", None, 65535),
    ("uint16", 66000, 66000),
    ("float32", 1.0, 1),
    ("float32", 2.0, 2),
]


@pytest.mark.fast_cases("float32-2.0-2")
@pytest.mark.parametrize(("kind", "scale", "top"), SCALES)
def test_values_are_divided_by_the_stated_number(tmp_path, kind, scale, top):
    arrays = make_rasters(tmp_path, kind)
    data = opened(tmp_path, bands__names=NAMES, scale=scale)
    rows = list(range(len(data.source)))
    images = data.source.load(rows)["image"]
    wanted = np.stack([arrays[data.source.keys[i]] for i in rows]).astype(np.float64) / top
    assert np.allclose(images.numpy(), wanted.clip(0, 1), atol=1e-6)


def test_floats_ask_for_a_scale_and_finite_values(tmp_path):
    make_rasters(tmp_path, "float32")
    with pytest.raises(DataError, match=r"whose range is unknown; give data\.scale"):
        opened(tmp_path, bands__names=NAMES)
    array = bands_of("float32")
    array[2, 3, 4] = np.nan
    tifffile.imwrite(tmp_path / "train" / "a" / "0.tif", array, photometric="minisblack", planarconfig="separate")
    with pytest.raises(DataError, match=r"train/a/0\.tif holds values that are not finite"):
        opened(tmp_path, bands__names=NAMES, scale=1.0)


def test_another_number_of_bands_is_named(tmp_path):
    make_rasters(tmp_path)
    odd = tmp_path / "val" / "b" / "1.tif"
    tifffile.imwrite(odd, bands_of("uint16", 4), photometric="minisblack", planarconfig="separate")
    with pytest.raises(DataError, match=r"1 of 8 images has other.*val/b/1\.tif has 4 bands where 5 are wanted"):
        opened(tmp_path, bands__names=NAMES)
    data = opened(tmp_path, bands__names=NAMES, errors__on_unreadable="skip")
    [(key, why)] = data.source.left_out
    assert key == "val/b/1.tif"
    assert "has 4 bands where 5 are wanted" in why


def test_unreadable_rasters_are_told_or_left_out(tmp_path):
    make_rasters(tmp_path)
    broken = tmp_path / "train" / "a" / "1.tif"
    broken.write_bytes(broken.read_bytes()[:300])
    (tmp_path / "val" / "a" / "0.tif").write_bytes(b"II*\0 nothing")
    with pytest.raises(DataError, match=r"2 of 8 files.*train/a/1\.tif.*val/a/0\.tif"):
        opened(tmp_path, bands__names=NAMES)
    data = opened(tmp_path, bands__names=NAMES, errors__on_unreadable="skip")
    assert sorted(key for key, _ in data.source.left_out) == ["train/a/1.tif", "val/a/0.tif"]
    assert len(data.source) == 6


def test_unnamed_rasters_say_how_they_are_read(tmp_path):
    make_rasters(tmp_path)
    with pytest.raises(DataError, match=r"data.bands.names"):
        opened(tmp_path)


def test_bands_are_chosen_and_ordered_by_name(tmp_path):
    arrays = make_rasters(tmp_path)
    settings = {"bands__names": NAMES, "bands__wavelengths": (490, 560, 665, 865, 1610)}
    data = opened(tmp_path, **settings, bands__use=("red", "green", "blue"), spectral__use=("*",))
    assert data.source.bands == {"image": ("red", "green", "blue"), "spectral": ("nir", "swir")}
    assert data.source.wavelengths == {"image": (665, 560, 490), "spectral": (865, 1610)}
    streams = data.source.load([3])
    array = arrays[data.source.keys[3]] / 65535
    assert np.allclose(streams["image"][0], array[[2, 1, 0]], atol=1e-6)
    assert np.allclose(streams["spectral"][0], array[[3, 4]], atol=1e-6)
    alone = opened(tmp_path, **settings, bands__use=("swir", "red"))
    assert alone.source.bands == {"image": ("swir", "red")}
    rest = opened(tmp_path, **settings, spectral__use=("nir", "s*"))
    assert rest.source.bands == {"image": ("blue", "green", "red"), "spectral": ("nir", "swir")}
    for wrong, message in (
        ({"bands__use": ("rde",)}, "no band 'rde'.*'red'"),
        ({"bands__use": ("x*",)}, "no band is left that"),
    ):
        with pytest.raises(ConfigError, match=message):
            opened(tmp_path, **settings, **wrong)
    with pytest.raises(ConfigError, match="no band is left for one"):
        opened(tmp_path, **settings, spectral__use=("*",), bands__use=None)


def make_pairs(tmp_path):
    rasters = make_rasters(tmp_path / "second", number=2)
    for i, key in enumerate(rasters):
        path = (tmp_path / "photos" / key).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((10, 14, 3), i, np.uint8)).save(path)
    return rasters


def test_pairs_by_stem(tmp_path):
    rasters = make_pairs(tmp_path)
    settings = {"spectral__path": str(tmp_path / "second"), "spectral__names": ("nir", "swir")}
    data = opened(tmp_path / "photos", **settings)
    assert data.source.bands == {"image": ("red", "green", "blue"), "spectral": ("nir", "swir")}
    order = list(rasters)
    for i, key in enumerate(data.source.keys):
        other = key.replace(".png", ".tif")
        streams = data.source.load([i])
        assert np.allclose(streams["spectral"][0], rasters[other] / 65535, atol=1e-6)
        assert (streams["image"] * 255).round().unique().tolist() == [order.index(other)]
    batch = next(iter(data.loader("train", shuffle_seed=1)))
    assert batch["image"].shape[1] == 3
    assert batch["spectral"].shape[1] == 2
    mixed = opened(tmp_path / "photos", **settings, bands__use=("nir", "green"), spectral__use=("swir",))
    assert mixed.source.load([2])["image"].shape == (1, 2, 10, 14)
    (tmp_path / "second" / "train" / "a" / "1.tif").unlink()
    with pytest.raises(DataError, match=r"1 of 8 images has no second file.*train/a/1\.png"):
        opened(tmp_path / "photos", **settings)
    (tmp_path / "second" / "train" / "a" / "1.tif").write_bytes(b"")
    (tmp_path / "second" / "train" / "a" / "1.tiff").write_bytes(b"")
    with pytest.raises(DataError, match="several second files of the same stem"):
        opened(tmp_path / "photos", **settings)
    for wrong, message in (
        ({"spectral__path": str(tmp_path)}, "needs data.spectral.names"),
        ({"spectral__names": ("nir",)}, "needs data.spectral.path"),
    ):
        with pytest.raises(ConfigError, match=message):
            opened(tmp_path / "photos", **wrong)


def test_pairs_by_table(tmp_path):
    rasters = make_pairs(tmp_path)
    rows = [
        {"path": f"photos/{k[:-4]}.png", "spectral": f"second/{k}", "label": k.split("/")[1], "split": k.split("/")[0]}
        for k in reversed(rasters)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    config = DataConfig(source="table", path=str(tmp_path / "t.csv"), spectral={"names": ("nir", "swir")})
    data = open_data(config, (10, 14))
    for i, key in enumerate(reversed(rasters)):
        assert np.allclose(data.source.load([i])["spectral"][0], rasters[key] / 65535, atol=1e-6)
    with pytest.raises(DataError, match=r"lists second files.*data.spectral.names"):
        open_data(DataConfig(source="table", path=str(tmp_path / "t.csv")), (10, 14))
    rows[3]["spectral"] = "second/none.tif"
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=r"1 of 8 images .* does not exist.*none\.tif"):
        open_data(config, (10, 14))


@pytest.mark.parametrize("how", ["crop", "squash"])
def test_resizing_a_ramp_keeps_it_a_ramp(how):
    ramp = torch.linspace(0, 1, 40).expand(2, 30, 40)
    small = resize_tensor(ramp, (10, 10), how)
    assert small.shape == (2, 10, 10)
    steps = small[0, 5].diff()
    assert torch.allclose(steps[1:-1], torch.full((7,), (3 if how == "crop" else 4) / 39), atol=1e-3)
    assert abs(small.mean() - 0.5) < 1e-3


def test_the_config_says_what_does_not_fit():
    for settings, message in (
        ({"bands__wavelengths": (1.0,)}, "data.bands.names must be given"),
        ({"bands__names": ("a", "b"), "bands__wavelengths": (1.0,)}, "2 numbers, one per band"),
        ({"bands__names": ("a", "a")}, "different names"),
        ({"bands__use": ()}, "at least one name"),
        ({"scale": 0.0}, "above 0"),
        ({"splitting__fold": 5}, "from 0 to 4"),
        ({"splitting__group": "x", "split": "stratified"}, "grouped where data.splitting.group"),
    ):
        with pytest.raises(ConfigError, match=message):
            data_config(**settings)


def test_a_scale_that_is_missing_is_told_once_and_no_file_left_out(tmp_path):
    make_rasters(tmp_path, "float32")
    with pytest.raises(
        DataError, match=r"0\.tif holds float32 values \(as 7 others do\), whose .*give data.scale"
    ) as told:
        opened(tmp_path, bands__names=NAMES, errors__on_unreadable="skip")
    assert str(told.value).count("data.scale the value") == 1


def test_damaged_rasters_are_told_by_the_error_alone(tmp_path, capfd):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, bands_of("uint16"), photometric="minisblack")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match="is not a readable TIFF"):
        open_raster(path)
    assert capfd.readouterr().err == ""
