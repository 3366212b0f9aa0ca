"""Gradual unfreezing: the classifier first, earlier layers later."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from vitrail.models.base import VisionModel
from vitrail.train.module import TaskModule


class Freezing(Callback):
    """Unfreeze layers from the classifier to the patch embedding; the frozen ones depend on the epoch alone.

    Args:
        freeze_epochs: Epochs at the start that train the classifier alone.
        unfreeze_every: Epochs between unfreezing of layer groups; 0 unfreezes all at once.

    Source: gradual unfreezing: Howard & Ruder 2018, arXiv:1801.06146, section 3.3.
    """

    def __init__(self, freeze_epochs: int, unfreeze_every: int = 0) -> None:
        self.freeze_epochs, self.unfreeze_every = freeze_epochs, unfreeze_every

    def trained_groups(self, epoch: int, groups: int) -> int:
        """Count the layer groups that an epoch trains, from the classifier."""
        if epoch < self.freeze_epochs:
            return 1
        if not self.unfreeze_every:
            return groups
        return min(groups, 2 + (epoch - self.freeze_epochs) // self.unfreeze_every)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TaskModule)
        model = pl_module.task.model
        groups = model.layer_groups()
        trained = self.trained_groups(trainer.current_epoch, len(groups))
        freeze(model, [name for group in groups[: len(groups) - trained] for name in group])


def freeze(model: VisionModel, names: list[str]) -> None:
    """Freeze some parameters and train all others; frozen BatchNorms use their running statistics.

    Args:
        model: The model, in training mode.
        names: Names of the frozen parameters.
    """
    frozen = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(f"{name}.weight" not in frozen)
