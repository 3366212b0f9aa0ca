"""Ratios of times of a suite's variants, from models timed in turn."""

import pytest

from tests.compare.runs import finish
from vitrail.compare import load_suite, plan, timing
from vitrail.compare.findings import sentences
from vitrail.compare.results import tabulate
from vitrail.errors import ConfigError
from vitrail.models import create_model


def test_the_larger_model_takes_longer(place, monkeypatch):
    suite = load_suite(place(variants={"small": {}, "deep": {"model.depth": 1}}, seeds=2, speed=True))
    runs = plan(suite)
    for run in runs:
        finish(run)
    depths = {str(run.folder.path): 1 if run.variant == "small" else 8 for run in runs}

    def build(self):
        return create_model("vit", img_size=8, patch_size=4, embed_dim=32, num_heads=2, depth=depths[self.name],
                            num_classes=3)  # fmt: skip

    monkeypatch.setattr(timing.Subject, "build", build)
    monkeypatch.setattr(timing, "_LEAST", 0.01)
    tables = timing.add_time_ratios(tabulate(suite, runs), runs)
    row = tables.pairs.iloc[0]
    assert (row["a"], row["b"]) == ("small", "deep")
    assert row["time_low"] < row["time_ratio"] < row["time_high"]
    assert row["time_ratio"] < 0.5
    assert "small takes 0." in " ".join(sentences(suite, tables))
    # Nothing done, nothing timed.
    empty = load_suite(place(name="none.yaml", runs_dir="nothing"))
    assert timing.add_time_ratios(tabulate(empty, plan(empty)), plan(empty)).pairs.empty


def test_speed_is_true_or_false(place):
    with pytest.raises(ConfigError, match="speed must be true or false, got 'fast'"):
        load_suite(place(speed="fast"))
