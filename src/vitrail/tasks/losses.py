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
            target: Classes, shape ``(B,)``.
        """
        logits = logits.float()
        if not self.training:
            return F.cross_entropy(logits, target)
        if not self.focal_gamma:
            return F.cross_entropy(logits, target, self.class_weights, label_smoothing=self.label_smoothing)
        log = logits.log_softmax(dim=1)
        spread = self.label_smoothing / logits.shape[1]
        wanted = F.one_hot(target, logits.shape[1]) * (1 - self.label_smoothing) + spread
        # A power below one has no slope at zero, where a class is certain.
        doubt = (1 - log.exp()).clamp_min(torch.finfo(log.dtype).eps)
        losses = -(wanted * doubt**self.focal_gamma * log)
        if self.class_weights is None:
            return losses.sum(dim=1).mean()
        # As torch's cross-entropy does: each class's term by its weight, over the weights of the true classes.
        return (losses * self.class_weights).sum() / self.class_weights[target].sum()


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
