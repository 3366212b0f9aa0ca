"""Multi-band tiles listed by a table, from the audit to a run whose folder has moved."""

import json
import re
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile

from tests.field_tiles import make_tiles
from vitrail.cli.main import main

TINY = (
    "--model.name vit --model.img_size 16 --model.patch_size 8 --model.embed_dim 16 --model.depth 1 "
    "--model.num_heads 2 --trainer.max_epochs 1 --trainer.accelerator cpu --data.batch_size 8 "
    "--data.loader.num_workers 0 --trainer.precision 32-true --run.tensorboard false"
).split()


@pytest.fixture
def tiles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_tiles(tmp_path)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A folder with tiles, their table and the evaluated run ``r`` on them, which names them by relative paths."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiles = make_tiles(folder)
        assert main(["train", *tiles, *TINY, "--run.dir", "r"]) == 0
        assert main(["evaluate", "r", "--resamples", "100"]) == 0
    return folder, tiles


@pytest.fixture
def run_tiles(whole_run, tmp_path, monkeypatch):
    """A copy of the run and of its tiles, in which the test works."""
    shutil.copytree(whole_run[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return whole_run[1]


def _do(capsys, *words, code=0):
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    return capsys.readouterr()


@pytest.mark.slow
def test_rows_of_a_crop_are_no_duplicates(tiles, capsys):
    output = _do(capsys, "data", "audit", *tiles).out
    assert re.search(r"near duplicates\s+0\b", output)
    assert re.search(r"groups across splits\s+0\b", output)


def test_the_printed_command_reads_the_tiles_as_the_audit_did(tiles, tmp_path, capsys):
    """A tile lies, turned, in two more fields, once under another class."""
    table = pd.read_csv("tiles.csv", sep=";")
    first = tifffile.imread("tiles/tile_000.tif")
    for i, turns in ((1, 1), (3, 2)):
        tifffile.imwrite(f"tiles/tile_{i:03d}.tif", np.ascontiguousarray(np.rot90(first, turns, axes=(1, 2))))
    table.loc[[0, 1, 3], "class"] = ["healthy", "healthy", "diseased"]
    table.to_csv("tiles.csv", sep=";", index=False)
    found = _do(capsys, "data", "audit", *tiles, "--groups", "groups.csv", code=1)
    assert "tile_000.tif = tile_001.tif = ... (3 in all)" in found.out
    assert "tile_000.tif (healthy) = tile_003.tif (diseased)" in found.out
    assert "duplicates join 3 groups of the data into 1: F00, F01, F03" in found.err
    groups = pd.read_csv("groups.csv")
    assert groups["group"].nunique() == 10
    [command] = [shlex.split(line) for line in found.err.splitlines() if line.startswith("  vitrail train")]
    assert "--data.scale" in command
    assert "[blue, green, red, red edge, nir]" in command
    again = _do(capsys, "data", "audit", *command[2:]).out
    assert re.search(r"duplicates across splits\s+0\b", again)
    assert "each of 10 groups lies in one split" in again


@pytest.mark.usefixtures("run_tiles")
def test_the_audit_of_a_run_prints_a_command_with_the_runs_bands(capsys):
    found = _do(capsys, "data", "audit", "--run", "r", "--groups", "groups.csv")
    [command] = [shlex.split(line) for line in found.err.splitlines() if line.startswith("  vitrail train")]
    assert command[2] == "r/recipe.yaml"
    _do(capsys, *command[1:])
    assert "[blue" not in " ".join(command)


def test_bands_without_names_are_asked_for_once(tiles, capsys):
    unnamed = tiles[: tiles.index("--data.bands.names")]
    err = _do(capsys, "data", "audit", *unnamed, code=1).err
    assert "48 of 48 images are TIFF files of 5 bands (uint16)" in err
    assert "--data.bands.names '[blue, green, red, red_edge, nir]'" in err
    assert err.count("tile_") == 3
    assert "skip" not in err
    named = re.search(r"--data.bands.names '(.*?)'", err)[1]
    _do(capsys, "data", "audit", *unnamed, "--data.bands.names", named, "--data.scale", "10000")


def test_tiles_that_are_missing_or_lack_a_band_are_left_out_where_asked(tiles, tmp_path, capsys):
    tifffile.imwrite("tiles/tile_017.tif", tifffile.imread("tiles/tile_017.tif")[:4])
    (tmp_path / "tiles" / "tile_003.tif").unlink()
    (tmp_path / "tiles" / "tile_004.tif").write_bytes(b"II*\x00 no tiff")
    output = _do(capsys, "data", "audit", *tiles, code=1).out
    assert re.search(r"\bimages\s+45\b", output)
    assert "train without them: --data.errors.on_unreadable skip" in output
    _do(capsys, "data", "audit", *tiles, "--data.errors.on_unreadable", "skip")
    assert re.search(r"files that training refuses\s+3 ", output)
    err = _do(capsys, "data", "split", *tiles, code=1).err
    assert "1 of 48 images that tiles.csv lists does not exist" in err
    assert "--data.errors.on_unreadable skip" in err
    table = pd.read_csv("tiles.csv", sep=";")
    table[table["file"] != "tile_003.tif"].to_csv("tiles.csv", sep=";", index=False)
    (tmp_path / "tiles" / "tile_004.tif").unlink()
    table[~table["file"].isin(["tile_003.tif", "tile_004.tif"])].to_csv("tiles.csv", sep=";", index=False)
    err = _do(capsys, "data", "split", *tiles, code=1).err
    assert "tile_017.tif has 4 bands where 5 are wanted" in err
    assert "--data.errors.on_unreadable skip" in err
    assert re.search(r"(?m)^all +\d+", _do(capsys, "data", "split", *tiles, "--data.errors.on_unreadable", "skip").out)


@pytest.mark.slow
@pytest.mark.usefixtures("run_tiles")
def test_predict_goes_on_without_a_tile_of_other_bands(capsys):
    tifffile.imwrite("tiles/tile_017.tif", tifffile.imread("tiles/tile_017.tif")[:4])
    err = _do(capsys, "predict", "r", "tiles", code=1).err
    assert "--data.errors.on_unreadable skip" in err
    assert "tile_017" in err
    out = _do(capsys, "predict", "r", "tiles", "--data.errors.on_unreadable", "skip").out
    assert "tile_016" in out
    assert "tile_017" not in out


def test_a_group_that_is_no_column_names_the_columns(tiles, capsys):
    words = [*tiles[: tiles.index("--data.table.group_column")], *tiles[tiles.index("--data.bands.names") :]]
    err = _do(capsys, "data", "split", *words, "--data.splitting.group", "fild", code=1).err
    assert "'file', 'class', 'field'" in err
    assert "did you mean 'field'?" in err


def test_a_band_in_other_letter_case_is_suggested(tiles, capsys):
    err = _do(capsys, "data", "split", *tiles, "--data.bands.use", "[red, NIR]", code=2).err
    assert "no band 'NIR'; did you mean 'nir'?" in err


@pytest.mark.usefixtures("run_tiles")
@pytest.mark.slow_cases("True")
@pytest.mark.parametrize("table_too", [False, True])
def test_a_moved_folder_of_images_is_named_by_the_path(tmp_path, capsys, table_too):
    before = json.loads((tmp_path / "r" / "evaluation" / "metrics.json").read_text())
    (tmp_path / "archive").mkdir()
    (tmp_path / "tiles").rename(tmp_path / "archive" / "june")
    if table_too:
        (tmp_path / "tiles.csv").rename(tmp_path / "archive" / "june" / "tiles.csv")
    err = _do(capsys, "evaluate", "r", code=1).err
    assert "--data.path NEW" in err
    assert ("'tiles'" in err) != table_too
    err = _do(capsys, "report", "r", *["--without", "features"][: 2 * table_too]).err
    assert "sections that show images are left out" in err
    assert "vitrail report r --data.path NEW" in err
    found = _do(capsys, "evaluate", "r", "--data.path", "archive/june", "--resamples", "100")
    assert "48 images are known to r, by content: the split is kept" in found.out + found.err
    assert f"accuracy {before['accuracy']:.4f}" in found.out
    _do(capsys, "data", "audit", "--run", "r", "--data.path", "archive/june")


def test_images_that_nothing_changes_are_shown_as_such(tiles, capsys):
    assert "nothing changes them" in _do(capsys, "data", "show", *tiles, "--model.img_size", "16").out
    output = _do(
        capsys, "data", "show", *tiles, "--model.img_size", "16", "--data.augment", "light", "--out", "b.png"
    ).out
    assert "nothing changes them" not in output


@pytest.mark.slow
def test_an_epoch_that_leaves_out_many_images_is_printed(tiles, capsys):
    at = TINY.index("--data.batch_size") + 1
    words = [*tiles, *TINY[:at], "24", *TINY[at + 1 :]]
    err = _do(capsys, "train", *words, "--run.dir", "r").err
    assert "an epoch is 1 step of 24 images, and leaves out 12 of 36 training images" in err
    assert "--data.batch_size 4 leaves out 0" in err
    words[len(tiles) + at] = "4"
    assert "an epoch is" not in _do(capsys, "train", *words, "--run.dir", "s").err
