"""Progressive image sizes: small images in early epochs, the final size at the end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from vitrail.errors import ConfigError
from vitrail.tasks.classification import ClassificationTask


class ProgressiveSize(Callback):
    """Train on smaller images first; the size depends on the epoch alone, and validation uses the final size.

    Args:
        heights: Image heights of the parts before the last, in pixels; widths are in proportion.
        size: Final height and width in pixels.
        max_epochs: Number of epochs, divided into equal parts; later parts take the remainder.

    Raises:
        ConfigError: Heights that do not grow towards the final one, or more parts than epochs.

    Source: Tan & Le 2021, arXiv:2104.00298, section 4 (without their change of regularisation).
    """

    def __init__(self, heights: Sequence[int], size: tuple[int, int], max_epochs: int) -> None:
        growing = [*heights, size[0]]
        if any(a >= b for a, b in itertools.pairwise(growing)) or min(growing) < 1:
            raise ConfigError(
                f"trainer.progressive_sizes must grow and stay below the final height {size[0]}, got {list(heights)}"
            )
        if len(growing) > max_epochs:
            raise ConfigError(
                f"trainer.progressive_sizes has {len(heights)} sizes before the final one, too many for "
                f"trainer.max_epochs = {max_epochs}"
            )
        self.sizes = [(h, max(1, round(size[1] * h / size[0]))) for h in growing]
        self.max_epochs = max_epochs

    def size_of(self, epoch: int) -> tuple[int, int]:
        """Return height and width of the training images in an epoch."""
        part = epoch * len(self.sizes) // self.max_epochs
        return self.sizes[min(part, len(self.sizes) - 1)]

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task = pl_module.task
        assert isinstance(task, ClassificationTask)
        size = self.size_of(trainer.current_epoch)
        task.train_size = None if size == self.sizes[-1] else size
