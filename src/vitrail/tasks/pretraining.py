"""What every task without labels has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from vitrail.tasks.base import Task


class PretrainingTask(Task):
    """A model, and around it what its pre-training needs and its later life does not."""

    @abstractmethod
    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            batch: Its streams in 0..1, shape ``(B, C, H, W)`` each, as :meth:`prepare` gives it; other keys are
                passed over.

        Returns:
            "loss", and what else is worth recording, by name.
        """

    def loss(self, output: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """What is optimised of a batch's results."""
        return output["loss"]

    def represent(self, streams: Mapping[str, Tensor]) -> Tensor:
        """What a classifier would see, ``(B, num_features)``, of streams in 0..1."""
        features = self.model.forward_features(*self.normalize(streams))
        return self.model.forward_head(features, pre_logits=True)
