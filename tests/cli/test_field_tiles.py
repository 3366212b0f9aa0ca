"""Multi-band tiles listed by a table, from the audit to a run whose folder has moved."""

import re
import shlex

import numpy as np
import pandas as pd
import pytest
import tifffile

from tests.field_tiles import make_tiles
from vitrail.cli.main import main

TINY = (
    "--model.name vit --model.img_size 16 --model.patch_size 8 --model.embed_dim 16 --model.depth 1 "
    "--model.num_heads 2 --trainer.max_epochs 1 --trainer.accelerator cpu --data.batch_size 8 --data.num_workers 0 "
    "--run.tensorboard false"
).split()


@pytest.fixture
def tiles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_tiles(tmp_path)


def _do(capsys, *words, code=0):
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    return capsys.readouterr()


def test_rows_of_a_crop_are_no_duplicates(tiles, capsys):
    told = _do(capsys, "data", "audit", *tiles).out
    assert re.search(r"near duplicates\s+0\b", told)
    assert re.search(r"groups across splits\s+0\b", told)


def test_the_printed_command_reads_the_tiles_as_the_audit_did(tiles, tmp_path, capsys):
    """A tile lies, turned, in two more fields, once under another class."""
    table = pd.read_csv("tiles.csv", sep=";")
    first = tifffile.imread("tiles/tile_000.tif")
    for i, turns in ((1, 1), (2, 2)):
        tifffile.imwrite(f"tiles/tile_{i:03d}.tif", np.ascontiguousarray(np.rot90(first, turns, axes=(1, 2))))
    table.loc[:2, "class"] = ["healthy", "healthy", "diseased"]
    table.to_csv("tiles.csv", sep=";", index=False)
    found = _do(capsys, "data", "audit", *tiles, "--groups", "groups.csv", code=1)
    assert "tile_000.tif = tile_001.tif = ... (3 images)" in found.out
    assert "tile_000.tif (healthy) = tile_002.tif (diseased)" in found.out
    assert "duplicates join 3 groups of the data into 1: F00, F01, F02" in found.err
    groups = pd.read_csv("groups.csv")
    assert groups["group"].nunique() == 10
    [command] = [shlex.split(line) for line in found.err.splitlines() if line.startswith("  vitrail train")]
    assert "--data.scale" in command
    assert "[blue, green, red, red edge, nir]" in command
    again = _do(capsys, "data", "audit", *command[2:]).out
    assert re.search(r"duplicates across splits\s+0\b", again)
    assert "each of 10 groups lies in one split" in again


def test_the_audit_of_a_run_prints_a_command_with_the_runs_bands(tiles, capsys):
    _do(capsys, "train", *tiles, *TINY, "--run.dir", "r")
    found = _do(capsys, "data", "audit", "--run", "r", "--groups", "groups.csv")
    [command] = [shlex.split(line) for line in found.err.splitlines() if line.startswith("  vitrail train")]
    assert command[2] == "r/recipe.yaml"
    _do(capsys, *command[1:])
    assert "[blue" not in " ".join(command)
