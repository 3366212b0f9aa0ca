"""Classification with one label an image."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vitrail.data.transforms import NormalizeStreams
from vitrail.models.base import VisionModel
from vitrail.tasks.losses import ClassificationLoss


class ClassificationTask(nn.Module):
    """A model between its normalisation and its loss.

    Args:
        model: Gives logits ``(B, K)``.
        normalize: Makes the model's inputs from a batch whose streams are in 0..1, always.
        augment: Changes a batch's streams before that, in training only.
        criterion: The loss of logits ``(B, K)`` and classes ``(B,)``.
    """

    def __init__(
        self,
        model: VisionModel,
        normalize: NormalizeStreams,
        augment: nn.Module | None = None,
        criterion: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.normalize = normalize
        self.augment = augment
        self.criterion = ClassificationLoss() if criterion is None else criterion

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits ``(B, K)`` of a batch whose streams are in 0..1."""
        streams = {name: batch[name] for name in self.normalize if name in batch}
        if self.training and self.augment is not None:
            streams = self.augment(streams)
        logits: Tensor = self.model(*self.normalize(streams))
        return logits

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The criterion's value; plain cross-entropy in evaluation, so that runs can be compared."""
        loss: Tensor = self.criterion(logits, batch["target"])
        return loss
