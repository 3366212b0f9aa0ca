"""What is frozen stays as it was; the rest moves."""

import pytest
import torch
from safetensors.torch import load_file

from tests.tiers import fast_first
from tests.weights.models import build
from vitrail.cli.recipes import make_recipe
from vitrail.runs import load_trained
from vitrail.train import train
from vitrail.train.callbacks.freezing import Freezing, freeze


@pytest.mark.parametrize(
    ("every", "expected"), [(0, [1, 1, 5, 5, 5, 5, 5]), (1, [1, 1, 2, 3, 4, 5, 5]), (2, [1, 1, 2, 2, 3, 3, 4])]
)
def test_groups_are_freed_from_the_classifier_back(every, expected):
    callback = Freezing(2, every)
    assert [callback.trained_groups(epoch, 5) for epoch in range(7)] == expected


def _trained(folder, family, **trainer):
    shape = {
        "vit": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
        "maxvit": {"stem_width": 8, "embed_dim": (8, 16), "depths": (1, 1), "dim_head": 8, "window_size": 2},
    }[family]
    return train(
        make_recipe(
            {
                "data": {"batch_size": 200, "loader": {"num_workers": 0}},
                "model": {"name": family, "img_size": 8, **shape},
                "trainer": {"accelerator": "cpu", "precision": "32-true", "monitor": "val_loss", **trainer},
                "run": {"dir": str(folder), "tensorboard": False},
            }
        )
    )


@pytest.mark.parametrize("family", fast_first(["vit", "maxvit"], 1))
def test_only_the_classifier_moves_at_first(tmp_path, family):
    runs = [_trained(tmp_path / str(n), family, max_epochs=n, freeze_epochs=n) for n in (1, 3)]
    first, later = (torch.load(run.last_checkpoint, weights_only=True)["state_dict"] for run in runs)
    model = {name.removeprefix("task.model."): name for name in first if name.startswith("task.model.")}

    head = set(load_trained(runs[0]).model.layer_groups()[-1])
    moved = {name for name, key in model.items() if not torch.equal(first[key], later[key])}
    assert moved
    assert moved <= head


@pytest.mark.slow
def test_later_everything_moves_and_the_end_is_the_same_after_a_stop(tmp_path):
    whole = _trained(tmp_path / "whole", "maxvit", max_epochs=2, freeze_epochs=1)
    part = _trained(tmp_path / "part", "maxvit", max_epochs=2, freeze_epochs=1)
    a, b = load_file(whole.weights), load_file(part.weights)
    assert all(torch.equal(a[k], b[k]) for k in a)
    start = _trained(tmp_path / "start", "maxvit", max_epochs=1, freeze_epochs=1)
    c = load_file(start.weights)
    assert sum(not torch.equal(a[k], c[k]) for k in a) > len(a) // 4


def test_frozen_statistics_stay():
    model = build("maxvit", 1).train()
    groups = model.layer_groups()
    freeze(model, [name for group in groups[:-1] for name in group])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(torch.rand(4, *(model.streams[0].chans, *model.streams[0].size)))
    frozen = {n for g in groups[:-1] for n in g}
    for name, value in model.state_dict().items():
        if f"{name.rsplit('.', 1)[0]}.weight" in frozen:
            assert torch.equal(value, before[name]), name
    freeze(model, [])
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
