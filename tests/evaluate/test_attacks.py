"""Attacks stay in the ball and in 0..1, and raise the loss; also of two streams and several labels."""

import pytest
import torch
import torch.nn.functional as F

from tests.evaluate.test_tta import _trained
from vitrail.data.sources.edges import edges
from vitrail.errors import ConfigError
from vitrail.evaluate.attacks import EPSILONS, check_epsilons, fgsm, losses, pgd
from vitrail.models import create_model
from vitrail.runs import ModelCard, StreamCard, TrainedModel


def _batch(several, count=6):
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.rand(count, 2, 16, 16, generator=generator),
        "spectral": torch.rand(count, 1, 16, 16, generator=generator),
    }
    if several:
        return batch, (torch.rand(count, 5, generator=generator) < 0.5).float()
    return batch, torch.arange(count) % 5


@pytest.mark.fast_cases("0.1-;")
@pytest.mark.parametrize("separator", [None, ";"])
@pytest.mark.parametrize("epsilon", [1 / 255, 0.1, 0.8])
def test_attacks_stay_inside_and_raise_the_loss(separator, epsilon):
    trained = _trained(separator)
    batch, target = _batch(separator is not None)
    before = losses(trained, batch, target)[1].detach()
    fast, strong = fgsm(trained, batch, target, epsilon), pgd(trained, batch, target, epsilon)
    for changed in (fast, strong):
        assert set(changed) == {"image", "spectral"}
        for name, x in changed.items():
            assert (x - batch[name]).abs().max() <= epsilon + 1e-6
            assert x.min() >= 0
            assert x.max() <= 1
            assert (x != batch[name]).any()
    after = losses(trained, strong, target)[1].detach()
    assert (after >= before - 1e-5).all()
    assert after.mean() > before.mean()
    if epsilon <= 0.1:
        assert losses(trained, fast, target)[1].detach().mean() > before.mean()
        assert after.mean() >= losses(trained, fast, target)[1].detach().mean() - 1e-4
    assert all(p.grad is None for p in trained.model.parameters())
    again = pgd(trained, batch, target, epsilon)
    assert all(torch.equal(again[name], strong[name]) for name in strong)


def test_the_loss_is_the_models_own():
    trained = _trained()
    batch, target = _batch(False)
    logits, loss = losses(trained, batch, target)
    assert torch.allclose(logits, trained.classify(batch)[0], atol=1e-5)
    assert torch.allclose(loss, F.cross_entropy(logits, target, reduction="none"))


def test_edges_follow_the_image():
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
    settings |= {"num_classes": 3, "in_chans": 3, "spectral_chans": 2}
    streams = {
        "image": StreamCard(tuple("rgb"), (0.5,) * 3, (0.2,) * 3, (16, 16)),
        "spectral": StreamCard(("edge_x", "edge_y"), (0.5,) * 2, (0.1,) * 2, (16, 16)),
    }
    card = ModelCard("hvt", settings, tuple("abc"), streams, spectral="edges")
    trained = TrainedModel(create_model("hvt", **settings).eval(), card.normalization(), card)
    image = torch.rand(4, 3, 16, 16)
    batch = {"image": image, "spectral": edges(image)}
    changed = pgd(trained, batch, torch.tensor([0, 1, 2, 0]), 0.05, steps=3)
    assert set(changed) == {"image"}
    expected = trained.classify({**changed, "spectral": edges(changed["image"])})[0]
    assert torch.allclose(losses(trained, changed, torch.tensor([0, 1, 2, 0]))[0], expected, atol=1e-5)


def test_sizes():
    assert check_epsilons([]) == EPSILONS
    assert check_epsilons([0.1, 0.05, 0.1]) == (0.05, 0.1)
    with pytest.raises(ConfigError, match=r"8 of 255 is 0\.0314"):
        check_epsilons([8])
