"""Exponential moving average of the weights."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from vitrail.models.base import VisionModel
from vitrail.tasks.classification import ClassificationTask


class WeightEMA(WeightAveraging):
    """Exponential moving average of the weights, used for validation and model.safetensors.

    BatchNorm statistics are the current ones of the model.

    Args:
        decay: Largest decay; after n steps it is at most (1 + n) / (10 + n), which discounts the random first weights.

    Source: Polyak & Juditsky 1992; the early decay as TensorFlow's ExponentialMovingAverage(num_updates).
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, number: Tensor | int) -> Tensor:
            steps = float(number)
            return torch.lerp(current, averaged, min(decay, (1 + steps) / (10 + steps)))

        super().__init__(use_buffers=False, avg_fn=average)

    def model(self) -> VisionModel:
        """Return the averaged model."""
        assert self._average_model is not None, "the average exists from the start of the fit"
        task = self._average_model.module.task
        assert isinstance(task, ClassificationTask)
        return task.model


def trained_model(trainer: Trainer, model: VisionModel) -> VisionModel:
    """Return the averaged model of a trainer with :class:`WeightEMA`, and ``model`` without."""
    averages = [c.model() for c in trainer.callbacks if isinstance(c, WeightEMA)]  # type: ignore[attr-defined]
    return averages[0] if averages else model
