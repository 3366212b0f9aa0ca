"""What a run writes while it trains."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from torch import Tensor
from typing_extensions import override

from vitrail.errors import RunError
from vitrail.files import replacing
from vitrail.models.base import VisionModel
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import ModelCard, write_trained
from vitrail.tasks.classification import ClassificationTask
from vitrail.train.module import TaskModule
from vitrail.train.sharding import whole_state
from vitrail.weights.write import write_tensors

# The values of an epoch that metrics.csv keeps.
_RECORDED = (
    "train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_balanced_accuracy", "val_f1_macro", "val_map",
)  # fmt: skip
_REMEDY = "lower trainer.learning_rate, lengthen trainer.warmup_epochs, or clip with trainer.gradient_clip"


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear under their name only when they are complete."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        with replacing(str(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # what torch makes of a full disk
                reason = str(error).splitlines()[0]
                raise RunError(f"cannot write {path}: {reason}; free space or check permissions") from error

    @override
    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Nothing in a run's checkpoint needs a pickle that can run code, so none is accepted.
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            kept = set(checkpoint["callbacks"]) if isinstance(checkpoint, dict) else set()
            if not {EpochMetrics.__qualname__, RunCheckpoints.__qualname__} <= kept:
                raise ValueError("it holds no state of vitrail's callbacks")
        except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise bad_checkpoint(path, error) from error
        return checkpoint


def bad_checkpoint(path: object, error: Exception) -> RunError:
    """The error for a checkpoint that cannot be resumed."""
    lines = str(error).strip().splitlines()
    reason = lines[0][:200] if lines else "no content"
    return RunError(
        f"cannot resume from {path}: it is truncated, foreign, or of another recipe ({reason}); restore it, or start "
        "over with --run.overwrite true in place of --resume"
    )


class EpochMetrics(Callback):
    """Write metrics.csv, one row an epoch: losses, accuracies, learning rate, images a second.

    The speed counts training alone: the clock stands during validation and while files are written. The seconds of an
    epoch count all of it.

    Args:
        run: Where to.
        recorded: Which of the epoch's values.
        more: Values that only some epochs have; what is in it at an epoch's end joins that epoch's row.
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
        # Rows of epochs after the checkpoint are dropped: those epochs are trained again.
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
        # At every step: the clock may end training in the middle of an epoch.
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
                f"the validation loss became {metrics['val_loss']} in epoch {trainer.current_epoch + 1}; {_REMEDY}"
            )


class StopOnNonFinite(Callback):
    """Stop at the first step whose loss is no finite number, and keep its batch to look at.

    Args:
        run: Where to.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if bool(loss.isfinite()):
            return
        assert isinstance(pl_module, TaskModule)
        assert pl_module.batch is not None, "a loss comes from a batch"
        write_tensors(self.run.diverged_batch, pl_module.batch)
        raise RunError(
            f"the training loss became {loss.item()} in epoch {trainer.current_epoch + 1}, "
            f"step {trainer.global_step}; "
            f"{_REMEDY}; its batch is in {self.run.diverged_batch}"
        )


class WeightEMA(WeightAveraging):
    """Exponential moving average of the weights; validation and the kept model use it.

    Statistics that layers gather (BatchNorm's) are the model's own at each moment.

    Args:
        decay: Of the average, at most; early on it is (1 + n) / (10 + n) after n steps, so that the first weights,
            which are random, are soon forgotten.

    Source: Polyak & Juditsky 1992; the early decay as TensorFlow's ExponentialMovingAverage(num_updates).
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, number: Tensor | int) -> Tensor:
            steps = float(number)
            return torch.lerp(current, averaged, min(decay, (1 + steps) / (10 + steps)))

        super().__init__(use_buffers=False, avg_fn=average)

    def model(self) -> VisionModel:
        """The averaged model."""
        assert self._average_model is not None, "the average exists from the start of the fit"
        task = self._average_model.module.task
        assert isinstance(task, ClassificationTask)
        return task.model


class RunCheckpoints(Checkpoint):
    """Keep last.ckpt after every epoch, and best.ckpt with model.safetensors whenever the monitored value improves.

    Args:
        run: Where to.
        card: Goes beside the weights.
        monitor: A metric of which more is better, or "val_loss", of which less is; None takes every epoch for better
            than the one before.
    """

    def __init__(self, run: RunFolder, card: ModelCard, monitor: str | None) -> None:
        self.run, self.card, self.monitor = run, card, monitor
        self.best: float | None = None
        self.best_epoch: int | None = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = float(trainer.current_epoch if self.monitor is None else trainer.callback_metrics[self.monitor])
        if self.best is None or (value < self.best if self.monitor == "val_loss" else value > self.best):
            self.best, self.best_epoch = value, trainer.current_epoch
            trainer.save_checkpoint(str(self.run.best_checkpoint))
            assert isinstance(pl_module, TaskModule)
            averages = [c.model() for c in trainer.callbacks if isinstance(c, WeightEMA)]  # type: ignore[attr-defined]
            # Of shards the whole is put together by all processes.
            state = whole_state(averages[0] if averages else pl_module.task.model)
            if trainer.is_global_zero:
                write_trained(self.run, state, self._card(trainer.current_epoch))
        trainer.save_checkpoint(str(self.run.last_checkpoint))

    def _card(self, epoch: int) -> ModelCard:
        return ModelCard(**{**vars(self.card), "epoch": epoch})
