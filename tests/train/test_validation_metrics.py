"""Metrics of validation against those of ``vitrail evaluate``, on the same logits."""

import numpy as np
import pytest
import torch

from vitrail.evaluate.metrics import classification_metrics
from vitrail.evaluate.multi_label import multi_label_metrics
from vitrail.tasks.losses import ClassificationLoss, MultiLabelLoss
from vitrail.train.validation_metrics import make_metrics


def _updated(metrics, logits, targets, size):
    for start in range(0, len(logits), size):
        metrics.update(logits[start : start + size], targets[start : start + size])
    return metrics


def _merged(metrics, other):
    for name, metric in metrics.items(keep_base=True):
        metric.merge_state(other[name])
    return {name: float(value) for name, value in metrics.compute().items()}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.fast_cases("0", "2")
def test_one_class_an_image(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(3, 50)), int(rng.integers(2, 9))
    logits = (rng.normal(size=(n, k)) * 10 ** rng.uniform(-1, 2)).astype(np.float32)
    targets = rng.integers(0, max(1, k - int(rng.integers(0, 3))), n)  # some classes have no image, but are predicted
    expected = classification_metrics(logits, targets, [str(i) for i in range(k)])
    x, y = torch.from_numpy(logits), torch.from_numpy(targets)
    half = n // 2
    first, second = (make_metrics(k, False)[1] for _ in range(2))
    found = _merged(_updated(first, x[:half], y[:half], 4), _updated(second, x[half:], y[half:], 5))
    assert set(found) == {"val_accuracy", "val_balanced_accuracy", "val_f1_macro"}
    for name, value in found.items():
        assert value == pytest.approx(expected[name.removeprefix("val_")], abs=1e-6), name
    loss = ClassificationLoss(label_smoothing=0.1).eval()(x, y)
    assert float(loss) == pytest.approx(expected["nll"], rel=1e-5)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.fast_cases("0", "7")
def test_labels(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(3, 50)), int(rng.integers(2, 7))
    scale = 10 ** rng.uniform(-1, 2)  # probabilities of large logits are all 1
    logits = np.round(rng.normal(size=(n, k)) * scale, 1).astype(np.float32)
    targets = (rng.random((n, k)) < 0.4).astype(np.int64)
    targets[:, 0] = 0
    logits[:, 0] = -1  # neither occurs nor is predicted
    expected = multi_label_metrics(logits, targets, [str(i) for i in range(k)])
    x, y = torch.from_numpy(logits), torch.from_numpy(targets)
    first, second = (make_metrics(k, True)[1] for _ in range(2))
    half = n // 2
    found = _merged(_updated(first, x[:half], y[:half], 4), _updated(second, x[half:], y[half:], 5))
    assert set(found) == {"val_accuracy", "val_map", "val_f1_macro"}
    for name, value in found.items():
        assert value == pytest.approx(expected[name.removeprefix("val_")], abs=1e-6), name
    loss = MultiLabelLoss(label_smoothing=0.1).eval()(x, y.float())
    assert float(loss) == pytest.approx(expected["nll"], rel=1e-5)


def test_no_label_at_all():
    logits, targets = torch.full((4, 2), -1.0), torch.zeros(4, 2, dtype=torch.long)
    metrics = make_metrics(2, True)[1]
    metrics.update(logits, targets)
    expected = multi_label_metrics(logits.numpy(), targets.numpy(), ["a", "b"])
    for name, value in metrics.compute().items():
        assert float(value) == expected[name.removeprefix("val_")], name


def test_logits_that_are_no_numbers_leave_training_its_own_error():
    metrics = make_metrics(2, True)[1]
    metrics.update(torch.full((4, 2), torch.nan), torch.ones(4, 2, dtype=torch.long))
    assert torch.isnan(metrics.compute()["val_map"])
