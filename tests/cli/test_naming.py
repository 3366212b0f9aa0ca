"""Errors and warnings about data name the inputs of a command by what they are."""

import json
import sys
import warnings

import pytest

from vitrail.cli import data as data_verb
from vitrail.cli.main import main
from vitrail.cli.naming import name_inputs
from vitrail.errors import ConfigError, DataError, DataWarning

TEXT = "1 image has no group; images of a/image.png are grouped by data.images.x"
CLIPS = "1 clip has no group; clips of a/image.png are grouped by data.images.x"
INPUTS = "1 input has no group; inputs of a/image.png are grouped by data.images.x"
CLOUDS = "1 point cloud has no group; point clouds of a/image.png are grouped by data.images.x"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data.source", "videos"], CLIPS), (["--data.source=solids", "--data.path", "x"], CLOUDS),
        (["--data.source", "folder"], TEXT), (["--data.path", "x"], TEXT), (["--data.source"], TEXT),
        (["clips.yaml"], CLIPS), (["clips.yaml", "--data.source", "points"], CLOUDS), (["suite.yaml"], CLIPS),
        (["broken.yaml"], TEXT), (["absent.yaml"], TEXT), (["run"], CLOUDS), (["run", "pictures"], INPUTS),
    ],
)  # fmt: skip
def test_inputs_are_named_by_the_arguments(tmp_path, monkeypatch, words, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips.yaml").write_text("data:\n  source: videos\n")
    (tmp_path / "suite.yaml").write_text("recipe: clips.yaml\nvariants: {}\n")
    (tmp_path / "broken.yaml").write_text("data: [")
    for name, stream in (("run", "points"), ("pictures", "image")):
        (tmp_path / name).mkdir()
        card = {"streams": {stream: {"bands": [], "mean": [], "std": []}}, "classes": ["a", "b"]}
        (tmp_path / name / "model.json").write_text(json.dumps(card))
    assert name_inputs(TEXT, words) == named


def test_the_command_names_inputs_in_errors_and_warnings(monkeypatch, capsys):
    def fail(argv):
        # Written as a warning is: pytest collects warnings themselves.
        print(warnings.formatwarning("1 image is black", DataWarning, "", 0), file=sys.stderr)
        raise DataError(TEXT)

    monkeypatch.setattr(data_verb, "main", fail)
    assert main(["data", "audit", "--data.source", "videos"]) == 1
    err = capsys.readouterr().err
    assert "warning: 1 clip is black" in err
    assert f"vitrail: error: {CLIPS}" in err


def test_errors_of_usage_keep_the_kinds_that_they_name(monkeypatch, capsys):
    def fail(argv):
        raise ConfigError("--corruptions takes images, not clips")

    monkeypatch.setattr(data_verb, "main", fail)
    assert main(["data", "audit", "--data.source", "videos"]) == 2
    assert "takes images, not clips" in capsys.readouterr().err
