"""Bands of one image in files of their own: stacked by a pattern, and recognised where nobody asks for it."""

import re

import numpy as np
import pandas as pd
import pytest
import tifffile

from tests.images import save_image
from tests.settings import data_config
from vitrail.cli.main import main
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.band_files import BandFiles
from vitrail.data.file_names import describe_band_files
from vitrail.errors import ConfigError, DataError

TINY = (
    "--data.img_size 16 --data.loader.num_workers 0 --data.batch_size 4 --trainer.max_epochs 1 --trainer.accelerator "
    "cpu "
    "--run.tensorboard false --model.name vit --model.patch_size 8 --model.embed_dim 8 --model.depth 1 "
    "--model.num_heads 2"
).split()
# How a file of an image and a band is called, the marks, and a pattern.
FORMS = {
    "cytometry": ("{name}/Ch{band}_CP{i:04d}.tif", ("3", "4", "6"), r"Ch(?P<band>\d)_"),
    "micasense": ("{name}/IMG_{i:04d}_{band}.tif", ("1", "2", "10"), r"_(?P<band>\d+)\.tif$"),
    "sentinel": ("{name}/T32_{i}_{band}_10m.TIF", ("B02", "B03", "B8A"), r"_(?P<band>B\d\w)_"),
    "folders": ("{name}/{i}/{band}.tif", ("nir", "red", "swir"), r"(?P<band>nir|red|swir)\.tif$"),
    "below": ("{name}/{band}/{i}.tif", ("nir", "red", "swir"), r"/(?P<band>nir|red|swir)/"),
}


def write(root, form, number=6, kind="uint16", top=4000):
    """Files of two classes, and the stack of each image by its class and number."""
    template, marks, _ = FORMS[form]
    rng, stacks = np.random.default_rng(5), {}
    for k, name in enumerate(("G1", "G2")):
        for i in range(number):
            stacks[name, i] = rng.integers(k * 500, top, (3, 20, 24)).astype(kind)
            for mark, plane in zip(marks, stacks[name, i], strict=True):
                path = root / template.format(name=name, i=i, band=mark)
                path.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(path, plane)
    return stacks


def opened(root, form, names=None, **settings):
    _, marks, pattern = FORMS[form]
    config = {
        "source": "folder",
        "path": str(root),
        "bands__files": pattern,
        "bands__names": names or marks,
        "scale": 5000,
    }
    return open_data(data_config(**{**config, **settings}), (20, 24))


ORDERS = ((0, 1, 2), (2, 0, 1))


@pytest.mark.fast_cases("below-order4", "cytometry-order5")
@pytest.mark.parametrize(
    ("form", "order"), [(form, ORDERS[i % 2]) for i, form in enumerate(FORMS)] + [("cytometry", ORDERS[1])]
)
def test_bands_are_stacked_in_the_order_of_their_names(tmp_path, form, order):
    stacks = write(tmp_path, form)
    marks = [FORMS[form][1][i] for i in order]
    data = opened(tmp_path, form, tuple(marks))
    assert len(data.source) == 12
    assert data.source.bands["image"] == tuple(marks)
    assert data.source.classes == ("G1", "G2")
    for i, key in enumerate(data.source.keys):
        number = int(re.findall(r"\d+", key.replace("T32", "").replace("10m", ""))[-1])
        wanted = stacks[data.source.label(i), number][list(order)] / 5000
        assert np.allclose(data.source.load([i])["image"][0], wanted, atol=1e-6)
    assert data.source.original_size(0) == (20, 24)
    assert len({data.source.digest(i) for i in range(12)}) == 12


@pytest.mark.parametrize("form", ["cytometry", "micasense"])
def test_other_names_stand_for_the_marks_in_natural_order(tmp_path, form):
    stacks = write(tmp_path, form)
    data = opened(tmp_path, form, ("x", "y", "z"))
    first = data.source.keys.index(next(key for key in data.source.keys if key.startswith("G2")))
    assert np.allclose(data.source.load([first])["image"][0], stacks["G2", 0] / 5000, atol=1e-6)
    with pytest.raises(DataError, match=r"has 2 names \(x, y\) and data.bands.files finds 3 bands"):
        opened(tmp_path, form, ("x", "y"))


