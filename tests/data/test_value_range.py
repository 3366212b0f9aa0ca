"""From stored values to 0..1: ranges that are known, stated, decided by type, or asked for."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from tests.images import embed_images, make_folder
from tests.rasters import BANDS, write_classes, write_tiff
from tests.settings import data_config
from tests.tiers import fast_first
from vitrail.config import DataConfig
from vitrail.config.load import dump_recipe, load_recipe
from vitrail.data import open_data
from vitrail.data.statistics import read_statistics, write_statistics
from vitrail.errors import ConfigError, DataError, DataWarning
from vitrail.models.registry import find_family

SIZE = (8, 8)


def folder(root, **settings):
    return open_data(data_config(source="folder", path=str(root), bands__names=BANDS, **settings), SIZE)


def arrays(path, images, labels=None, **settings):
    labels = np.arange(len(images)) % 2 if labels is None else labels
    np.savez(path, images=images, labels=labels)
    return open_data(data_config(source="arrays", path=str(path), **settings), SIZE)


def values_of(data):
    return np.concatenate([data.source.load([i])["image"].numpy() for i in range(len(data.source))])


@pytest.mark.parametrize("kind", ["uint32", "int32", "uint64", "int64", "float32", "float64", "int8"])
@pytest.mark.parametrize("source", ["folder", "arrays"])
@pytest.mark.fast_cases("folder-float64", "arrays-int32", "arrays-float32")
def test_a_range_that_no_one_knows_is_asked_for(tmp_path, kind, source):
    x = np.random.default_rng(0).integers(0, 120, (10, 2, 8, 8)).astype(kind)
    wanted = rf"{kind} values.*whose range is unknown; give data\.scale.*--data\.scale 1[12]0"
    stack = iter(np.concatenate([x, x]))
    write_classes(tmp_path / "d", lambda c: next(stack))
    opened = {"folder": lambda: folder(tmp_path / "d"), "arrays": lambda: arrays(tmp_path / "x.npz", x)}[source]
    with pytest.raises(DataError, match=wanted):
        opened()
    x[0, 0, 0, 0] = 120
    data = arrays(tmp_path / "x.npz", x, scale=240)
    assert np.allclose(values_of(data), x / 240, atol=1e-6)


@pytest.mark.parametrize(
    ("first", "second"),
    fast_first([("int16", "uint16"), ("uint8", "uint16"), ("float32", "uint16"), ("int16", "int32")], 2),
)
def test_files_of_several_types_ask_for_a_scale(tmp_path, first, second):
    kinds = first, second
    rng = np.random.default_rng(1)
    draw = {c: rng.integers(0, 100, (2, 8, 8)).astype(kind) for c, kind in enumerate(kinds)}
    write_classes(tmp_path / "d", lambda c: draw[c])
    with pytest.raises(
        DataError, match=rf"of several types: {kinds[0]} \(3, first .*{kinds[1]} \(3, first .*--data\.scale"
    ):
        folder(tmp_path / "d")
    data = folder(tmp_path / "d", scale=100)
    for i, key in enumerate(data.source.keys):
        assert np.allclose(data.source.load([i])["image"][0], draw[int(key[0])] / 100, atol=1e-6)


@pytest.mark.parametrize(("kind", "top"), [("uint16", 65535), ("int16", 32767)])
def test_sixteen_bits_of_one_type_use_the_largest_of_it(tmp_path, kind, top):
    rng = np.random.default_rng(2)
    write_classes(tmp_path / "d", lambda c: rng.integers(0, 9000, (2, 8, 8)).astype(kind))
    data = folder(tmp_path / "d")
    (note,) = data.source.value_notes
    assert f"{top}, the largest {kind}, becomes 1" in note
    assert "fill " in note
    assert 0.8 * 9000 / top < values_of(data).max() <= 9000 / top
    # Values that were not stored to fill the type.
    write_classes(tmp_path / "low", lambda c: rng.integers(0, 0.009 * top, (2, 8, 8)).astype(kind))
    with pytest.raises(DataError, match=rf"fill 0\.\d+% of the range of {kind}.*give --data\.scale \d+"):
        folder(tmp_path / "low")


STATED = [
    ({"scale": 30.0, "values__offset": -25.0}, [(-25, 5), (-25, 5)]),
    ({"scale": (30.0, 20.0), "values__offset": -25.0}, [(-25, 5), (-25, -5)]),
    ({"scale": 30.0, "values__offset": (-25.0, -20.0)}, [(-25, 5), (-20, 10)]),
    ({"values__range": (-25.0, 5.0)}, [(-25, 5), (-25, 5)]),
    ({"values__range": ((-25.0, 5.0), (-30.0, 0.0))}, [(-25, 5), (-30, 0)]),
    ({"scale": 30.0}, [(0, 30), (0, 30)]),
]


@pytest.mark.parametrize(("settings", "limits"), STATED)
@pytest.mark.parametrize("source", ["folder", "arrays"])
@pytest.mark.fast_cases("folder-settings2-limits2", "folder-settings5-limits5", "arrays-settings3-limits3")
def test_stated_ranges_band_by_band(tmp_path, settings, limits, source):
    rng = np.random.default_rng(3)
    low = 0 if settings == {"scale": 30.0} else -22
    x = rng.uniform(low, low + 17, (6, 2, 8, 8)).astype("float32")
    if source == "folder":
        stack = iter(x)
        data = folder(write_classes(tmp_path / "d", lambda c: next(stack)), **settings)
    else:
        data = arrays(tmp_path / "x.npz", x, bands__names=BANDS, arrays__layout="channels_first", **settings)
    wanted = np.stack([(x[:, b] - lo) / (hi - lo) for b, (lo, hi) in enumerate(limits)], 1)
    assert np.allclose(values_of(data), wanted.clip(0, 1), atol=1e-6)


def test_values_outside_of_the_range_are_counted(tmp_path):
    rng = np.random.default_rng(4)
    x = rng.normal(0.5, 0.35, (40, 2, 8, 8)).astype("float32")
    x[:, 1] = x[:, 1].clip(0, 1)
    with pytest.warns(
        DataWarning, match=r"data\.scale: values of vv \(\d.\d% below, \d.\d% above\).*--data.values.range"
    ):
        data = arrays(tmp_path / "x.npz", x, bands__names=BANDS, scale=1)
    rows = data.indices("train")
    band, clean = data.measure().streams["image"]
    assert band.cut_low == pytest.approx((x[rows, 0] < 0).mean(), abs=1e-6)
    assert band.cut_high == pytest.approx((x[rows, 0] > 1).mean(), abs=1e-6)
    assert (clean.cut_low, clean.cut_high) == (0, 0)
    with pytest.raises(
        DataError, match=r"data\.scale: most values of vv \(\d.*above\).* would be cut off; --data\.scale 1"
    ):
        arrays(tmp_path / "x.npz", x + np.array([9, 0])[:, None, None].astype("float32"), bands__names=BANDS, scale=1)
    with pytest.raises(DataError, match=r"data\.scale: most values of vv \(100\.0% below.*--data.values.range '\[-\d"):
        arrays(tmp_path / "x.npz", x - 30, bands__names=BANDS, scale=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrays(tmp_path / "x.npz", x, bands__names=BANDS, values__range=(-2.0, 3.0))


def test_patches_of_a_scene_count_their_own_pixels(tmp_path):
    rng = np.random.default_rng(5)
    cube = rng.uniform(0, 1, (20, 24, 3)).astype("float32")
    cube[3:9, 5:20, 1] = 1.5
    plane = rng.integers(1, 3, (20, 24))
    np.savez(tmp_path / "s.npz", cube=cube, labels=plane)
    with pytest.warns(DataWarning, match=r"band_2"):
        data = open_data(
            DataConfig(source="arrays", path=str(tmp_path / "s.npz"), scale=1, arrays={"patch": 5, "block": 6}), (5, 5)
        )
    tally = data.source.values["image"].tally
    for i, (row, column) in enumerate(data.source.scene.corners):
        wanted = (cube[row : row + 5, column : column + 5] > 1).sum((0, 1))
        assert tally.above[i].tolist() == wanted.tolist()
    assert set(tally.pixels.ravel().tolist()) == {25}


@pytest.mark.fast_cases("scale2-offset2")
@pytest.mark.parametrize(("scale", "offset"), [(0.0001, 0.0), (0.0001, -0.1), ((0.0001, 0.00005), (0.0, 0.2))])
def test_a_files_own_scale_and_offset_come_first(tmp_path, scale, offset):
    rng = np.random.default_rng(6)
    x = rng.integers(1200, 8000, (6, 2, 8, 8)).astype("uint16")
    stack = iter(x)
    write_classes(tmp_path / "d", lambda c: next(stack), scale=scale, offset=offset)
    physical = x * np.broadcast_to(scale, 2)[:, None, None] + np.broadcast_to(offset, 2)[:, None, None]
    data = folder(tmp_path / "d")
    assert "own scale and offset" in data.source.value_notes[0]
    assert np.allclose(values_of(data), physical.clip(0, 1), atol=1e-6)
    assert np.allclose(values_of(folder(tmp_path / "d", values__range=(-0.5, 1.5))), (physical + 0.5) / 2, atol=1e-6)
    with pytest.raises(
        DataError, match=r"data\.scale: .*once its own scale and offset are applied.*0\.0\d% of the stated"
    ):
        folder(tmp_path / "d", scale=10000)


def test_some_files_with_a_scale_of_their_own_and_some_without(tmp_path):
    x = np.random.default_rng(7).integers(1000, 8000, (2, 8, 8)).astype("uint16")
    write_classes(tmp_path / "d", lambda c: x, scale=0.0001)
    write_tiff(tmp_path / "d" / "0" / "0.tif", x)
    with pytest.raises(DataError, match=r"several types: uint16 \(1, first .*0\.tif\), physical \(5, first"):
        folder(tmp_path / "d")
    write_tiff(tmp_path / "d" / "0" / "0.tif", (x * 0.0001).astype("float32"))
    assert np.allclose(values_of(folder(tmp_path / "d", scale=1)), x * 0.0001, atol=1e-6)


def test_decibels_of_a_files_own_scale_are_asked_about(tmp_path):
    x = np.random.default_rng(8).integers(0, 2000, (2, 8, 8)).astype("uint16")
    write_classes(tmp_path / "d", lambda c: x, scale=0.01, offset=-25)
    with pytest.raises(DataError, match=r"most values of vv \(100\.0% below.*--data.values.range '\[-25, -5"):
        folder(tmp_path / "d")


@pytest.mark.parametrize("kind", fast_first(["uint16", "uint8", "int16"], 1))
def test_a_recorded_type_is_not_decided_anew(tmp_path, kind):
    x = np.random.default_rng(9).integers(20, 120, (2, 8, 8))
    write_classes(tmp_path / "d", lambda c: x.astype(kind))
    data = folder(tmp_path / "d", values__value_type=kind)
    assert data.source.values["image"].limits.kind == kind
    other = {"uint8": "uint16", "uint16": "int16", "int16": "uint8"}[kind]
    with pytest.raises(DataError, match=rf"0\.tif holds {kind} values and the run was trained on {other}"):
        folder(tmp_path / "d", values__value_type=other)
    with pytest.raises(DataError, match=rf"holds {kind} values and the run was trained on physical"):
        folder(tmp_path / "d", values__value_type="physical")


def test_a_stated_range_holds_for_pictures_alone_too(tmp_path):
    rng = np.random.default_rng(10)
    for i in range(8):
        path = tmp_path / "d" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 16, (8, 8)).astype("uint8")).save(path)
    data = open_data(DataConfig(source="folder", path=str(tmp_path / "d"), color="gray", scale=15), SIZE)
    x = np.array(Image.open(tmp_path / "d" / data.source.keys[0]))
    assert np.allclose(data.source.load([0])["image"][0, 0], x / 15, atol=1e-6)


def test_tables_of_images_follow_the_same_rule(tmp_path):
    embed_images(tmp_path / "x.parquet", np.arange(20) % 2 + 1)
    plain = open_data(DataConfig(source="parquet", path=str(tmp_path / "x.parquet")), SIZE)
    stated = open_data(
        DataConfig(source="parquet", path=str(tmp_path / "x.parquet"), values={"range": (0.0, 510.0)}), SIZE
    )
    assert plain.source.read([0])["image"].dtype.is_floating_point is False
    assert np.allclose(values_of(stated), values_of(plain) / 2, atol=2 / 255)


def test_a_constant_band_is_named_unless_allowed(tmp_path):
    rng = np.random.default_rng(11)
    write_classes(
        tmp_path / "d", lambda c: np.stack([np.full((8, 8), 7), rng.integers(0, 200, (8, 8))]).astype("uint8")
    )
    data = folder(tmp_path / "d")
    with pytest.raises(DataError, match=r"one value throughout in vv .*--data.bands.allow_constant '\[vv\]'"):
        data.statistics()
    mean, std = folder(tmp_path / "d", bands__allow_constant=("vv",)).statistics()["image"]
    assert (mean[0], std[0]) == (pytest.approx(7 / 255, abs=1e-5), 1)
    assert folder(tmp_path / "d", bands__use=("vh",)).statistics()["image"][0][0] > 0.2
    # A file of statistics is not a way around.
    write_statistics(tmp_path / "s.json", data.measure())
    assert [band.constant for band in read_statistics(tmp_path / "s.json", data.source.bands).streams["image"]] == [
        True,
        False,
    ]
    with pytest.raises(DataError, match="one value throughout in vv"):
        folder(tmp_path / "d", values__statistics=str(tmp_path / "s.json")).statistics()


def test_files_of_statistics_from_before_are_read(tmp_path):
    data = open_data(DataConfig(source="folder", path=str(make_folder(tmp_path / "f", per_class=4))), SIZE)
    write_statistics(tmp_path / "s.json", data.measure())
    content = json.loads((tmp_path / "s.json").read_text())
    content.pop("notes")
    for band in content["streams"]["image"]:
        for name in ("no_data", "cut_low", "cut_high", "constant"):
            band.pop(name)
    (tmp_path / "s.json").write_text(json.dumps(content))
    assert read_statistics(tmp_path / "s.json", data.source.bands).streams["image"][0].no_data == 0


WRONG = [
    ({"scale": 0}, r"data\.scale must be above 0"),
    ({"scale": (1.0, -1.0)}, r"data\.scale must be above 0"),
    ({"values__offset": 1.0}, r"data.values.offset must be left out without data\.scale"),
    ({"values__range": (0.0, 1.0), "scale": 2.0}, r"data\.scale must be left out beside data.values.range"),
    ({"values__range": (1.0, 0.0)}, r"data.values.range must be two finite values, the lower one first"),
    ({"values__range": ((0.0, 1.0), (2.0, 2.0))}, r"data.values.range must be two finite values"),
    ({"spectral__range": (0.0, float("inf"))}, r"data.spectral.range must be two finite values"),
    ({"values__nodata": "none"}, r"data.values.nodata must be numbers, nan, inf or -inf"),
    ({"images__max_pixels": 0}, r"data.images.max_pixels must be at least 1"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        data_config(**settings)


def test_ranges_for_another_number_of_bands(tmp_path):
    x = np.random.default_rng(12).integers(0, 200, (2, 8, 8)).astype("uint8")
    write_classes(tmp_path / "d", lambda c: x)
    for settings in (
        {"scale": (1.0, 2.0, 3.0)},
        {"values__range": ((0.0, 1.0),) * 3},
        {"scale": 1.0, "values__offset": (1.0,) * 3},
    ):
        with pytest.raises(ConfigError, match=r"has 3 entries and the images have 2 bands"):
            folder(tmp_path / "d", **settings)


@pytest.mark.slow_cases("words0", "words4")
@pytest.mark.parametrize(
    "words",
    [
        ["--data.values.nodata", "nan"],
        ["--data.values.nodata", "[nan, -9999]"],
        ["--data.values.nodata", "[]"],
        ["--data.values.range", "[[-25, 0], [0, 1]]"],
        ["--data.scale", "[1, 2]"],
    ],
)
def test_recipes_with_ranges_are_read_back_as_they_are_written(tmp_path, words):
    def settings_of(name):
        return find_family(name)[0].config

    recipe = load_recipe(None, words, settings_of=settings_of)
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "r.yaml", settings_of=settings_of) == recipe


def test_a_stated_range_that_is_hardly_filled_is_warned_of(tmp_path):
    x = np.random.default_rng(13).random((10, 2, 8, 8)).astype("float32")
    with pytest.warns(
        DataWarning, match=r"values, [\d.e-]+ to [\d.]+, fill 0\.01% of the stated range; --data\.scale 1 "
    ):
        arrays(tmp_path / "x.npz", x, bands__names=BANDS, scale=10000)


def test_pictures_among_rasters_keep_their_own_range(tmp_path):
    rng = np.random.default_rng(14)
    write_classes(tmp_path / "d", lambda c: rng.integers(0, 9000, (3, 8, 8)).astype("uint16"))
    Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype("uint8")).save(tmp_path / "d" / "0" / "9.png")
    config = {"source": "folder", "path": str(tmp_path / "d"), "bands__names": ("r", "g", "b")}
    with pytest.raises(DataError, match=r"several types: uint16 \(6, first .*\), uint8 \(1, first .*9\.png\)"):
        open_data(data_config(**config), SIZE)
    data = open_data(data_config(**config, scale=9000), SIZE)
    assert any("1 image is a picture of 8 bits" in note for note in data.source.value_notes)
    place = data.source.keys.index("0/9.png")
    x = np.array(Image.open(tmp_path / "d" / "0" / "9.png")).transpose(2, 0, 1) / 255
    assert np.allclose(data.source.load([place, 0])["image"][0], x, atol=1e-6)
    # A run whose range was decided by the rasters' type refuses them.
    with pytest.raises(DataError, match=r"9\.png holds uint8 values and the run was trained on uint16"):
        open_data(data_config(**config, values__value_type="uint16"), SIZE)


def test_the_second_stream_has_settings_of_its_own(tmp_path):
    rng = np.random.default_rng(15)
    write_classes(tmp_path / "a", lambda c: rng.integers(0, 9000, (2, 8, 8)).astype("uint16"))
    stack = iter(rng.uniform(-20, -5, (6, 1, 8, 8)).astype("float32"))
    write_classes(
        tmp_path / "b", lambda c: np.where(rng.random((1, 8, 8)) < 0.2, np.nan, next(stack)).astype("float32")
    )
    second = {"spectral__path": str(tmp_path / "b"), "spectral__names": ("db",)}
    with pytest.raises(DataError, match=r"not finite \(\d+ NaN\).*--data.spectral.nodata 'nan'"):
        folder(tmp_path / "a", scale=9000, **second)
    with pytest.raises(DataError, match=r"float32 values.*give data.spectral.scale.*--data.spectral.range '\[-20, -5"):
        folder(tmp_path / "a", scale=9000, spectral__nodata="nan", **second)
    data = folder(tmp_path / "a", scale=9000, spectral__nodata="nan", spectral__range=(-25.0, 0.0), **second)
    measured = data.measure().streams
    assert 0.15 < measured["spectral"][0].no_data < 0.25
    assert measured["image"][0].no_data == 0
    assert 0.2 < measured["spectral"][0].mean < 0.8
    mixed = folder(
        tmp_path / "a", scale=9000, spectral__nodata="nan", spectral__range=(-25.0, 0.0), bands__use=("vh", "db"),
        spectral__use=(), **second,
    )  # fmt: skip
    bands = mixed.measure().streams["image"]
    assert [band.name for band in bands] == ["vh", "db"]
    assert bands[0].no_data == 0 < bands[1].no_data


def test_scaled_files_among_files_in_other_units_are_refused(tmp_path):
    x = np.random.default_rng(7).integers(1000, 8000, (2, 8, 8)).astype("uint16")
    write_classes(tmp_path / "d", lambda c: x, scale=0.0001)
    write_tiff(tmp_path / "d" / "0" / "0.tif", x)
    # A range in the units of the one file would turn all the others into 0.
    with pytest.raises(DataError, match=r"go from 0\.1\d* to 0\.[78]\d* once its own scale.*all files in one unit"):
        folder(tmp_path / "d", scale=10000)
    with pytest.raises(DataError, match=r"several types.*write all files in one unit"):
        folder(tmp_path / "d")


@pytest.mark.parametrize("side", fast_first([300, 50, 9], 1))
def test_a_constant_band_is_found_whatever_size_it_has(tmp_path, side):
    rng = np.random.default_rng(12)
    write_classes(
        tmp_path / "d",
        lambda c: np.stack([np.full((side, side), 60007), rng.integers(0, 60000, (side, side))]).astype("uint16"),
    )
    with pytest.raises(DataError, match=r"one value throughout in vv \("):
        folder(tmp_path / "d").statistics()


def test_masks_of_one_bit_are_0_and_1(tmp_path):
    rng = np.random.default_rng(13)
    images = rng.random((6, 2, 8, 8)) > 0.5
    stack = iter(images)
    write_classes(tmp_path / "d", lambda c: next(stack))
    data = folder(tmp_path / "d")
    assert sorted(values_of(data).sum((1, 2, 3))) == sorted(images.sum((1, 2, 3)))
    assert data.source.values["image"].limits.kind == "bool"
    without = folder(tmp_path / "d", values__nodata=1).source.values["image"].tally
    assert without.no_data.sum() == images.sum()
    kept = arrays(tmp_path / "x.npz", np.concatenate([images] * 2))
    assert np.array_equal(values_of(kept), np.concatenate([images] * 2))


def test_complex_values_have_a_remedy(tmp_path):
    write_classes(tmp_path / "d", lambda c: np.ones((2, 8, 8), "complex64"))
    with pytest.raises(DataError, match=r"complex64 values; .*write the parts of complex numbers as bands"):
        folder(tmp_path / "d")
    with pytest.raises(ConfigError, match="holds complex numbers"):
        arrays(tmp_path / "x.npz", np.ones((20, 8, 8, 3), "complex64"))


def test_a_run_is_given_no_setting_of_training(tmp_path):
    rng = np.random.default_rng(14)
    write_classes(tmp_path / "d", lambda c: rng.integers(500, 900, (2, 8, 8)).astype("uint16"))
    config = DataConfig(source="folder", path=str(tmp_path / "d"), bands={"names": BANDS}, scale=100)
    with pytest.raises(DataError, match=r"cut off; --data\.scale 900 holds all"):
        open_data(config, SIZE)
    with pytest.raises(DataError, match=r"cut off; bring the images to the units that the run was trained in$"):
        open_data(config, SIZE, ("0", "1"))
    write_tiff(tmp_path / "d" / "0" / "0.tif", np.full((2, 8, 8), np.nan, "float32"))
    with pytest.raises(DataError, match=r"not finite.*fill them, or leave the image out$"):
        open_data(config, SIZE, ("0", "1"))
