"""Training that ends by the clock."""

import pytest
from lightning.pytorch.callbacks import Timer

from vitrail.cli.recipes import make_recipe
from vitrail.errors import ConfigError
from vitrail.train import train


def _recipe(folder, **trainer):
    return make_recipe(
        {
            "data": {
                "source": "digits",
                "batch_size": 64,
                "loader": {"num_workers": 0},
                "splitting": {"test_fraction": 0.5},
            },
            "model": {"name": "vit", "img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
            "trainer": {
                "max_epochs": 1000,
                "accelerator": "cpu",
                "precision": "32-true",
                "warmup_epochs": 0,
                **trainer,
            },
            "run": {"dir": str(folder), "tensorboard": False},
        }
    )


def test_the_clock_ends_training_and_brings_the_learning_rate_down(tmp_path, monkeypatch):
    ticks = iter(range(10_000))
    seconds = {}

    def elapsed(self, stage="train"):
        # A clock of steps: a second each time that anybody looks.
        return seconds.setdefault(next(ticks), float(len(seconds)))

    monkeypatch.setattr(Timer, "time_elapsed", elapsed)
    recipe = _recipe(tmp_path / "run", max_minutes=0.5)
    run = train(recipe)
    rows = run.read_metrics()
    assert len(rows) < 10
    assert "val_accuracy" in rows
    assert rows["learning_rate"].iloc[-1] < 0.1 * recipe.trainer.peak_learning_rate
    assert run.finished
    assert (rows["epoch_seconds"] > 0).all()
    assert (rows["train_images_per_second"] < 1e7).all()  # also of the epoch that did not come to its end


def test_without_a_clock_there_is_none(tmp_path):
    run = train(_recipe(tmp_path / "run", max_epochs=1))
    assert len(run.read_metrics()) == 1
    assert run.finished
    with pytest.raises(ConfigError, match="max_minutes must be at least 0"):
        _recipe(tmp_path, max_minutes=-1)
