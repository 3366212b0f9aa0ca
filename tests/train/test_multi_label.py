"""Several labels an image, from the table to predictions; balanced sampling."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from vitrail.cli.main import main
from vitrail.cli.recipes import make_recipe
from vitrail.config import DataConfig
from vitrail.config.changes import apply_changes
from vitrail.data import open_data
from vitrail.data.sampling import EpochShuffle, balancing_weights
from vitrail.data.splits import rarest_label
from vitrail.errors import ConfigError
from vitrail.runs import RunFolder
from vitrail.train import train

COLORS = {"blue": (2, 200), "green": (1, 200), "red": (0, 200)}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Each label lights one band; some images have none, some have all."""
    folder = tmp_path_factory.mktemp("several")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        labels = [name for name in COLORS if rng.random() < (0.3 if name == "red" else 0.5)]
        pixels = rng.integers(0, 60, (12, 12, 3))
        for name in labels:
            band, level = COLORS[name]
            pixels[..., band] += level - 60
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append({"path": f"{number}.png", "label": " | ".join(labels)})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def _recipe(table, folder, **changes):
    content = {
        "data": {"source": "table", "path": str(table), "table": {"label_separator": "|"}, "img_size": 8,
                 "batch_size": 16, "loader": {"num_workers": 0}},
        "model": {"name": "vit", "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
        "task": {"loss": "bce", "label_smoothing": 0.0},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "precision": "32-true", "monitor": "val_map"},
        "run": {"dir": str(folder), "tensorboard": False},
    }  # fmt: skip
    layer = {name.replace("__", "."): value for name, value in changes.items()}
    return make_recipe(apply_changes(content, layer))


def test_labels_are_read_and_every_label_gets_its_share(table):
    data = open_data(_recipe(table, "x").data, (8, 8))
    rows = pd.read_csv(table, keep_default_na=False)
    assert data.source.classes == ("blue", "green", "red")
    for i, label in enumerate(rows["label"]):
        place = data.source.keys.index(f"{i}.png")
        assert [data.source.classes[k] for k in np.flatnonzero(data.source.targets[place])] == sorted(
            part.strip() for part in label.split("|") if part.strip()
        )
    share = data.source.targets[data.indices("test")].mean(0)
    assert np.abs(share - data.source.targets.mean(0)).max() < 0.15
    batch = next(iter(data.loader("val")))
    assert batch["target"].dtype == torch.float32
    assert batch["target"].shape[1] == 3


@pytest.mark.slow
def test_the_whole_way(table, tmp_path, capsys):
    settings = {"trainer__max_epochs": 25, "trainer__learning_rate": 5e-3, "trainer__warmup_epochs": 0.0}
    run = train(_recipe(table, tmp_path / "run", **settings, data__augmentation={"mixup": 0.3, "mix_probability": 0.3}))
    assert run.read_metrics()["val_map"].max() > 0.95
    assert main(["evaluate", str(run), "--split", "test"]) == 0
    assert "mean average precision" in capsys.readouterr().out
    metrics = json.loads((run.evaluation / "metrics.json").read_text())
    predictions = run.read_predictions("test")
    targets, logits = (np.stack(predictions[name].tolist()) for name in ("target", "logits"))
    assert metrics["map"] == pytest.approx(average_precision_score(targets, logits, average="macro"))
    assert metrics["f1_macro"] == pytest.approx(f1_score(targets, logits > 0, average="macro"))
    assert metrics["accuracy"] == pytest.approx((targets == (logits > 0)).all(1).mean())
    p = 1 / (1 + np.exp(-logits.astype(float)))
    assert metrics["nll"] == pytest.approx(-(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean())
    assert metrics["map"] > 0.9
    assert not (run.evaluation / "confusion.csv").exists()
    assert main(["predict", str(run), str(table.parent / "0.png"), str(table.parent / "1.png"), "--top-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("path,labels,class,probability,class_2")


@pytest.mark.slow
def test_the_page(table, tmp_path, capsys):
    run = train(_recipe(table, tmp_path / "run", trainer__max_epochs=1))
    assert main(["evaluate", str(run), "--split", "test"]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    capsys.readouterr()
    page = (tmp_path / "page.html").read_text()
    assert "in all their labels" in page
    assert "images are multi-label" in page


def test_losses_and_labels_must_fit(table, tmp_path):
    with pytest.raises(ConfigError, match="the data is multi-label; use bce"):
        train(_recipe(table, tmp_path / "x", task__loss="focal"))
    with pytest.raises(ConfigError, match="the data is single-label; use cross_entropy"):
        train(make_recipe({"task": {"loss": "bce"}, "model": {"name": "vit", "img_size": 8, "patch_size": 4}}))
    with pytest.raises(ConfigError, match=r"val_balanced_accuracy.*multi-label"):
        train(_recipe(table, tmp_path / "x", trainer__monitor="val_balanced_accuracy"))
    with pytest.raises(ConfigError, match="left out but for tables"):
        DataConfig(table={"label_separator": ";"})
    assert not (tmp_path / "x").exists()


def test_rare_classes_come_as_often_as_frequent_ones():
    rng = np.random.default_rng(1)
    targets = rng.choice(4, size=1000, p=[0.7, 0.2, 0.08, 0.02])
    weights = balancing_weights(targets)
    seen = np.zeros(1000, dtype=int)
    for epoch in range(3):
        sampler = EpochShuffle(1000, 5, weights=weights)
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) == 1000
        counts = np.bincount(order, minlength=1000)
        assert np.abs(np.bincount(targets[order]) - 250).max() <= 2
        # No image comes more often than any other of its class, but for one.
        for k in range(4):
            assert np.ptp(counts[targets == k]) <= 1
        seen += counts
    frequent = seen[targets == 0]
    assert len(set(frequent)) > 1  # another choice in each epoch
    first, again, other = (EpochShuffle(1000, seed, weights=weights) for seed in (5, 5, 6))
    assert list(first) == list(again) != list(other)
    # Processes share the batches that one would see.
    alone = np.array(list(EpochShuffle(1000, 5, share=50, weights=weights))).reshape(-1, 50)
    parts = [np.array(list(EpochShuffle(1000, 5, 25, r, 2, weights))).reshape(-1, 25) for r in range(2)]
    assert (np.concatenate(parts, axis=1) == alone).all()


def test_of_several_labels_the_rarest_counts():
    targets = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]])
    assert rarest_label(targets).tolist() == [0, 1, 2, 3, 0]
    assert balancing_weights(targets).tolist() == [0.5, 1, 1, 1, 0.5]


def test_balanced_training_is_in_the_run(table, tmp_path):
    run = train(
        _recipe(
            table,
            tmp_path / "x",
            data__loader__sampling="balanced",
            trainer__max_epochs=1,
            task__class_weights="balanced",
        )
    )
    assert "sampling: balanced" in RunFolder.open(run.path).recipe.read_text()
