"""Point clouds by the command line: training, evaluation on rotations."""

import csv
import json

import pytest

from vitrail.cli.main import main

SMALL = [
    "--data.source", "solids", "--data.points.num_clouds", "60", "--data.batch_size", "12", "--trainer.max_epochs", "1",
    "--model.num_points", "24", "--model.num_neighbors", "4", "--run.dir", "run",
]  # fmt: skip
VNT = ["--model.name", "vnt", "--model.embed_dim", "8", "--model.depth", "1", "--model.num_heads", "2",
       "--model.head_hidden_size", "8"]  # fmt: skip


def test_trained_and_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *VNT, *SMALL, "--data.points.turn", "up"]) == 0
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["settings"]["num_points"] == 24
    assert card["streams"]["points"]["bands"] == ["x", "y", "z"]
    assert "24 points" in capsys.readouterr().err
    assert main(["evaluate", "run", "--rotations"]) == 0
    out = capsys.readouterr().out
    assert "z/SO(3)" in out
    with (tmp_path / "run" / "evaluation" / "rotations.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["rotations"] for row in rows] == ["z/as is", "z/z", "z/SO(3)"]
    assert len({row["accuracy"] for row in rows}) == 1
    recorded = json.loads((tmp_path / "run" / "evaluation" / "robustness.json").read_text())["rotations"]
    assert recorded["deviation_of_logits"] < 1e-3
    assert (tmp_path / "run" / "evaluation" / "mistakes.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.name", "vit_tiny_patch16_224", "--data.source", "solids"], "has point clouds"),
        (["--model.name", "vnt_tiny", "--data.source", "digits"], "takes point clouds"),
        ([*VNT, *SMALL, "--data.augment", "light"], "data.augment light changes images"),
    ],
)
def test_refused(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *options]) == 2
    assert message in capsys.readouterr().err
