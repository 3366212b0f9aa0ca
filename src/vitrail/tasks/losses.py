"""Losses on logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassificationLoss(nn.Module):
    """Cross-entropy or focal loss with one label an image; plain cross-entropy in evaluation.

    Args:
        label_smoothing: Share of the target spread over all classes.
        focal_gamma: Power of the focal loss; 0 is cross-entropy.
        class_weights: Weight of each class, shape ``(K,)``; all alike when not given.

    Source: focal loss: Lin et al. 2017, arXiv:1708.02002, equation 4, summed over the classes with the smoothed target
    as weights; label smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """

    def __init__(
        self, label_smoothing: float = 0.0, focal_gamma: float = 0.0, class_weights: Tensor | None = None
    ) -> None:
        super().__init__()
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.class_weights: Tensor | None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean over images, weighted by class in training.

        Args:
            logits: Shape ``(B, K)``.
            target: Classes, shape ``(B,)``, or the share of each class, shape ``(B, K)``.
        """
        logits = logits.float()
        if not self.training:
            return F.cross_entropy(logits, target)
        if not self.focal_gamma and (target.ndim == 1 or self.class_weights is None):
            return F.cross_entropy(logits, target, self.class_weights, label_smoothing=self.label_smoothing)
        log = logits.log_softmax(dim=1)
        spread = self.label_smoothing / logits.shape[1]
        shares = F.one_hot(target, logits.shape[1]) if target.ndim == 1 else target
        wanted = shares * (1 - self.label_smoothing) + spread
        losses = -(wanted * log)
        if self.focal_gamma:
            # A power below one has no slope at zero, where a class is certain.
            doubt = (1 - log.exp()).clamp_min(torch.finfo(log.dtype).eps)
            losses = losses * doubt**self.focal_gamma
        if self.class_weights is None:
            return losses.sum(dim=1).mean()
        # As torch's cross-entropy does with classes: each class's term by its weight, over the weights of the true
        # classes; of shares, each weight counts by its share.
        return (losses * self.class_weights).sum() / (shares * self.class_weights).sum()


class MultiLabelLoss(nn.Module):
    """Binary cross-entropy of each class on its own; plain in evaluation.

    Args:
        label_smoothing: How far targets move from 0 and 1 towards a half: 0.1 makes them 0.05 and 0.95.
        positive_weights: Weight of a class's label where it is there, shape ``(K,)``; 1 when not given.

    Source: binary cross-entropy with smoothing for images: Wightman et al. 2021, arXiv:2110.00476, section 2.
    """

    def __init__(self, label_smoothing: float = 0.0, positive_weights: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("positive_weights", positive_weights, persistent=False)
        self.positive_weights: Tensor | None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean over images and classes.

        Args:
            logits: Shape ``(B, K)``.
            target: 1 where the image has the label, else 0, or a share between; shape ``(B, K)``, float.
        """
        logits = logits.float()
        if not self.training:
            return F.binary_cross_entropy_with_logits(logits, target)
        target = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=self.positive_weights)


def balanced_weights(target: Tensor, num_classes: int) -> Tensor:
    """Weights in inverse proportion to the number of images of each class; 1 on average over the images.

    Args:
        target: Classes of the training images, shape ``(N,)``.
        num_classes: K.

    Returns:
        Shape ``(K,)``, float32; 0 for a class without images.

    Source: King & Zeng 2001, "Logistic regression in rare events data", as scikit-learn's "balanced".
    """
    counts = torch.bincount(target, minlength=num_classes).float()
    return torch.where(counts > 0, len(target) / (num_classes * counts.clamp_min(1)), 0.0)


def balanced_positive_weights(target: Tensor) -> Tensor:
    """How many images lack a label for each that has it.

    Args:
        target: Labels of the training images, 1 or 0, shape ``(N, K)``.

    Returns:
        Shape ``(K,)``, float32; 1 for a label that no image or every image has.
    """
    there = target.float().sum(dim=0)
    lacking = len(target) - there
    return torch.where((there > 0) & (lacking > 0), lacking / there.clamp_min(1), 1.0)
