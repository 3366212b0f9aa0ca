"""Metrics against torchmetrics and closed forms; intervals against their definition."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

from vitrail.errors import DataError
from vitrail.evaluate.confusion import confusion_table
from vitrail.evaluate.metrics import (
    accuracy_interval,
    classification_metrics,
    per_class_table,
)


@pytest.mark.parametrize("seed", range(6))
def test_equals_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    classes = [f"c{i}" for i in range(rng.integers(2, 12))]
    n, k = int(rng.integers(30, 300)), len(classes)
    logits = rng.normal(size=(n, k)).astype(np.float32)
    targets = rng.integers(0, k, n)
    logits[np.arange(n), targets] += 1.0
    metrics = classification_metrics(logits, targets, classes)
    scores, labels = torch.from_numpy(logits), torch.from_numpy(targets)
    assert metrics["accuracy"] == pytest.approx(multiclass_accuracy(scores, labels, k, average="micro").item())
    assert metrics["balanced_accuracy"] == pytest.approx(multiclass_accuracy(scores, labels, k).item(), abs=1e-6)
    assert metrics["f1_macro"] == pytest.approx(multiclass_f1_score(scores, labels, k).item(), abs=1e-6)
    assert metrics["nll"] == pytest.approx(torch.nn.functional.cross_entropy(scores, labels).item(), abs=1e-5)
    if k > 5:
        top = multiclass_accuracy(scores, labels, k, average="micro", top_k=5).item()
        assert metrics["top_5_accuracy"] == pytest.approx(top)
    counts = multiclass_confusion_matrix(scores, labels, k).numpy()
    assert np.array_equal(confusion_table(logits, targets, classes).to_numpy(), counts)
    table = per_class_table(logits, targets, classes)
    assert table["images"].tolist() == counts.sum(1).tolist()
    assert np.allclose(table["recall"], counts.diagonal() / np.maximum(counts.sum(1), 1))


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (7, 7), (353, 359), (12, 40)])
def test_wilson_interval_solves_its_equation(correct, total):
    low, high = accuracy_interval(correct, total)
    z = norm.ppf(0.975)
    for bound in (low, high):
        # The bounds are where the score test just rejects: (p - p0)^2 = z^2 p0 (1 - p0) / n.
        assert (correct / total - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / total, abs=1e-9)
    assert 0 <= low <= correct / total <= high <= 1


def test_absent_classes_do_not_count():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1]]
    metrics = classification_metrics(logits, np.array([0, 1, 1]), ["a", "b", "c"])
    assert metrics["f1_macro"] == metrics["balanced_accuracy"] == 1.0


def test_nothing_and_no_numbers_are_refused():
    with pytest.raises(DataError, match="no images"):
        classification_metrics(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), ["a", "b"])
    with pytest.raises(DataError, match="1 of 2 images"):
        classification_metrics(np.array([[0, np.nan], [0, 1]], np.float32), np.array([0, 1]), ["a", "b"])
