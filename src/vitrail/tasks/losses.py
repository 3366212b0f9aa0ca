"""Classification losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassificationLoss(nn.Module):
    """Single-label cross-entropy or focal loss; plain cross-entropy in evaluation.

    Args:
        label_smoothing: Share of the target that is spread evenly over all classes.
        focal_gamma: Focusing exponent of the focal loss; 0 is cross-entropy.
        class_weights: Weight of each class, shape ``(K,)``; 1 by default.

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
        """Average the loss over images, weighted by class in training.

        Args:
            logits: Shape ``(B, K)``.
            target: Classes, shape ``(B,)``, or soft targets, shape ``(B, K)``.
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
            # For gamma < 1 the gradient is infinite at probability 1.
            modulation = (1 - log.exp()).clamp_min(torch.finfo(log.dtype).eps)
            losses = losses * modulation**self.focal_gamma
        if self.class_weights is None:
            return losses.sum(dim=1).mean()
        # Normalised as torch's cross-entropy with class indices: by the sum of the targets' weights.
        return (losses * self.class_weights).sum() / (shares * self.class_weights).sum()


class MultiLabelLoss(nn.Module):
    """Multi-label binary cross-entropy; without smoothing and weights in evaluation.

    Args:
        label_smoothing: Smoothing of the targets 0 and 1 towards 0.5: 0.1 gives 0.05 and 0.95.
        positive_weights: Weight of positive targets of each class, shape ``(K,)``; 1 by default.

    Source: binary cross-entropy with smoothing for images: Wightman et al. 2021, arXiv:2110.00476, section 2.
    """

    def __init__(self, label_smoothing: float = 0.0, positive_weights: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("positive_weights", positive_weights, persistent=False)
        self.positive_weights: Tensor | None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Average the loss over images and classes.

        Args:
            logits: Shape ``(B, K)``.
            target: Targets in 0..1, shape ``(B, K)``, float.
        """
        logits = logits.float()
        if not self.training:
            return F.binary_cross_entropy_with_logits(logits, target)
        target = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=self.positive_weights)


def balanced_weights(target: Tensor, num_classes: int) -> Tensor:
    """Compute class weights inverse to the class frequencies, with mean 1 over the images.

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
    """Compute the ratio of negative to positive images of each label.

    Args:
        target: Labels of the training images, 1 or 0, shape ``(N, K)``.

    Returns:
        Shape ``(K,)``, float32; 1 for a label without positive or without negative images.
    """
    there = target.float().sum(dim=0)
    lacking = len(target) - there
    return torch.where((there > 0) & (lacking > 0), lacking / there.clamp_min(1), 1.0)
