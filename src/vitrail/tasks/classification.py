"""Classification with one label an image."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.data.transforms import NormalizeStreams
from vitrail.models.base import VisionModel


class ClassificationTask(nn.Module):
    """A model between its normalisation and its loss.

    Args:
        model: Gives logits ``(B, K)``.
        normalize: Makes the model's inputs from a batch whose streams are in 0..1, always.
        augment: Changes a batch's streams before that, in training only.
        label_smoothing: Share of the target spread over all classes; in the training loss only.

    Source: label smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """

    def __init__(
        self,
        model: VisionModel,
        normalize: NormalizeStreams,
        augment: nn.Module | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.normalize = normalize
        self.augment = augment
        self.label_smoothing = label_smoothing

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits ``(B, K)`` of a batch whose streams are in 0..1."""
        streams = {name: batch[name] for name in self.normalize if name in batch}
        if self.training and self.augment is not None:
            streams = self.augment(streams)
        logits: Tensor = self.model(*self.normalize(streams))
        return logits

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy; smoothed in training, plain in evaluation, so that both splits can be compared."""
        smoothing = self.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits.float(), batch["target"], label_smoothing=smoothing)
