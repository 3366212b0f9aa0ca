"""Early stopping across resumed runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from typing_extensions import override

from vitrail.train.callbacks.metrics import EpochMetrics


class Patience(EarlyStopping):
    """Stop after a number of epochs without improvement.

    Unlike Lightning's, it uses the recipe's patience instead of the checkpoint's, counts the epochs before it was
    enabled, and trains no further epoch of a run that had been stopped.

    Args:
        monitor: Name of the value.
        patience: Largest number of epochs without improvement.
        metrics: Rows of earlier epochs.
    """

    def __init__(self, monitor: str, patience: int, metrics: EpochMetrics) -> None:
        super().__init__(monitor, patience=patience, mode="min" if monitor == "val_loss" else "max")
        self._metrics = metrics
        self._loaded = False

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        self._loaded = True

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = [row[self.monitor] for row in self._metrics.rows if self.monitor in row]
        if values and not self._loaded:
            self.wait_count = waited(values, self.monitor)
            self.best_score = torch.tensor((min if self.monitor == "val_loss" else max)(values))
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def waited(values: Iterable[float], monitor: str) -> int:
    """Count the epochs since the best value.

    Args:
        values: Values of the epochs, in order.
        monitor: Name of the value: "val_loss" is minimised, others are maximised.
    """
    best, count = -math.inf, 0
    for value in values:
        value = -value if monitor == "val_loss" else value
        if value > best:
            best, count = value, 0
        else:
            count += 1
    return count
