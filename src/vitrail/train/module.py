"""The Lightning module of all tasks: random numbers, optimiser and schedule of a step."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from vitrail.config.schema import TrainerConfig
from vitrail.data.sampling import EpochShuffle
from vitrail.tasks.base import Task
from vitrail.tasks.optim import build_schedule
from vitrail.train.sharding import shard, share_statistics

# A checkpoint's own entry.
_CEILING = "schedule_ceiling"


class TaskModule(LightningModule, ABC):
    """Base class of Lightning modules: seeds, optimiser and schedule; sub-classes add the steps and their metrics.

    Args:
        task: The task.
        config: Learning rate, weight decay, warm-up, accumulation and strategy.
        seed: Seed of the random numbers, which restart at every step, so that a resumed run repeats exactly.

    Attributes:
        order: Order of the training images; a resumed run starts with that of its first epoch.
        started: Whether everything in a checkpoint has been restored.
        batch: Last training batch, after augmentation.
    """

    def __init__(self, task: Task, config: TrainerConfig, seed: int) -> None:
        super().__init__()
        self.task = task
        self.config = config
        self.seed = seed
        self.started = False
        self.order: EpochShuffle | None = None
        self.batch: dict[str, Tensor] | None = None
        # Upper bound of the schedule's factor if a resumed run got more epochs; step and factor at which it resumed.
        self.ceiling = math.inf
        self.resumed: tuple[int, float] | None = None
        self.make_metrics()

    @abstractmethod
    def make_metrics(self) -> None:
        """Make the metrics, as attributes."""

    def configure_model(self) -> None:
        """Shard the parameters under FSDP."""
        if self.config.strategy == "fsdp":
            assert self.device_mesh is not None, "the strategy has set it"
            shard(self.task, self.device_mesh["data_parallel"])

    def on_validation_epoch_start(self) -> None:
        """Validate with the first process's BatchNorm statistics, which are those that are saved."""
        if self.config.strategy == "fsdp":
            share_statistics(self.task)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Set the order of the next epoch: workers prefetch batches before the loop sets the epoch."""
        if self.order is not None:
            self.order.set_epoch(int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]))
        self.ceiling = checkpoint.get(_CEILING, math.inf)
        schedule = checkpoint["lr_schedulers"][0]
        self.resumed = schedule["last_epoch"], schedule["_last_lr"][0] / schedule["base_lrs"][0]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the bound of a schedule that was extended."""
        if math.isfinite(self.ceiling):
            checkpoint[_CEILING] = self.ceiling

    def on_train_start(self) -> None:
        """Record that the checkpoint is restored."""
        self.started = True

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Seed random numbers by the run's seed, epoch, step and process."""
        seed_from(self.seed, self.current_epoch, batch_idx, self.global_rank)

    def scale_to_group(self, loss: Tensor, batch_idx: int) -> Tensor:
        """Scale a loss so that the gradient is the mean over the accumulated batches.

        Lightning divides by ``accumulate`` even if the last group of an epoch has fewer batches.
        """
        size, batches = self.config.accumulate, int(self.trainer.num_training_batches)
        members = min(size, batches - batch_idx // size * size)
        return loss if members == size else loss * (size / members)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make AdamW with linear warm-up and the schedule of the recipe, updated every step."""
        config = self.config
        rate = config.peak_learning_rate
        groups = self.task.parameter_groups(config.weight_decay, rate, config.layer_decay)
        # Fused: one kernel for all parameters. Lightning cannot clip its gradients under mixed precision.
        fused = self.device.type in ("cpu", "cuda") and not config.precision.endswith("-mixed")
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=self.task.betas, fused=fused)
        total = int(self.trainer.estimated_stepping_batches)
        factor = build_schedule(config, total)
        if config.max_minutes:
            factor = _by_the_clock(factor, self.trainer, total, 60 * config.max_minutes)
        if self.resumed is not None:
            self._bound_schedule(factor, *self.resumed)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(factor(step), self.ceiling))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _bound_schedule(self, factor: Callable[[int], float], step: int, reached: float) -> None:
        """Keep the learning rate of a run that is resumed with more epochs from rising again.

        Args:
            factor: Factor of the learning rate at a step.
            step: Step at which the run resumes.
            reached: Factor at that step in the run so far.
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
    """Evaluate a schedule at the later of the step and the elapsed share of ``max_minutes``."""
    (timer,) = (c for c in trainer.callbacks if isinstance(c, Timer))  # type: ignore[attr-defined]

    def at(step: int) -> float:
        # All processes use the first one's clock: their learning rates must be equal.
        elapsed = trainer.strategy.broadcast(timer.time_elapsed())
        return factor(max(step, min(total, int(total * elapsed / seconds))))

    return at


def seed_from(*entropy: int) -> None:
    """Seed torch by a sequence of integers."""
    low, high = np.random.SeedSequence(entropy).generate_state(2)
    torch.manual_seed(int(low) + (int(high) << 32) >> 1)
