"""Early stopping that keeps its count when a run goes on, with the patience that is asked for now."""

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
    """Stop after some epochs without a better value.

    Lightning's keeps the patience of the checkpoint, begins to count anew where the run began without, and trains
    another epoch when a run is resumed that had just been stopped.

    Args:
        monitor: The value.
        patience: Epochs without a better one.
        metrics: Holds the rows of the epochs before.
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
    """How many epochs have passed since the best value.

    Args:
        values: Of the epochs, in order.
        monitor: "val_loss", of which less is better, or a value of which more is.
    """
    best, count = -math.inf, 0
    for value in values:
        value = -value if monitor == "val_loss" else value
        if value > best:
            best, count = value, 0
        else:
            count += 1
    return count