def test_a_part_of_the_bands_may_be_named(tmp_path, capsys):
    write(tmp_path, "sentinel")
    data = opened(tmp_path, "sentinel", ("B8A", "B02"))
    assert data.source.load([0])["image"].shape == (1, 2, 20, 24)
    assert "left out 12 files of bands that data.bands.names lacks: B03" in capsys.readouterr().err


def test_a_missing_band_is_named_with_its_image_or_left_out(tmp_path):
    write(tmp_path, "cytometry")
    (tmp_path / "G1" / "Ch4_CP0003.tif").unlink()
    (tmp_path / "G2" / "Ch3_CP0005.tif").unlink()
    with pytest.raises(
        DataError, match=r"2 of 12 files.*G1/Ch_CP0003\.tif lacks the band 4 \(Ch4_CP0003\.tif\)"
    ) as told:
        opened(tmp_path, "cytometry")
    assert "lacks the band 3" in str(told.value)
    skipped = opened(tmp_path, "cytometry", errors__on_unreadable="skip")
    assert len(skipped.source) == 10
    assert [name for name, _ in skipped.source.left_out] == ["G1/Ch_CP0003.tif", "G2/Ch_CP0005.tif"]
    (tmp_path / "G1" / "notes_1.tif").write_bytes((tmp_path / "G1" / "Ch3_CP0000.tif").read_bytes())
    with pytest.raises(DataError, match=r"finds no band in 1 of .*notes_1\.tif"):
        opened(tmp_path, "cytometry")


def test_bands_of_other_types_and_shapes(tmp_path):
    write(tmp_path, "sentinel")
    # A band of half the resolution is enlarged, pixel by pixel.
    coarse = np.arange(120, dtype=np.uint16).reshape(10, 12)
    tifffile.imwrite(tmp_path / "G1" / "T32_0_B8A_10m.TIF", coarse)
    data = opened(tmp_path, "sentinel")
    row = next(i for i, key in enumerate(data.source.keys) if key == "G1/T32_0__10m.TIF")
    assert np.allclose(data.source.load([row])["image"][0, 2], coarse.repeat(2, 0).repeat(2, 1) / 5000)
    tifffile.imwrite(tmp_path / "G1" / "T32_0_B8A_10m.TIF", np.zeros((9, 30), np.uint16))
    with pytest.raises(DataError, match="different shapes"):
        opened(tmp_path, "sentinel")
    tifffile.imwrite(tmp_path / "G1" / "T32_0_B8A_10m.TIF", np.zeros((20, 24), np.uint8))
    with pytest.raises(DataError, match="different types"):
        opened(tmp_path, "sentinel")
    tifffile.imwrite(tmp_path / "G1" / "T32_0_B8A_10m.TIF", np.zeros((2, 20, 24), np.uint16))
    with pytest.raises(DataError, match=r"T32_0_B8A_10m\.TIF has 2 bands where one is wanted"):
        opened(tmp_path, "sentinel")


def test_gray_pictures_are_stacked_too(tmp_path):
    for name, level in (("a", 60), ("b", 180)):
        for i in range(12):
            for k, band in enumerate(("red", "nir")):
                save_image(tmp_path / name / f"{i}_{band}.png", mode="L", level=level, seed=2 * i + k)
    config = {"bands__files": "_(?P<band>red|nir)", "bands__names": ("red", "nir")}
    data = open_data(data_config(source="folder", path=str(tmp_path), **config), (20, 24))
    images = data.source.load([0])["image"][0]
    assert images.shape == (2, 20, 24)
    assert abs(images[0] - images[1]).max() > 0.05


def test_a_table_and_unlabelled_images(tmp_path):
    stacks = write(tmp_path, "cytometry")
    config = {"bands__files": FORMS["cytometry"][2], "bands__names": ("3", "4", "6"), "scale": 5000}
    pile = open_data(data_config(source="unlabelled", path=str(tmp_path), **config), (20, 24))
    assert len(pile.source) == 12
    rows = [{"path": f"G1/Ch4_CP{i:04d}.tif" if i % 2 else f"G2/Ch3_CP{i:04d}.tif", "label": i % 2} for i in range(6)]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    table = open_data(data_config(source="table", path=str(tmp_path / "t.csv"), **config), (20, 24))
    assert np.allclose(table.source.load([1])["image"][0], stacks["G1", 1] / 5000, atol=1e-6)
    assert table.source.keys[1] == "G1/Ch_CP0001.tif"


