"""The losses against torch's own and against formulas written out."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from vitrail.tasks.losses import (
    ClassificationLoss,
    MultiLabelLoss,
    balanced_positive_weights,
    balanced_weights,
)


def _case(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    batch, classes = rng.randint(2, 9), rng.randint(2, 7)
    return torch.randn(batch, classes, requires_grad=True), torch.randint(classes, (batch,)), torch.rand(classes) + 0.1


@pytest.mark.parametrize("seed", range(6))
def test_focal_loss_is_the_papers(seed):
    logits, target, _ = _case(seed)
    gamma = random.Random(seed).uniform(0.5, 4)
    true = logits.softmax(1)[range(len(target)), target]
    expected = (-((1 - true) ** gamma) * true.log()).mean()
    assert torch.allclose(ClassificationLoss(focal_gamma=gamma)(logits, target), expected, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_focal_loss_without_power_is_cross_entropy(seed, weighted):
    logits, target, weights = _case(seed)
    weights = weights if weighted else None
    smoothing = random.Random(seed).choice([0.0, 0.1, 0.3])
    expected = F.cross_entropy(logits, target, weights, label_smoothing=smoothing)
    assert torch.allclose(ClassificationLoss(smoothing, 0.0, weights)(logits, target), expected, atol=1e-6)
    assert torch.allclose(ClassificationLoss(smoothing, 1e-12, weights)(logits, target), expected, atol=1e-5)


def test_evaluation_is_plain():
    logits, target, weights = _case(3)
    loss = ClassificationLoss(0.2, 2.0, weights).eval()
    assert torch.allclose(loss(logits, target), F.cross_entropy(logits, target))
    assert not loss.state_dict()


def test_a_certain_image_has_a_finite_gradient():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    ClassificationLoss(0.0, 0.5)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("seed", range(4))
def test_balanced_weights_are_scikit_learns(seed):
    torch.manual_seed(seed)
    target = torch.randint(5, (200,))
    target[target == 4] = 0
    weights = balanced_weights(target, 4)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=target.numpy())
    assert weights.tolist() == pytest.approx(expected.tolist())
    assert weights[target].mean().item() == pytest.approx(1.0)
    assert balanced_weights(target, 6)[5] == 0


@pytest.mark.parametrize("gamma", [0.0, 1.7])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.fast_cases("0-False-1.7", "0-True-0.0")
def test_shares_of_one_class_are_that_class(seed, weighted, gamma):
    logits, target, weights = _case(seed)
    smoothing = random.Random(seed).choice([0.0, 0.2])
    loss = ClassificationLoss(smoothing, gamma, weights if weighted else None)
    hard = F.one_hot(target, logits.shape[1]).float()
    assert torch.allclose(loss(logits, hard), loss(logits, target), atol=1e-5)
    # With shares, the loss is their mean of the losses of the classes, where classes weigh alike.
    if not weighted and not smoothing:
        shares = torch.rand_like(logits).softmax(1)
        each = [loss(logits[i : i + 1], torch.tensor([k])) for i in range(len(logits)) for k in range(logits.shape[1])]
        expected = (torch.stack(each).view_as(shares) * shares).sum(1).mean()
        assert torch.allclose(loss(logits, shares), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_several_labels(seed):
    torch.manual_seed(seed)
    logits, target = torch.randn(40, 4), (torch.rand(40, 4) < 0.3).float()
    target[:, 3] = 0
    weights = balanced_positive_weights(target)
    loss = MultiLabelLoss(0.1, weights)
    p = logits.sigmoid()
    wanted = target * 0.9 + 0.05
    expected = -(weights * wanted * p.log() + (1 - wanted) * (1 - p).log()).mean()
    assert torch.allclose(loss(logits, target), expected, atol=1e-5)
    plain = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert torch.allclose(loss.eval()(logits, target), plain, atol=1e-5)
    assert weights[3] == 1
    for k in range(3):  # labels that are there weigh as much as labels that are not
        assert (weights[k] * target[:, k]).sum() == pytest.approx((1 - target[:, k]).sum().item(), rel=1e-5)
