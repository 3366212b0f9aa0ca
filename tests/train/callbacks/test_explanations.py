"""Explaining images while a model is trained: pictures and events are written, and training is what it was."""

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.train.test_exact_resume import _interrupted, assert_same_end
from tests.train.test_training import recipe
from vitrail.errors import ConfigError
from vitrail.train import pretrain, train

pytestmark = pytest.mark.usefixtures("probes")


def _recipe(folder, **changes):
    small = {"trainer__max_epochs": 2, "data__batch_size": 400, "data__augment": "strong"}
    return recipe(folder, **{**small, **changes})


@pytest.fixture
def glimpses(monkeypatch):
    """The explanations that are to be drawn; the files hold the epoch alone."""
    recorded = []

    def record(glimpse, out):
        recorded.append(glimpse)
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), glimpse.epoch, dtype=np.uint8)).save(out, "PNG")

    monkeypatch.setattr("vitrail.train.callbacks.explanations.draw_glimpse", record)
    return recorded


@pytest.mark.fast_cases("probe_random-{}")
@pytest.mark.parametrize(
    ("method", "trainer"), [("probe_random", {}), ("probe_signed", {"trainer__ema_decay": 0.9})], ids=str
)
def test_training_is_bit_for_bit_the_same(tmp_path, method, trainer, glimpses):
    plain = train(_recipe(tmp_path / "plain", **trainer))
    settings = {"run__explain_images": 3, "run__explain_every": 1, "run__explain_method": method}
    explained = train(_recipe(tmp_path / "explained", **settings, **trainer))
    assert_same_end(explained, plain)
    assert [glimpse.epoch for glimpse in glimpses] == [1, 2]
    assert all(explained.explanation(epoch).is_file() for epoch in (1, 2))
    first, second = glimpses
    assert torch.equal(first.streams["image"], second.streams["image"])
    assert first.titles == ["0", "1", "2"]
    if method == "probe_signed":
        assert first.explanation.target.tolist() == [0, 1, 2]  # its own class, also where another is predicted
        assert not torch.equal(first.explanation.map, second.explanation.map)


def test_the_kept_average_is_explained(tmp_path, glimpses):
    """Of the last epoch: what the kept weights give, not those that are being trained."""
    settings = {"run__explain_images": 2, "run__explain_method": "probe_signed", "trainer__ema_decay": 0.9,
                "trainer__max_epochs": 1}  # fmt: skip
    run = train(_recipe(tmp_path / "x", **settings))
    from vitrail.explain import explain
    from vitrail.runs import load_trained

    trained = load_trained(run)
    (glimpse,) = glimpses
    expected = explain(trained.model, trained.normalize(glimpse.streams), "probe_signed", [0, 1])
    assert torch.allclose(glimpse.explanation.map, expected.map, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("glimpses")
def test_resuming_stays_exact(tmp_path, monkeypatch):
    settings = {"run__explain_images": 2, "run__explain_every": 1}
    whole = train(_recipe(tmp_path / "whole"))
    with monkeypatch.context() as patched:
        patched.setattr("tests.train.test_exact_resume.train", lambda r: train(r))
        _interrupted(_recipe(tmp_path / "part", **settings), monkeypatch, epoch=1, step=1)
    again = train(_recipe(tmp_path / "part", **settings), resume=True)
    assert_same_end(again, whole)
    # Whether to look on may change when a run goes on.
    more = {"trainer__max_epochs": 3, "run__explain_images": 0}
    assert len(train(_recipe(tmp_path / "part", **more), resume=True).read_metrics()) == 3


def test_the_last_epoch_is_drawn_when_training_stops_early(tmp_path, monkeypatch, glimpses):
    monkeypatch.setattr(EarlyStopping, "_evaluate_stopping_criteria", lambda self, current: (True, "enough"))
    settings = {"run__explain_images": 2, "run__explain_every": 5, "run__explain_method": "probe_random",
                "trainer__max_epochs": 4, "trainer__early_stopping_patience": 1}  # fmt: skip
    run = train(_recipe(tmp_path / "x", **settings))
    assert [glimpse.epoch for glimpse in glimpses] == [len(run.read_metrics())] == [1]


@pytest.mark.slow
def test_pictures_and_events(tmp_path):
    settings = {"run__explain_images": 3, "run__explain_every": 2, "run__tensorboard": True}
    run = train(_recipe(tmp_path / "x", trainer__max_epochs=3, **settings))
    there = sorted(file.name for file in run.explanation(0).parent.iterdir())
    assert there == ["epoch_002.png", "epoch_003.png"]
    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    images = events.Images("explanations")
    assert [image.step for image in images] == [2, 3]
    with Image.open(run.explanation(3)) as picture:
        assert (images[1].width, images[1].height) == picture.size


@pytest.mark.slow
def test_pretraining_too(tmp_path, glimpses):
    content = {"run__explain_images": 2, "task__name": "simmim", "data__augment": "none", "trainer__max_epochs": 1}
    with_it = pretrain(_recipe(tmp_path / "x", **content))
    without = pretrain(_recipe(tmp_path / "y", **{**content, "run__explain_images": 0}))
    assert len(glimpses) == 1
    a, b = load_file(with_it.weights), load_file(without.weights)
    assert all(torch.equal(a[key], b[key]) for key in a)
    mine, theirs = (
        pd.read_csv(run.metrics).drop(columns=["train_images_per_second", "epoch_seconds"])
        for run in (with_it, without)
    )
    pd.testing.assert_frame_equal(mine, theirs)
    with pytest.raises(ConfigError, match="class"):
        pretrain(_recipe(tmp_path / "z", **content, run__explain_method="probe_signed"))
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run__explain_method": "rolout"}, "did you mean 'rollout'"),
        ({"run__explain_method": "probe_refused"}, "fits no model"),
        ({"run__explain_images": 33}, "from 0 to 32"),
        ({"run__explain_every": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_begins(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        train(_recipe(tmp_path / "x", **{"run__explain_images": 2, **settings}))
    assert not (tmp_path / "x").exists()
