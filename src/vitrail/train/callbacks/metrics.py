"""Metrics of each epoch, written to metrics.csv."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from vitrail.errors import RunError
from vitrail.runs.folder import RunFolder
from vitrail.train.callbacks.non_finite import REMEDY

# Columns of metrics.csv in supervised training.
_RECORDED = (
    "train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_balanced_accuracy", "val_f1_macro", "val_map",
    "val_miou",
)  # fmt: skip


class EpochMetrics(Callback):
    """Write metrics.csv, one row an epoch: losses, accuracies, learning rate, images a second.

    The speed is that of the training steps, without validation and writing of files; ``epoch_seconds`` includes them.

    Args:
        run: The run folder.
        recorded: Names of the logged values that become columns.
        more: Values of some epochs; those present at the end of an epoch join its row.
    """

    def __init__(
        self, run: RunFolder, recorded: Sequence[str] = _RECORDED, more: Mapping[str, float] | None = None
    ) -> None:
        self.run, self.recorded, self.more = run, recorded, {} if more is None else more
        self.rows: list[dict[str, Any]] = []
        self._images = 0
        self._seconds = 0.0
        self._start = 0.0
        self._last_end: float | None = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Without the rows of epochs after the checkpoint, which are trained again.
        self.rows = list(state_dict["rows"])

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images, self._seconds, self._start = 0, 0.0, time.perf_counter()
        self._last_end = self._start if self._last_end is None else self._last_end

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch["target"]) * trainer.world_size
        if trainer.is_last_batch and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        # At every step: trainer.max_minutes may end training within an epoch.
        self._seconds = time.perf_counter() - self._start

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row: dict[str, Any] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        for name in self.recorded:
            if name in metrics:
                row[name] = round(metrics[name], 6)
        row |= {name: round(value, 6) for name, value in self.more.items()}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["train_images_per_second"] = round(self._images / max(self._seconds, 1e-9), 2)
        now = time.perf_counter()
        row["epoch_seconds"] = round(now - (self._start if self._last_end is None else self._last_end), 3)
        self._last_end = now
        self.rows.append(row)
        if trainer.is_global_zero:
            self.run.write_metrics(self.rows)
        if not math.isfinite(metrics.get("val_loss", 0.0)):
            raise RunError(
                f"the validation loss became {metrics['val_loss']} in epoch {trainer.current_epoch + 1}; {REMEDY}"
            )
