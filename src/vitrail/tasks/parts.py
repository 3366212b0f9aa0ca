"""Part segmentation of point clouds: classification of each point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.tasks.classification import ClassificationTask


class PartsTask(ClassificationTask):
    """Classification of points by the labels "parts" of a batch, ``(B, N)``; -1 is not a label."""

    def labelled(self, output: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits ``(M, K)`` and parts ``(M,)`` of the labelled points; augmentation may have dropped points."""
        parts = batch["parts"]
        known = (parts >= 0) & ~output[..., 0].isnan()
        return output[known], parts[known]
