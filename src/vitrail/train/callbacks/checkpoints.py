"""Checkpoints and trained weights of a run."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from vitrail.errors import RunError, first_line
from vitrail.files import replacing
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import ModelCard, write_trained
from vitrail.train.callbacks.ema import trained_model
from vitrail.train.callbacks.metrics import EpochMetrics
from vitrail.train.module import TaskModule
from vitrail.train.sharding import whole_state


class WholeCheckpoints(TorchCheckpointIO):
    """Write checkpoints atomically: under their name only when they are complete."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        with replacing(str(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch's error for a full disk
                reason = first_line(error)
                raise RunError(f"cannot write {path}: {reason}; free space or check permissions") from error

    @override
    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # weights_only: a run's checkpoint needs no pickle that can run code.
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            kept = set(checkpoint["callbacks"]) if isinstance(checkpoint, dict) else set()
            if not {EpochMetrics.__qualname__, RunCheckpoints.__qualname__} <= kept:
                raise ValueError("it holds no state of vitrail's callbacks")
        except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise bad_checkpoint(path, error) from error
        return checkpoint


def bad_checkpoint(path: object, error: Exception) -> RunError:
    """Make the error for a checkpoint that cannot be resumed."""
    lines = str(error).strip().splitlines()
    reason = lines[0][:200] if lines else "no content"
    return RunError(
        f"cannot resume from {path}: it is truncated, foreign, or of another recipe ({reason}); restore it, or start "
        "over with --run.overwrite true in place of --resume"
    )


class RunCheckpoints(Checkpoint):
    """Write last.ckpt after every epoch, and best.ckpt with model.safetensors if the monitored value improves.

    Args:
        run: The run folder.
        card: Content of model.json, written beside the weights.
        monitor: Metric to maximise, or "val_loss" to minimise; None makes every epoch the best.
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
            # All processes gather the shards.
            state = whole_state(trained_model(trainer, pl_module.task.model))
            if trainer.is_global_zero:
                write_trained(self.run, state, self._card(trainer.current_epoch))
        trainer.save_checkpoint(str(self.run.last_checkpoint))

    def _card(self, epoch: int) -> ModelCard:
        return ModelCard(**{**vars(self.card), "epoch": epoch})
