"""Images of the gate: encoded ones are decoded in full, wherever they are stored, and their number is bounded."""

import csv
import io
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.deploy.eager import eager_engines as eager_engines
from tests.deploy.exporting import QUICK, photographs, record, train
from tests.settings import data_config
from vitrail.cli.main import main
from vitrail.data import open_data
from vitrail.deploy.export.gate_images import Selection, count_images, spread, spread_encoded
from vitrail.deploy.export.photographs import encoded_source, read_photographs, run_photographs
from vitrail.deploy.export.stored import stored_pixels
from vitrail.runs.trained import ModelCard, StreamCard


def as_parquet(folder, file):
    """Write a folder of photographs as one table with the bytes inside."""
    files = sorted(folder.rglob("*.jpg"))
    table = {
        "image": [{"bytes": f.read_bytes(), "path": str(f.relative_to(folder))} for f in files],
        "label": [f.parent.name for f in files],
        "split": [f.parent.parent.name for f in files],
    }
    pq.write_table(pa.table(table), file)
    return file


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The same photographs as files and in a table."""
    root = tmp_path_factory.mktemp("stored")
    files = photographs(root / "files")
    return {"folder": files, "parquet": as_parquet(files, root / "photographs.parquet")}


# Exports from files are in test_export_faults.py too.
@pytest.fixture(scope="module", params=[pytest.param("folder", marks=pytest.mark.slow), "parquet"])
def run(request, stored):
    source = request.param
    return train(stored[source], stored[source].parent / f"run_{source}", source=source)


@pytest.fixture
def out(run, eager_engines):
    """Its export; made once."""
    folder = run.parent / f"out_{run.name}"
    if not folder.exists():
        assert main(["export", str(run), "--out", str(folder), *QUICK]) == 0
    return folder


def test_encoded_images_are_compared_in_full_from_files_and_from_tables(out, capsys):
    found = record(out)
    compared = found["candidates"][0]["verdict"]["photographs"]
    assert (compared["images"], compared["misses"]) == (16, 0)
    assert compared["difference"] < 0.005
    assert found["inputs"][0]["entry"] == "photographs"


@pytest.mark.usefixtures("eager_engines")
def test_the_number_of_gate_images_is_bounded_and_printed(run, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *QUICK, "--gate-images", "5"]) == 0
    found = record(tmp_path / "out")
    verdict = found["candidates"][0]["verdict"]
    assert (verdict["images"], verdict["photographs"]["images"]) == (5, 5)
    assert (found["test"]["images"], found["test"]["available"]) == (5, 16)
    out = capsys.readouterr().out
    assert "compared on 5 of 16 images; --gate-images compares on more" in out
    assert "5 of 16 " in next(line for line in out.splitlines() if line.startswith("test images"))
    assert main(["export", str(run), "--gate-images", "0"]) != 0
    assert "--gate-images must be at least 1, got 0" in capsys.readouterr().err


def opened(stored, source):
    config = data_config(source=source, path=str(stored[source]))
    images = open_data(config, (16, 16))
    card = ModelCard("vit", {}, images.source.classes,
                     {"image": StreamCard(("red", "green", "blue"), (0.4,) * 3, (0.2,) * 3, (16, 16))})  # fmt: skip
    pixels, lacks = stored_pixels(card, config, images)
    assert lacks == ""
    return images, pixels


def test_a_table_gives_the_pixels_of_its_files(stored):
    (files, own), (table, other) = (opened(stored, source) for source in ("folder", "parquet"))
    assert own == other
    rows = {key: i for i, key in enumerate(table.source.keys)}
    for i, key in enumerate(files.source.keys):
        one = read_photographs(encoded_source(files), own, i)["image"]
        two = read_photographs(encoded_source(table), own, rows[key])["image"]
        assert np.array_equal(one, two)
        assert files.source.original_size(i) == table.source.original_size(rows[key]) == one.shape[2:]


def test_reading_in_full_ends_with_its_block(stored):
    images, _ = opened(stored, "parquet")
    source = encoded_source(images)
    before = source.read([0])["image"]
    with source.in_full():
        assert source.reader.in_full
        source.read([0])
    assert not source.reader.in_full
    assert np.array_equal(source.read([0])["image"], before)


def test_images_of_one_size_share_calls_and_keep_their_order(stored):
    images, pixels = opened(stored, "folder")
    calls = []

    def run(inputs):
        calls.append(inputs["image"].shape)
        return {"mean": inputs["image"].mean((1, 2, 3))}

    indices = list(range(0, len(images.source), 3))
    found = run_photographs(SimpleNamespace(run=run), encoded_source(images), pixels, indices)
    wanted = [read_photographs(encoded_source(images), pixels, i)["image"].mean() for i in indices]
    assert np.allclose(np.concatenate([one["mean"] for one in found]), wanted)
    assert len(calls) == len({shape[2:] for shape in calls}) == 2


@pytest.mark.parametrize("most", [1, 4, 7, 12, 13, 100])
@pytest.mark.fast_cases("12", "100")
def test_images_are_spread_evenly_over_all_sources(stored, most):
    images, _ = opened(stored, "folder")
    other = SimpleNamespace(source=SimpleNamespace())
    selected = [Selection(other, [5, 6, 7], True), Selection(images, list(range(10, 20)), False)]
    found = spread(selected, most)
    total = [i for own in selected for i in own.indices]
    kept = [i for own in found for i in own.indices]
    assert len(kept) == count_images(found) == min(most, 13)
    rows = [total.index(i) for i in kept]
    assert rows == sorted(set(rows))
    assert max(np.diff(rows), default=0) <= -(-13 // min(most, 13))
    encoded, rows = spread_encoded(selected, most)
    assert [total[row] for row in rows] == encoded[0].indices
    assert len(rows) == min(most, 10)


def test_an_export_of_a_table_predicts_files_like_its_run(stored, run, out, capsys):
    capsys.readouterr()
    classes = []
    for folder in (run, out):
        assert main(["predict", str(folder), str(stored["folder"] / "test")]) == 0
        classes.append({r["path"]: r["class"] for r in csv.DictReader(io.StringIO(capsys.readouterr().out))})
    assert classes[0] == classes[1]
    assert len(classes[0]) == 16
