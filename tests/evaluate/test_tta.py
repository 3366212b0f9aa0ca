"""Test-time augmentation: the mean probability over views, by hand."""

import json

import numpy as np
import pytest
import torch

from vitrail.cli.main import main
from vitrail.cli.recipes import make_recipe
from vitrail.data import open_data
from vitrail.data.augment.test_time import TURNED, VIEWS, tta_views
from vitrail.data.points.rotations import rotate_clouds
from vitrail.errors import ConfigError, ShapeError
from vitrail.models import create_model
from vitrail.runs import ModelCard, StreamCard, TrainedModel
from vitrail.train import train


def _trained(separator=None):
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
    settings = {**shape, "num_classes": 5, "in_chans": 2, "spectral_chans": 1}
    streams = {
        name: StreamCard(tuple("xy"[:n]), (0.5,) * n, (0.2,) * n, (16, 16))
        for name, n in (("image", 2), ("spectral", 1))
    }
    card = ModelCard("hvt", settings, tuple("abcde"), streams, label_separator=separator)
    model = create_model("hvt", **settings).eval()
    with torch.no_grad():
        model.head.weight.normal_(std=2.0)
    return TrainedModel(model, card.normalization(), card)


@pytest.mark.fast_cases("crops-;")
@pytest.mark.parametrize("separator", [None, ";"])
@pytest.mark.parametrize("name", VIEWS)
def test_probabilities_are_averaged(name, separator):
    trained = _trained(separator)
    batch = {"image": torch.rand(3, 2, 16, 16), "spectral": torch.rand(3, 1, 16, 16)}
    each = []
    for view in tta_views(name):
        logits = trained.classify({k: view(v) for k, v in batch.items()})[0]
        each.append(logits.sigmoid() if separator else logits.softmax(1))
    logits, embedding = trained.classify(batch, name)
    assert torch.allclose(trained.card.probabilities(logits), torch.stack(each).mean(0), atol=1e-5)
    assert embedding.shape == (3, 32)
    if name == "none":
        assert torch.equal(logits, trained.classify(batch)[0])


def test_a_tensor_alone_for_two_streams_is_refused():
    with pytest.raises(ShapeError, match=r"got a Tensor; pass \{'image': x, 'spectral': x\}"):
        _trained().classify(torch.rand(3, 2, 16, 16))


def test_views_are_what_they_are_called():
    x = torch.rand(2, 1, 16, 16)
    for name, count in {"mirror": 2, "flips": 4, "turns": 8}.items():
        seen = [view(x) for view in tta_views(name)]
        assert len(seen) == count == len({v.numpy().tobytes() for v in seen})
        assert all(torch.equal(v.flatten().sort().values, x.flatten().sort().values) for v in seen)
        # Of an image turned or mirrored that way, the views are the same ones.
        again = {v.numpy().tobytes() for v in (view(seen[-1]) for view in tta_views(name))}
        assert again == {v.contiguous().numpy().tobytes() for v in seen}
    crops = [view(x) for view in tta_views("crops")]
    assert [v.shape[2] for v in crops] == [16, 14, 14, 14, 14, 14]
    assert torch.equal(crops[4], x[:, :, 2:, 2:])
    assert torch.equal(crops[5], x[:, :, 1:15, 1:15])
    with pytest.raises(ConfigError, match="did you mean 'flips'"):
        tta_views("flip")


def test_clouds_are_turned_by_their_number():
    points = torch.randn(6, 10, 3)
    for turn in TURNED:
        turned = rotate_clouds(points, range(6), turn)
        assert torch.allclose(torch.cdist(turned, turned), torch.cdist(points, points), atol=1e-4)
        assert torch.equal(rotate_clouds(points[4:], [4, 5], turn), turned[4:])
        assert torch.allclose(turned[..., 2], points[..., 2]) == (turn == "up")
        assert not torch.allclose(turned[..., 0], points[..., 0], atol=0.1)
    assert rotate_clouds(points, range(6), "none") is points


def test_turned_clouds_are_classified():
    streams = {"points": StreamCard(("x", "y", "z"), (0.0,) * 3, (1.0,) * 3, (8,))}
    card = ModelCard("pointnet", {}, ("a", "b"), streams)
    model = create_model("pointnet", num_points=8, dims=(4, 4, 6), hidden_dims=(6, 4), num_classes=2).eval()
    trained = TrainedModel(model, card.normalization(), card)
    points = torch.randn(3, 8, 3)
    turned = rotate_clouds(points, [7, 8, 9], "so3")
    found = trained.classify({"points": points, "index": torch.tensor([7, 8, 9])}, "so3")
    assert all(map(torch.equal, found, trained.classify({"points": turned})))
    assert not torch.allclose(found[0], trained.classify(points)[0], atol=1e-4)


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys):
    recipe = make_recipe(
        {
            "data": {"loader": {"num_workers": 0}},
            "model": {"name": "vit", "img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
            "trainer": {"max_epochs": 1, "accelerator": "cpu", "precision": "32-true"},
            "run": {"dir": str(tmp_path / "run"), "tensorboard": False},
        }
    )
    run = train(recipe)
    assert main(["evaluate", str(run)]) == 0
    plain = (run.evaluation / "metrics.json").read_text()
    assert main(["evaluate", str(run), "--tta", "mirror"]) == 0
    assert (run.evaluation / "metrics.json").read_text() == plain
    metrics = json.loads((run.evaluation / "test-mirror" / "metrics.json").read_text())
    assert metrics["tta"] == "mirror"
    saved = np.stack(run.read_predictions("test-mirror")["logits"].tolist())
    data = open_data(recipe.data, (8, 8))
    assert len(saved) == len(data.indices("test"))
    assert np.allclose(np.exp(saved).sum(1), 1, atol=1e-5)
    assert (saved != np.stack(run.read_predictions("test")["logits"].tolist())).any()
    capsys.readouterr()
