"""Preprocessing inside the exported graph: equal to that of the data pipeline at any size."""

import dataclasses

import numpy as np
import pytest
import tifffile
import torch

from tests.images import save_image
from tests.settings import data_config
from vitrail.cli.recipes import load_run_recipe
from vitrail.data.centre_crop import centre_box
from vitrail.data.evaluation_crop import crop_centre, size_to_read
from vitrail.data.images import read_image, resize_picture
from vitrail.data.rasters import resize_tensor
from vitrail.data.sources.base import to_unit
from vitrail.data.sources.edges import edges
from vitrail.deploy.export import convert
from vitrail.deploy.export.graph import ExportGraph
from vitrail.deploy.export.photographs import encoded_source, read_photographs
from vitrail.deploy.export.pixels import PreparePixels, ResizeStored
from vitrail.deploy.export.stored import StoredPixels, stored_pixels
from vitrail.models import create_model
from vitrail.runs.images import open_images
from vitrail.runs.trained import ModelCard, StreamCard, TrainedModel, load_trained

SIZES = [(1, 5), (5, 1), (3, 200), (20, 24), (24, 20), (33, 47), (64, 64), (100, 30), (231, 347), (600, 400)]
TARGETS = [(24, 24), (20, 40), (33, 17), (7, 7)]
RGB = ("red", "green", "blue")


def pixels(size, bands=3, seed=0):
    """Slopes and noise, shape ``(bands, *size)``, uint8."""
    rng = np.random.default_rng([*size, bands, seed])
    ramp = np.linspace(0, 200, size[0])[:, None] * np.linspace(0.2, 1, size[1])
    return torch.from_numpy((ramp + rng.integers(0, 56, (bands, *size))).astype(np.uint8))


def stored(filter, size, how="crop", dtype=torch.uint8, low=(0.0,), high=(255.0,)):
    return StoredPixels(RGB, dtype, low, high, filter, how, size)


