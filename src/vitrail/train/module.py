"""The task as the trainer sees it: steps, optimiser, schedule, metrics."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric

from vitrail.config.schema import TrainerConfig
from vitrail.data.dataset import EpochShuffle
from vitrail.tasks.classification import ClassificationTask
from vitrail.tasks.optim import warmup_cosine
from vitrail.train.sharding import shard, share_statistics
from vitrail.train.validation_metrics import make_metrics as _metrics

# A checkpoint's own entry.
_CEILING = "schedule_ceiling"


class TaskModule(LightningModule):
    """Wraps a task for Lightning.

    Args:
        task: What is optimised.
        config: Learning rate and the like.
        seed: Of the random numbers, which start anew at each step, so that a resumed run repeats exactly.

    Attributes:
        order: Of the training images; a resumed run begins with that of its first epoch.
    """

    def __init__(self, task: ClassificationTask, config: TrainerConfig, seed: int) -> None:
        super().__init__()
        self.task = task
        self.config = config
        self.seed = seed
        self.started = False
        self.order: EpochShuffle | None = None
        self.batch: dict[str, Tensor] | None = None
        # Of the schedule's factor, where a resumed run was given more epochs; the step and the factor it resumed at.
        self.ceiling = math.inf
        self.resumed: tuple[int, float] | None = None
        self._make_metrics()

    def _make_metrics(self) -> None:
        # Metrics, unlike logged numbers, are exact over several processes and batches of different sizes.
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.train_accuracy, self.val_metrics = _metrics(self.task.model.num_classes, self.task.multi_label)

    def configure_model(self) -> None:
        """Share the parameters out among the processes, where the strategy is to."""
        if self.config.strategy == "fsdp":
            assert self.device_mesh is not None, "the strategy has set it"
            shard(self.task, self.device_mesh["data_parallel"])

    def on_validation_epoch_start(self) -> None:
        """All processes validate with the first one's statistics, which are those that are kept."""
        if self.config.strategy == "fsdp":
            share_statistics(self.task)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Choose the order of the epoch to come now: workers are asked for batches before the loop names the epoch."""
        if self.order is not None:
            self.order.set_epoch(int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]))
        self.ceiling = checkpoint.get(_CEILING, math.inf)
        schedule = checkpoint["lr_schedulers"][0]
        self.resumed = schedule["last_epoch"], schedule["_last_lr"][0] / schedule["base_lrs"][0]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the bound of a schedule that was made longer."""
        if math.isfinite(self.ceiling):
            checkpoint[_CEILING] = self.ceiling

    def on_train_start(self) -> None:
        """From here on everything that a checkpoint holds has been restored."""
        self.started = True

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Reseed from the run's seed, the epoch, the step and the process, whatever drew random numbers before."""
        seed_from(self.seed, self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step's loss."""
        self.batch = batch = self.task.prepare(batch)
        logits = self.task(batch)
        loss = self.task.loss(logits, batch)
        self.train_accuracy(*self._countable(logits, batch["target"]))
        self.train_loss.update(loss.detach(), len(logits))
        options = _by_epoch(logits)
        self.log("train_loss", self.train_loss, **options)
        self.log("train_accuracy", self.train_accuracy, **options)
        return self._of_its_group(loss, batch_idx)

    def _of_its_group(self, loss: Tensor, batch_idx: int) -> Tensor:
        """Scale a loss so that the gradient is the mean over the batches that are added up.

        Lightning divides by ``accumulate`` also where an epoch's last group holds fewer batches.
        """
        size, batches = self.config.accumulate, int(self.trainer.num_training_batches)
        members = min(size, batches - batch_idx // size * size)
        return loss if members == size else loss * (size / members)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss and metrics of a validation batch."""
        logits = self.task(batch)
        self.val_metrics.update(*self._countable(logits, batch["target"]))
        self.val_loss.update(self.task.loss(logits, batch), len(logits))
        options = _by_epoch(logits)
        self.log("val_loss", self.val_loss, **options)
        self.log_dict(self.val_metrics, **options)

    def _countable(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """What metrics count: of a mixed image the class with the largest share, or the labels of a half and more."""
        if self.task.multi_label:
            return logits.detach(), (target >= 0.5).long()
        return logits, target if target.ndim == 1 else target.argmax(dim=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with warm-up and cosine a step."""
        config = self.config
        rate = config.peak_learning_rate
        groups = self.task.parameter_groups(config.weight_decay, rate, config.layer_decay)
        # One kernel for all parameters; Lightning does not clip its gradients under mixed precision.
        fused = self.device.type in ("cpu", "cuda") and not config.precision.endswith("-mixed")
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=self.task.betas, fused=fused)
        total = int(self.trainer.estimated_stepping_batches)
        # A very short training has no room for the whole warm-up; it keeps at most half of its steps for it.
        warmup = min(round(config.warmup_epochs * total / config.max_epochs), total // 2)
        factor = warmup_cosine(total, warmup, config.min_learning_rate / rate)
        if config.max_minutes:
            factor = _by_the_clock(factor, self.trainer, total, 60 * config.max_minutes)
        if self.resumed is not None:
            self._bound_schedule(factor, *self.resumed)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(factor(step), self.ceiling))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _bound_schedule(self, factor: Callable[[int], float], step: int, reached: float) -> None:
        """Keep the learning rate of a run that goes on with more epochs from rising again.

        Args:
            factor: The schedule's.
            step: At which the run goes on.
            reached: The factor that it had come to.
        """
        wanted, rate = min(factor(step), self.ceiling), self.config.peak_learning_rate
        if math.isclose(wanted, reached, rel_tol=1e-6) or (self.config.max_minutes and wanted < reached):
            return
        if wanted > reached:
            self.ceiling = reached
        if self.trainer.is_global_zero:
            how = "does not rise again" if wanted > reached else f"falls from there to {rate * wanted:.3g}"
            print(
                f"with trainer.max_epochs {self.config.max_epochs} the schedule is another one: the learning rate goes "
                f"on from {rate * reached:.3g}, which the run had come to, and {how}; for a schedule of its own, "
                "begin a new run from this one (--model.weights)",
                file=sys.stderr,
            )


def _by_the_clock(
    factor: Callable[[int], float], trainer: Trainer, total: int, seconds: float
) -> Callable[[int], float]:
    """The factor of the step that the clock has come to, where it is ahead of the steps."""
    (timer,) = (c for c in trainer.callbacks if isinstance(c, Timer))  # type: ignore[attr-defined]

    def at(step: int) -> float:
        # All processes must take the same step: the first one's clock is everybody's.
        elapsed = trainer.strategy.broadcast(timer.time_elapsed())
        return factor(max(step, min(total, int(total * elapsed / seconds))))

    return at


def seed_from(*entropy: int) -> None:
    """Begin torch's random numbers anew from whole numbers."""
    low, high = np.random.SeedSequence(entropy).generate_state(2)
    torch.manual_seed(int(low) + (int(high) << 32) >> 1)


def _by_epoch(logits: Tensor) -> dict[str, Any]:
    return {"on_step": False, "on_epoch": True, "batch_size": len(logits)}
