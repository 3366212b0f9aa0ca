"""Metrics of a validation split, equal to those that ``vitrail evaluate`` computes from the same logits.

torchmetrics counts a class without images, once predicted, as a recall of 0, a label that neither occurs nor is
predicted as an F1 of 0, and ranks saturated probabilities instead of logits. ``evaluate`` does none of these, and the
best epoch is to be the best by the metric that is reported.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities.data import dim_zero_cat


class ClassCounts(Metric):
    """Images counted by class, exact over batches and processes; sub-classes compute a metric from the counts.

    Args:
        num_classes: K.

    Attributes:
        hits: Images of a class that are predicted as such, shape ``(K,)``.
        true: Images of a class, shape ``(K,)``.
        predicted: Images predicted as such, shape ``(K,)``.
    """

    full_state_update = False
    hits: Tensor
    true: Tensor
    predicted: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name in ("hits", "true", "predicted"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            logits: Shape ``(B, K)``; a label counts as predicted from a logit of 0, a probability of one half, on.
            target: Classes, shape ``(B,)``, or labels, shape ``(B, K)``: 1 where the image has the label, else 0.
        """
        if target.ndim == 1:
            predicted, true = logits.argmax(1), target
            self.hits += true[predicted == true].bincount(minlength=self.num_classes)
            self.true += true.bincount(minlength=self.num_classes)
            self.predicted += predicted.bincount(minlength=self.num_classes)
        else:
            positive, present = logits >= 0, target > 0
            self.hits += (positive & present).sum(dim=0)
            self.true += present.sum(dim=0)
            self.predicted += positive.sum(dim=0)


class Accuracy(Metric):
    """Share of images that are classified correctly; with labels, of images whose labels are all correct."""

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("correct", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            logits: Shape ``(B, K)``.
            target: Classes, shape ``(B,)``, or labels, shape ``(B, K)``.
        """
        correct = logits.argmax(1) == target if target.ndim == 1 else ((logits >= 0) == (target > 0)).all(dim=1)
        self.correct += correct.sum()
        self.total += len(logits)

    def compute(self) -> Tensor:
        """Compute the share."""
        return self.correct.float() / self.total


class BalancedAccuracy(ClassCounts):
    """Mean recall of the classes that have images."""

    def compute(self) -> Tensor:
        """Compute the mean."""
        present = self.true > 0
        return (self.hits[present].float() / self.true[present]).mean()


class MacroF1(ClassCounts):
    """Mean F1 of the classes that occur in the targets or the predictions; 0 where none does."""

    def compute(self) -> Tensor:
        """Compute the mean."""
        both = self.true + self.predicted
        present = both > 0
        if not bool(present.any()):
            return torch.zeros((), dtype=torch.float32, device=both.device)
        return (2 * self.hits[present].float() / both[present]).mean()


class MeanIoU(ClassCounts):
    """Mean intersection over union of the classes that occur in the targets, the same in every epoch."""

    def compute(self) -> Tensor:
        """Compute the mean."""
        union = self.true + self.predicted - self.hits
        present = self.true > 0
        return (self.hits[present].float() / union[present]).mean()


class MeanAveragePrecision(Metric):
    """Mean average precision of the labels that occur, ranked by logits; 0 where none does."""

    full_state_update = False
    logits: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Gather a batch.

        Args:
            logits: Shape ``(B, K)``.
            target: 1 where the image has the label, else 0; shape ``(B, K)``.
        """
        self.logits.append(logits.detach().float())
        self.targets.append(target > 0)

    def compute(self) -> Tensor:
        """Compute the mean."""
        scores = dim_zero_cat(self.logits)
        true = dim_zero_cat(self.targets).cpu().numpy()
        present = np.flatnonzero(true.any(axis=0))
        values = scores.cpu().numpy()
        if not np.isfinite(values).all():
            return torch.full((), torch.nan, dtype=torch.float32, device=scores.device)
        each = [average_precision_score(true[:, k], values[:, k]) for k in present]
        return torch.tensor(float(np.mean(each)) if each else 0.0, dtype=torch.float32, device=scores.device)


def make_metrics(num_classes: int, multi_label: bool, per_point: bool = False) -> tuple[Metric, MetricCollection]:
    """Build the accuracy of training and the metrics of validation.

    Args:
        num_classes: K.
        multi_label: Whether an image has labels instead of one class.
        per_point: Whether points have classes.

    Returns:
        The metric of training, and the named metrics of validation; both take logits and targets.
    """
    found: dict[str, Metric | MetricCollection] = {
        "val_accuracy": Accuracy(),
        "val_f1_macro": MacroF1(num_classes),
    }
    if multi_label:
        found["val_map"] = MeanAveragePrecision()
    else:
        found |= {"val_miou": MeanIoU(num_classes)} if per_point else {}
        found["val_balanced_accuracy"] = BalancedAccuracy(num_classes)
    return Accuracy(), MetricCollection(found)
