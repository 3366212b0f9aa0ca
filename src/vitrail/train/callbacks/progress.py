"""Progress of a training run: one bar on a terminal, one line an epoch in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Container
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from tqdm import tqdm
from typing_extensions import override

from vitrail.durations import format_duration
from vitrail.train.callbacks.metrics import EpochMetrics

# Size of a terminal that does not report its own.
_COLUMNS, _LINES = 80, 24
# Seconds between readings of the loss; each synchronises with the GPU.
_READ_EVERY = 0.5
# Metric of an epoch -> its name for people; the first that is measured is shown where the monitor is none of them.
METRICS = {
    "val_map": "mean average precision",
    "val_miou": "mean IoU",
    "val_accuracy": "validation accuracy",
    "val_balanced_accuracy": "balanced accuracy",
    "val_f1_macro": "macro F1",
    "knn_accuracy": "kNN accuracy",
    "probe_accuracy": "linear probe accuracy",
}


def shown_metric(monitor: str | None, row: Container[Any]) -> str | None:
    """Choose the metric of an epoch that people are shown.

    Args:
        monitor: Metric that chooses the best epoch, shown unless it is a loss or was not measured.
        row: Values that the epoch has.

    Returns:
        A key of :data:`METRICS`; None where none was measured.
    """
    return next((name for name in (monitor, *METRICS) if name in row and name in METRICS), None)


class Progress(Callback):
    """Show the progress and the time left of a run on standard error.

    A terminal shows one bar for the steps of the whole run, a log one line an epoch; only the first process writes.

    Args:
        metrics: Rows of the epochs.
        monitor: Metric that chooses the best epoch; see :func:`shown_metric`.
        noun: Noun for the inputs, in the plural.
    """

    def __init__(self, metrics: EpochMetrics, monitor: str | None, noun: str = "images") -> None:
        self._metrics, self._monitor, self._noun = metrics, monitor, noun
        self._bar: Any = None
        self._begun, self._last_read = 0.0, 0.0
        self._first = self._done = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        trained, batches, epochs = len(self._metrics.rows), int(trainer.num_training_batches), trainer.max_epochs or 0
        self._begun, self._first = time.monotonic(), trained * batches
        self._done = self._first
        if trained:
            print(
                f"resumes after epoch {trained} of {epochs} (step {trainer.global_step})", file=sys.stderr, flush=True
            )
        if sys.stderr.isatty() and trained < epochs:
            # tqdm draws no bar on a terminal without a size.
            size = {"dynamic_ncols": True} if _has_size(sys.stderr) else {"ncols": _COLUMNS, "nrows": _LINES}
            self._bar = tqdm(
                total=batches * epochs,
                initial=self._first,
                bar_format=self._format(trainer, []),
                file=sys.stderr,
                **size,
            )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._done += 1
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._last_read >= _READ_EVERY:
            self._last_read = now
            # Lightning divides the loss of a step by the number of accumulated batches.
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            self._bar.bar_format = self._format(trainer, [f"loss {loss:.3f}", *self._validated()])
        self._bar.update()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            loss = self._metrics.rows[-1]["train_loss"]
            self._bar.bar_format = self._format(trainer, [f"loss {loss:.3f}", *self._validated()])
            self._bar.refresh()
        elif trainer.is_global_zero:
            print(self._line(trainer), file=sys.stderr, flush=True)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _format(self, trainer: Trainer, values: list[str]) -> str:
        """Format the bar; a narrow terminal truncates its end."""
        text = ", ".join([*self._left(trainer), *values])
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} {{percentage:3.0f}}% |{{bar}}| {text}"

    def _validated(self) -> list[str]:
        """Format loss and metric of the last validation."""
        if not self._metrics.rows:
            return []
        row = self._metrics.rows[-1]
        names = [name for name in ("val_loss", shown_metric(self._monitor, row)) if name is not None and name in row]
        return [f"{name} {row[name]:.3f}" for name in names]

    def _line(self, trainer: Trainer) -> str:
        row = self._metrics.rows[-1]
        parts = [f"training loss {row['train_loss']:.4f}"]
        if "val_loss" in row:
            parts.append(f"validation loss {row['val_loss']:.4f}")
        metric = shown_metric(self._monitor, row)
        if metric is not None:
            parts.append(f"{METRICS[metric]} {row[metric]:.4f}")
        parts.append(f"{row['train_images_per_second']:,.0f} {self._noun}/s")
        return f"epoch {row['epoch'] + 1}/{trainer.max_epochs}: {', '.join([*parts, *self._left(trainer)])}"

    def _left(self, trainer: Trainer) -> list[str]:
        """Estimate the time left for the whole run from the steps since its start, validation included."""
        done = self._done - self._first
        missing = int(trainer.num_training_batches) * (trainer.max_epochs or 0) - self._done
        if missing <= 0 or done == 0:
            return []
        seconds = (time.monotonic() - self._begun) / done * missing
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timer) and (bound := callback.time_remaining()) is not None:
                seconds = max(0.0, min(seconds, bound))
        return [f"{format_duration(seconds)} left"]


def _has_size(terminal: TextIO) -> bool:
    try:
        return all(os.get_terminal_size(terminal.fileno()))
    except OSError:
        return False
