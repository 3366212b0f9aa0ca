"""Point clouds by the command line: training, evaluation on rotations."""

import csv
import json

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from vitrail.cli.main import main
from vitrail.config import DataConfig, ModelConfig, Recipe, TaskConfig, TrainerConfig
from vitrail.config.data_groups import PointsConfig
from vitrail.train.supervised import PartsBuilder

SMALL = [
    "--data.source", "solids", "--data.points.num_clouds", "60", "--data.batch_size", "12", "--trainer.max_epochs", "1",
    "--model.num_points", "24", "--model.num_neighbors", "4", "--run.dir", "run",
]  # fmt: skip
VNT = ["--model.name", "vnt", "--model.embed_dim", "8", "--model.depth", "1", "--model.num_heads", "2",
       "--model.head_hidden_size", "8"]  # fmt: skip
PARTS = ["--task.name", "parts", "--data.points.part", "surface"]


@pytest.mark.parametrize("name", ["classification", "parts", "mae"])
def test_the_best_epoch_of_parts_is_that_of_the_highest_miou(name):
    task = TaskConfig(name=name)
    assert Recipe(task=task).trainer.monitor == ("val_miou" if name == "parts" else "val_accuracy")
    assert Recipe(task=task, trainer=TrainerConfig(monitor="val_loss")).trainer.monitor == "val_loss"


@pytest.mark.parametrize("weighted", [True, False])
def test_balanced_parts_are_weighted_by_their_points(weighted, monkeypatch):
    points = PointsConfig(num_clouds=60, num_points=24, part="surface")
    task = TaskConfig(name="parts", class_weights="balanced" if weighted else "none")
    recipe = Recipe(data=DataConfig(source="solids", points=points), model=ModelConfig("vnt"), task=task)
    builder = PartsBuilder()
    data = builder.open_images(recipe, None)
    parts = data.source.read(data.indices("train"))["parts"].flatten()
    found = np.unique(parts[parts >= 0])
    if weighted:
        wanted = compute_class_weight("balanced", classes=found, y=parts[parts >= 0].numpy())
        np.testing.assert_allclose(builder.criterion(recipe.task, data).class_weights, wanted, rtol=1e-6)
    else:  # nothing is read for weights that nobody asked for
        monkeypatch.setattr(data.source, "read", None)
        assert builder.criterion(recipe.task, data).class_weights is None


@pytest.mark.slow
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
        ([*VNT, *SMALL, "--task.name", "parts"], "task.name parts needs labels of points: set data.points.part"),
        ([*VNT, *SMALL, "--data.points.part", "surface"], "requires task.name parts, got task.name classification"),
        (
            [*VNT, *SMALL, *PARTS, "--data.points.features", "[surface]"],
            "data.points.features ['surface'] has the labels of points (data.points.part 'surface')",
        ),
        ([*VNT, *SMALL, "--trainer.monitor", "val_miou"], "is not measured with task.name classification"),
        ([*VNT, *SMALL, *PARTS, "--trainer.early_stopping_monitor", "val_map"], "is not measured on single-label data"),
        ([*VNT, *SMALL, "--model.per_point", "true"], "model.per_point True does not fit task.name classification"),
        (["--model.name", "vit_tiny_patch16_224", "--data.source", "digits", "--task.name", "parts"], "parts needs"),
        (["--model.name", "vit_tiny_patch16_224", "--data.source", "solids"], "has point clouds"),
        (["--model.name", "vnt_tiny", "--data.source", "digits"], "takes point clouds"),
        ([*VNT, *SMALL, "--data.augment", "light"], "data.augment light changes images"),
    ],
)
def test_refused(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *options]) == 2
    assert message in capsys.readouterr().err