@pytest.mark.parametrize("how", ["crop", "squash"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.fast_cases("target1-squash", "target2-crop")
def test_pictures_are_resized_to_the_same_levels(target, how):
    resize = ResizeStored(stored("levels", target, how))
    found = torch.cat([(resize(pixels(size)[None]) * 255).flatten() for size in SIZES])
    wanted = torch.cat([resize_picture(pixels(size), target, how).float().flatten() for size in SIZES])
    far = (found - wanted).abs()
    assert far.max() < 1.01
    assert (far > 0.5).float().mean() <= 0.001


@pytest.mark.fast_cases("levels")
@pytest.mark.parametrize("filter", ["levels", "bilinear", "bicubic"])
def test_the_traced_resize_takes_photographs_of_any_size(filter):
    card = ModelCard("vit", {}, ("a", "b"), {"image": StreamCard(RGB, (0.4,) * 3, (0.2,) * 3, (20, 40))})
    model = create_model("vit", img_size=(20, 40), patch_size=20, embed_dim=8, depth=1, num_heads=1, num_classes=2)
    own = {"image": stored(filter, (20, 40))}
    graph = ExportGraph(TrainedModel(model, card.normalization(), card), {"image": torch.uint8}, own)
    photographs, resize = graph.inputs[0], ResizeStored(own["image"])
    assert photographs.shape == (None, 3, None, None)
    axes = {axis: convert._free_size(graph, photographs, axis) for axis in (0, 2, 3)}
    program = torch.export.export(resize, (pixels((45, 61))[None].repeat(2, 1, 1, 1),), dynamic_shapes=(axes,)).module()
    for size in SIZES:
        assert torch.equal(program(pixels(size)[None]), resize(pixels(size)[None]))
    assert program(pixels((9, 12))[None][:0]).shape == (0, 3, 20, 40)


@pytest.mark.parametrize("how", ["crop", "squash"])
@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.fast_cases("target0-bilinear-squash", "target0-bicubic-crop")
def test_rasters_are_resized_to_the_same_values(target, filter, how):
    low, high = (100.0, 0.0, 50.0), (30000.0, 65535.0, 5000.0)
    resize = ResizeStored(stored(filter, target, how, torch.uint16, low, high))
    limits = [torch.tensor(side)[:, None, None] for side in (low, high)]
    for size in SIZES:
        values = pixels(size).to(torch.int32) * 120
        unit = ((values - limits[0]) / (limits[1] - limits[0])).clamp(0, 1)
        wanted = resize_tensor(unit, target, how, filter)
        wanted = wanted.clamp(0, 1) if filter == "bicubic" else wanted
        torch.testing.assert_close(resize(values.to(torch.uint16)[None])[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_pixels_without_data_do_not_bleed(target):
    resize = ResizeStored(stored("bilinear", target, dtype=torch.float32, high=(1.0,)))
    for size in SIZES[3:]:
        unit = pixels(size).float() / 255
        unit[:, : size[0] // 2, size[1] // 3 :] = torch.nan
        torch.testing.assert_close(
            resize(unit[None])[0], resize_tensor(unit, target, "crop"), rtol=0, atol=1e-5, equal_nan=True
        )


@pytest.mark.parametrize("target", TARGETS)
def test_the_box_has_the_wanted_shape_and_is_central(target):
    for height in range(1, 60, 3):
        for width in range(1, 60):
            top, left, rows, columns = centre_box(height, width, target)
            assert rows == height or columns == width
            assert 0 <= top <= height - top - rows <= top + 1
            assert 0 <= left <= width - left - columns <= left + 1
            exact = min(height, width * target[0] / target[1]), min(width, height * target[1] / target[0])
            assert max(abs(rows - exact[0]), abs(columns - exact[1])) <= 0.5 or 1 in (rows, columns)


@pytest.mark.parametrize(("spectral", "crop_pct"), [("none", 1.0), ("none", 0.8), ("edges", 1.0), ("edges", 0.8)])
def test_both_entries_give_what_evaluation_sees(spectral, crop_pct):
    streams = {"image": StreamCard(RGB, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1), (16, 16), "uint8")}
    if spectral == "edges":
        streams["spectral"] = StreamCard(("edge_x", "edge_y"), (0.5, 0.5), (0.1, 0.1), (16, 16))
    card = ModelCard("vit", {}, ("a", "b"), streams, crop_pct=crop_pct, spectral=spectral)
    read = size_to_read((16, 16), crop_pct)
    prepare = PreparePixels(card, {"image": stored("levels", read)})
    photograph = pixels((45, 61))
    unit = to_unit(resize_picture(photograph, read, "crop"))[None]
    batch = {"image": unit, "spectral": edges(unit)} if spectral == "edges" else {"image": unit}
    batch = {name: crop_centre(x, (16, 16)) for name, x in batch.items()}
    wanted = card.normalization()(batch)
    small = [x.repeat(2, 1, 1, 1) for x in batch.values()][: len(prepare.prepared)]
    none = [x[:0] for x in small]
    both = prepare(photograph[None], *small)
    for inputs, rows in ((prepare(photograph[None], *none), 1), (prepare(photograph[None][:0], *small), 2), (both, 3)):
        for found, expected in zip(inputs, wanted, strict=True):
            assert found.shape[0] == rows
            far = (found - expected).abs()
            assert far.max() < 1.01 / 255 / 0.1  # one level
            assert (far > 1e-4).float().mean() < 0.03  # of edges also its neighbours


def test_stored_values_of_a_run_are_described(run, tmp_path):
    data = load_run_recipe(run / "recipe.yaml").data
    trained = load_trained(run)
    found, lacks = stored_pixels(trained.card, data, open_images(_folder(run), trained.card, data).data)
    assert lacks == ""
    assert found["image"] == stored("levels", (16, 16))
    photo = save_image(tmp_path / "photo.png", (50, 70))
    prepared = PreparePixels(trained.card, found)(read_image(photo)[None], torch.zeros(0, 3, 16, 16, dtype=torch.uint8))
    wanted = trained.normalize(to_unit(read_image(photo, size=(16, 16)))[None])
    torch.testing.assert_close(prepared, wanted)


def _folder(run):
    from vitrail.runs.folder import RunFolder

    return RunFolder.open(run)


@pytest.mark.parametrize(
    ("settings", "dtype", "high"),
    [
        ({}, torch.uint16, (65535.0,)),
        ({"scale": 40000.0}, torch.uint16, (40000.0,)),
        ({"values__range": ((0.0, 100.0), (0.0, 200.0), (0.0, 300.0), (0.0, 400.0))}, torch.uint16, (400.0, 300.0)),
        ({"values__nodata": 0.0}, torch.float32, (65535.0,)),
    ],
)
def test_rasters_keep_their_type_and_range(tmp_path, settings, dtype, high):
    from vitrail.data import open_data

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for i in range(5):
            (tmp_path / name).mkdir(exist_ok=True)
            values = rng.integers(1, 60000 if "values__range" not in settings else 90, (4, 18, 22)).astype(np.uint16)
            tifffile.imwrite(tmp_path / name / f"{i}.tif", values, photometric="minisblack")
    config = data_config(
        source="folder", path=str(tmp_path), bands__names=("blue", "green", "red", "nir"), bands__use=("nir", "red"),
        splitting__val_fraction=0.2, splitting__test_fraction=0.0, **settings,
    )  # fmt: skip
    images = open_data(config, (16, 16))
    kind = images.source.values["image"].limits.kind
    stream = StreamCard(("nir", "red"), (0.4, 0.4), (0.1, 0.1), (16, 16), kind)
    card = ModelCard("vit", {}, ("a", "b"), {"image": stream})
    found, lacks = stored_pixels(card, config, images)
    assert lacks == ""
    assert found["image"] == dataclasses.replace(
        stored("bilinear", (16, 16), dtype=dtype, high=high), bands=("nir", "red"), low=(0.0,) * len(high)
    )
    raw = torch.from_numpy(tifffile.imread(images.source.inner.files["image"][0]))[[3, 2]]
    values = raw.float() if dtype == torch.float32 else raw
    torch.testing.assert_close(
        ResizeStored(found["image"])(values[None]), images.source.read([0])["image"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("how", ["crop", "squash"])
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("uint8", {"scale": 255.0}),
        ("uint8", {"scale": 255.0, "values__nodata": 0.0}),
        ("uint16", {"scale": 50000.0, "values__offset": 900.0}),
        ("uint16", {"scale": 50000.0, "values__offset": 900.0, "values__nodata": (0.0, 7.0)}),
        ("int16", {"values__range": ((-2000.0, 9000.0), (0.0, 8000.0), (-1.0, 7000.0), (0.0, 30000.0))}),
        ("float32", {"values__range": ((0.0, 0.9), (0.05, 1.0), (0.0, 1.0), (-1.0, 1.0))}),
        ("float32", {"scale": 1.0, "values__nodata": -9999.0}),
        ("float32", {"scale": 1.0, "values__nodata": "nan"}),
    ],
)
@pytest.mark.fast_cases(
    "uint8-settings0-crop",
    "uint16-settings3-crop",
    "float32-settings5-squash",
    "float32-settings6-crop",
    "float32-settings7-crop",
)
def test_stored_rasters_become_what_the_pipeline_reads(tmp_path, dtype, settings, how):
    from vitrail.data import open_data

    rng = np.random.default_rng(0)
    no_data = settings.get("values__nodata")
    marks = [float(mark) for mark in (no_data if isinstance(no_data, tuple) else (no_data,)) if mark is not None]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i, size in enumerate([(18, 22), (40, 31), (64, 90), (7, 9), (33, 33)]):
            smooth = rng.random((4, *size))
            values = smooth if dtype == "float32" else smooth * {"uint8": 255, "uint16": 60000, "int16": 9000}[dtype]
            values = values.astype(dtype)
            for j, mark in enumerate(marks):
                values[:, : size[0] // 2, size[1] // 3 + j : 2 * size[1] // 3] = mark
            tifffile.imwrite(tmp_path / name / f"{i}.tif", values, photometric="minisblack")
    config = data_config(
        source="folder", path=str(tmp_path), bands__names=("blue", "green", "red", "nir"), images__resize=how,
        splitting__val_fraction=0.2, splitting__test_fraction=0.0, **settings,
    )  # fmt: skip
    images = open_data(config, (16, 16))
    kind = images.source.values["image"].limits.kind if "image" in images.source.values else None
    card = ModelCard("vit", {}, ("a", "b"), {"image": StreamCard(("blue", "green", "red", "nir"), (0.4,) * 4,
                     (0.1,) * 4, (16, 16), kind)}, resize=how)  # fmt: skip
    found, lacks = stored_pixels(card, config, images)
    assert lacks == ""
    assert found["image"].dtype == (torch.float32 if marks else getattr(torch, dtype))
    resize = ResizeStored(found["image"])
    for index in range(len(images.source)):
        stored_values = read_photographs(encoded_source(images), found, index)["image"]
        wanted = images.source.read([index])["image"]
        assert bool(wanted.isnan().any()) == bool(marks)
        result = resize(torch.from_numpy(stored_values))
        torch.testing.assert_close(result, to_unit(wanted), rtol=0, atol=1e-5, equal_nan=True)
