"""Metrics against torchmetrics, scikit-learn and closed forms; intervals against their definition."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_average_precision,
    multiclass_cohen_kappa,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
    multiclass_precision,
    multiclass_recall,
    multilabel_auroc,
    multilabel_average_precision,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

from tests.tiers import fast_first
from vitrail.errors import DataError
from vitrail.evaluate.confusion import clustered, confusion_table, normalized_by_row
from vitrail.evaluate.metrics import (
    accuracy_interval,
    classification_metrics,
    log_odds,
    per_class_table,
)
from vitrail.evaluate.multi_label import multi_label_metrics, multi_label_table


@pytest.mark.parametrize("seed", fast_first(range(6), 2))
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
    for name, function in {
        "precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score,
    }.items():  # fmt: skip
        for average in ("macro", "micro", "weighted"):
            wanted = function(scores, labels, k, average=average).item()
            assert metrics[f"{name}_{average}"] == pytest.approx(wanted, abs=1e-6), (name, average)
    assert metrics["cohen_kappa"] == pytest.approx(multiclass_cohen_kappa(scores, labels, k).item(), abs=1e-6)
    assert metrics["mcc"] == pytest.approx(multiclass_matthews_corrcoef(scores, labels, k).item(), abs=1e-6)
    p = scores.double().softmax(1)
    assert metrics["roc_auc_macro"] == pytest.approx(multiclass_auroc(p, labels, k).item(), abs=1e-6)
    wanted = multiclass_average_precision(p, labels, k).item()
    assert metrics["average_precision_macro"] == pytest.approx(wanted, abs=1e-6)
    assert metrics["nll"] == pytest.approx(torch.nn.functional.cross_entropy(scores, labels).item(), abs=1e-5)
    one = torch.nn.functional.one_hot(labels, k)
    assert metrics["brier"] == pytest.approx(((p - one) ** 2).sum(1).mean().item(), abs=1e-6)
    for top in (2, 3, 5):
        assert (f"top_{top}_accuracy" in metrics) == (k > top)
        if k > top:
            wanted = multiclass_accuracy(scores, labels, k, average="micro", top_k=top).item()
            assert metrics[f"top_{top}_accuracy"] == pytest.approx(wanted)
    counts = multiclass_confusion_matrix(scores, labels, k).numpy()
    assert np.array_equal(confusion_table(logits, targets, classes).to_numpy(), counts)
    table = per_class_table(logits, targets, classes)
    assert table["images"].tolist() == counts.sum(1).tolist()
    assert table["predicted"].tolist() == counts.sum(0).tolist()
    assert np.allclose(table["recall"], counts.diagonal() / np.maximum(counts.sum(1), 1))
    assert np.allclose(table["roc_auc"], multiclass_auroc(p, labels, k, average=None), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_several_labels_equal_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(30, 200)), int(rng.integers(2, 8))
    targets = (rng.random((n, k)) < rng.uniform(0.1, 0.9, k)).astype(np.int64)
    targets[0], targets[1] = 0, 1
    logits = (2 * rng.normal(size=(n, k)) + targets).astype(np.float32)
    metrics = multi_label_metrics(logits, targets, [str(i) for i in range(k)])
    p, labels = torch.from_numpy(logits).double().sigmoid(), torch.from_numpy(targets)
    for name, function in {
        "precision": multilabel_precision, "recall": multilabel_recall, "f1": multilabel_f1_score,
    }.items():  # fmt: skip
        for average in ("macro", "micro", "weighted"):
            wanted = function(p, labels, k, average=average).item()
            assert metrics[f"{name}_{average}"] == pytest.approx(wanted, abs=1e-6), (name, average)
    assert metrics["map"] == pytest.approx(multilabel_average_precision(p, labels, k).item(), abs=1e-6)
    assert metrics["roc_auc_macro"] == pytest.approx(multilabel_auroc(p, labels, k).item(), abs=1e-6)
    assert metrics["label_accuracy"] == pytest.approx(((p > 0.5) == labels.bool()).double().mean().item())
    assert metrics["brier"] == pytest.approx(((p - labels) ** 2).mean().item())
    table = multi_label_table(logits, targets, [str(i) for i in range(k)])
    assert table["f1"].to_numpy() == pytest.approx(f1_score(targets, logits >= 0, average=None))


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
    for name in ("f1_macro", "precision_macro", "balanced_accuracy", "roc_auc_macro", "average_precision_macro"):
        assert metrics[name] == 1.0
    table = per_class_table(logits, np.array([0, 1, 1]), ["a", "b", "c"])
    assert table["roc_auc"].isna().tolist() == table["average_precision"].isna().tolist() == [False, False, True]


def test_one_class_alone_has_no_ranks_and_no_agreement():
    metrics = classification_metrics(np.eye(2, dtype=np.float32)[[0, 0]], np.array([0, 0]), ["a", "b"])
    assert metrics["cohen_kappa"] is metrics["mcc"] is metrics["roc_auc_macro"] is None
    assert metrics["average_precision_macro"] == 1.0
    assert multi_label_metrics(-np.ones((3, 2), np.float32), np.zeros((3, 2), np.int64), "ab")["map"] == 0.0


def test_odds_tell_apart_what_probabilities_round_to_one():
    logits = np.array([[0, 60, 1], [0, 50, 1], [2, 1, 0]], np.float32)
    odds = log_odds(logits)
    assert odds[0, 1] > odds[1, 1] > odds[2, 1]
    p = torch.from_numpy(logits[2:]).double().softmax(1)
    assert odds[2] == pytest.approx(torch.logit(p)[0].numpy())


def test_classes_that_are_mixed_up_come_together():
    rng = np.random.default_rng(0)
    k = 8
    partner = np.arange(k) ^ 1
    order = rng.permutation(k)
    counts = np.eye(k, dtype=int) * 50
    counts[np.arange(k), partner] = 30
    counts += rng.integers(0, 3, (k, k))
    names = np.array([f"c{i}" for i in range(k)])
    import pandas as pd

    table = pd.DataFrame(counts, index=pd.Index(names, name="true"), columns=names).iloc[order, order]
    result = clustered(table)
    assert list(result.index) == list(result.columns)
    assert sorted(result.index) == sorted(names)
    places = {name: i for i, name in enumerate(result.index)}
    assert all(abs(places[f"c{i}"] - places[f"c{i ^ 1}"]) == 1 for i in range(k))
    assert all(result.loc[a, b] == table.loc[a, b] for a in names for b in names)
    assert np.allclose(normalized_by_row(table).sum(1), 1)
    empty = pd.DataFrame(np.zeros((3, 3), int), index=list("abc"), columns=list("abc"))
    assert (normalized_by_row(empty).to_numpy() == 0).all()
    assert clustered(empty).shape == (3, 3)


def test_nothing_and_no_numbers_are_refused():
    with pytest.raises(DataError, match="no images"):
        classification_metrics(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), ["a", "b"])
    with pytest.raises(DataError, match="1 of 2 images"):
        classification_metrics(np.array([[0, np.nan], [0, 1]], np.float32), np.array([0, 1]), ["a", "b"])
