"""Base class of the pre-training tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from vitrail.tasks.base import Task


class PretrainingTask(Task):
    """A model with the modules that only its pre-training needs."""

    @abstractmethod
    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            batch: Output of :meth:`prepare`: streams in 0..1, shape ``(B, C, H, W)`` each; other keys are ignored.

        Returns:
            ``loss``, and further values to log, by name.
        """

    def loss(self, output: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss that :meth:`forward` computed."""
        return output["loss"]

    def represent(self, streams: Mapping[str, Tensor]) -> Tensor:
        """Compute pre-logit features ``(B, num_features)`` of streams in 0..1."""
        features = self.model.forward_features(*self.normalize(streams))
        return self.model.forward_head(features, pre_logits=True)