def test_a_run_predicts_and_explains_stacks(tmp_path, capsys):
    write(tmp_path / "d", "cytometry")
    words = ["--data.source", "folder", "--data.path", tmp_path / "d", "--data.bands.files", FORMS["cytometry"][2],
             "--data.bands.names", '["3", "4", "6"]', "--data.scale", 5000]  # fmt: skip
    assert main([*map(str, ["train", *words, *TINY, "--run.dir", tmp_path / "run"])]) == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "d" / "G1"), "--top-k", "1"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 7
    assert f"{tmp_path}/d/G1/Ch_CP0000.tif" in lines[1]
    one = str(tmp_path / "d" / "G1" / "Ch6_CP0000.tif")
    assert main(["predict", str(tmp_path / "run"), one, "--top-k", "1"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[1] == lines[1]
    (tmp_path / "d" / "G1" / "Ch4_CP0001.tif").unlink()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "d" / "G1")]) == 1
    assert "Ch_CP0001.tif lacks the band 4" in capsys.readouterr().err
    save_image(tmp_path / "m" / "Ch_CP0000.png", mode="L", level=200)
    explain = ["explain", str(tmp_path / "run"), one, "--out", str(tmp_path / "why"), "--measure"]
    assert main([*explain, "--masks", str(tmp_path / "m")]) == 0


def test_settings_that_do_not_fit(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.bands\.names must be given where data\.bands\.files is"):
        DataConfig(source="folder", path="x", bands={"files": "(?P<band>.)"})
    for pattern, told in (("Ch(", "is not a valid regular expression"), (r"Ch(\d)", "no group named band")):
        with pytest.raises(ConfigError, match=told):
            open_data(
                DataConfig(source="folder", path=str(tmp_path), bands={"files": pattern, "names": ("x",)}), (8, 8)
            )


@pytest.mark.fast_cases("cytometry")
@pytest.mark.parametrize("form", ["cytometry", "micasense", "sentinel", "folders"])
def test_the_proposed_setting_stacks_what_is_recognised(tmp_path, form, capsys):
    write(tmp_path, form)
    open_data(DataConfig(source="folder", path=str(tmp_path), bands={"names": ("x",)}, scale=5000), (8, 8))
    told = capsys.readouterr().err
    assert "36 files look like 3 bands of 12 images" in told
    pattern, names = re.search(r"--data.bands.files '(.*)' --data.bands.names '\[(.*)\]'", told).groups()
    data = opened(tmp_path, form, tuple(names.split(", ")), bands__files=pattern)
    assert len(data.source) == 12
    assert "look like" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["img_{i}.png", "{i}.jpg", "b{i}.png", "plant_{i}_{j}.jpg", "scan_{i}.tif", "c{i}_{j}.png", "red_{i}.png"]
)
def test_plain_numbers_are_no_bands(name):
    keys = sorted({f"{label}/{name.format(i=i, j=i % 3)}" for label in "ab" for i in range(40)})
    assert describe_band_files(keys) == []


@pytest.mark.parametrize(("source", "searched"), [("folder", True), ("videos", False), ("points", False)])
def test_bands_are_sought_in_files_of_images_alone(tmp_path, monkeypatch, capsys, source, searched):
    for label in "ab":
        for i in range(4):
            if source == "points":
                (tmp_path / label).mkdir(exist_ok=True)
                np.savetxt(tmp_path / label / f"{i}_B02.xyz", np.eye(3))
            else:
                save_image(tmp_path / label / (f"{i}_B02/0.png" if source == "videos" else f"{i}_B02.png"))
    monkeypatch.setattr("vitrail.data.dataset.describe_band_files", lambda keys: ["bands of images"])
    size = {"folder": (8, 8), "videos": (1, 8, 8), "points": (3,)}[source]
    open_data(DataConfig(source=source, path=str(tmp_path)), size)
    assert ("bands of images" in capsys.readouterr().err) is searched


def test_an_image_is_called_by_its_files_name_without_the_mark():
    for pattern, path, wanted in (
        (r"(?P<band>Ch\d)_", "d/Ch3_CP1.tif", "d/CP1.tif"),
        (r"_(?P<band>\d)\.tif", "d/IMG_1_4.tif", "d/IMG_1.tif"),
        (r"/(?P<band>nir|red)/", "d/nir/4.tif", "d/4.tif"),
        (r"(?P<band>nir|red)", "nir/4.tif", "4.tif"),
    ):
        assert BandFiles(pattern, (), ()).name(path) == wanted
