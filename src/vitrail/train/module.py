"""The task as the trainer sees it: steps, optimiser, schedule, metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from vitrail.config.schema import TrainerConfig
from vitrail.tasks.classification import ClassificationTask
from vitrail.tasks.optim import parameter_groups, warmup_cosine


class TaskModule(LightningModule):
    """Wraps a task for Lightning.

    Args:
        task: What is optimised.
        config: Learning rate and the like.
        seed: Of the random numbers, which start anew at each step, so that a resumed run repeats exactly.
    """

    def __init__(self, task: ClassificationTask, config: TrainerConfig, seed: int) -> None:
        super().__init__()
        self.task = task
        self.config = config
        self.seed = seed
        self.started = False
        self.batch: dict[str, Tensor] | None = None
        self._make_metrics()

    def _make_metrics(self) -> None:
        classes = self.task.model.num_classes
        # Metrics, unlike logged numbers, are exact over several processes and batches of different sizes.
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")
        self.val_metrics = MetricCollection(
            {
                "val_accuracy": MulticlassAccuracy(classes, average="micro"),
                "val_balanced_accuracy": MulticlassAccuracy(classes, average="macro"),
                "val_f1_macro": MulticlassF1Score(classes, average="macro"),
            }
        )

    def on_train_start(self) -> None:
        """From here on everything that a checkpoint holds has been restored."""
        self.started = True

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Reseed from the run's seed, the epoch, the step and the process, whatever drew random numbers before."""
        seed_from(self.seed, self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step's loss."""
        self.batch = batch
        logits = self.task(batch)
        loss = self.task.loss(logits, batch)
        self.train_accuracy(logits, batch["target"])
        self.train_loss.update(loss.detach(), len(logits))
        options = _by_epoch(logits)
        self.log("train_loss", self.train_loss, **options)
        self.log("train_accuracy", self.train_accuracy, **options, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss and metrics of a validation batch."""
        logits = self.task(batch)
        self.val_metrics.update(logits, batch["target"])
        self.val_loss.update(self.task.loss(logits, batch), len(logits))
        options = _by_epoch(logits)
        self.log("val_loss", self.val_loss, **options, prog_bar=True)
        self.log_dict(self.val_metrics, **options)

    def _parameter_groups(self) -> tuple[list[dict[str, Any]], tuple[float, float]]:
        """What AdamW moves, and its betas."""
        config = self.config
        groups = parameter_groups(self.task.model, config.weight_decay, config.learning_rate, config.layer_decay)
        return groups, (0.9, 0.999)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with warm-up and cosine a step."""
        config = self.config
        groups, betas = self._parameter_groups()
        # One kernel for all parameters; Lightning does not clip its gradients under mixed precision.
        fused = self.device.type in ("cpu", "cuda") and not config.precision.endswith("-mixed")
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=fused)
        total = int(self.trainer.estimated_stepping_batches)
        # A very short training has no room for the whole warm-up; it keeps at most half of its steps for it.
        warmup = min(round(config.warmup_epochs * total / config.max_epochs), total // 2)
        factor = warmup_cosine(total, warmup, config.min_learning_rate / config.learning_rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def seed_from(*entropy: int) -> None:
    """Begin torch's random numbers anew from whole numbers."""
    low, high = np.random.SeedSequence(entropy).generate_state(2)
    torch.manual_seed(int(low) + (int(high) << 32) >> 1)


def _by_epoch(logits: Tensor) -> dict[str, Any]:
    return {"on_step": False, "on_epoch": True, "batch_size": len(logits)}
