"""Explanations of a few fixed images during training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from typing_extensions import override

from vitrail.config.schema import Recipe
from vitrail.data.dataset import Batch, ImageData
from vitrail.errors import ConfigError
from vitrail.explain.interface import explain
from vitrail.explain.methods.maps import Explanation
from vitrail.explain.methods.registry import get_method
from vitrail.files import replacing
from vitrail.models.base import VisionModel
from vitrail.runs.folder import RunFolder
from vitrail.tasks.base import Task
from vitrail.train.callbacks.ema import trained_model


@dataclass(frozen=True)
class Glimpse:
    """Explanations at the end of an epoch.

    Attributes:
        epoch: Number of trained epochs.
        streams: Images, stream -> shape ``(n, C, H, W)`` in 0..1.
        titles: Label of each image.
        explanation: Explanation of all images.
    """

    epoch: int
    streams: dict[str, Tensor]
    titles: list[str]
    explanation: Explanation


# Draws into a PNG file and returns the pixels ``(H, W, 3)``. An argument, because figures are drawn on a higher floor.
Draw = Callable[[Glimpse, Path], npt.NDArray[np.uint8]]


class DrawExplanations(Callback):
    """Draw explanations of the same few images every few epochs and after the last.

    The images are the first validation images of each class in turn (training images without augmentation if there is
    no validation split), explained for their own class. The first process draws; random numbers, gradients and modes of
    training do not change.

    Args:
        run: The run folder.
        data: The images.
        recipe: Number of images, interval in epochs and method (``run.explain_*``).
        task: Task whose model is explained, at once for one image, to reject an unsuitable method before training.
        draw: Draws the explanations.

    Raises:
        ConfigError: The method is unknown or does not suit the model, or ``draw`` is None.
    """

    def __init__(self, run: RunFolder, data: ImageData, recipe: Recipe, task: Task, draw: Draw | None) -> None:
        self.method, self.every = recipe.run.explain_method, recipe.run.explain_every
        by_class = get_method(self.method).by_class
        if draw is None:
            raise ConfigError(
                f"run.explain_images {recipe.run.explain_images} needs something that draws: "
                "train(recipe, draw=vitrail.analyze.explanations.draw_glimpse), or the command line"
            )
        self.run, self.draw = run, draw
        split = "val" if "val" in data.splits else "train"
        self.batch: Batch = data.batch(data.balanced_sample(split, recipe.run.explain_images))
        self.titles = [data.source.label(i) for i in self.batch["index"].tolist()]
        self.target = self.batch["target"] if by_class and self.batch["target"].ndim == 1 else None
        one = {name: value[:1] for name, value in self.batch.items()}
        self._explain(task, task.model, one, None if self.target is None else self.target[:1])
        self._done = self._drawn = 0

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._done = trainer.current_epoch + 1
        if self._done == trainer.max_epochs or self._done % self.every == 0:
            self._draw(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An epoch may turn out to have been the last: early stopping, or out of time.
        if self._drawn < self._done:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = self._drawn = self._done
        if not trainer.is_global_zero:
            return
        task = pl_module.task
        assert isinstance(task, Task)
        batch = trainer.precision_plugin.convert_input({k: v.to(pl_module.device) for k, v in self.batch.items()})
        with trainer.precision_plugin.forward_context():
            explanation = self._explain(task, trained_model(trainer, task.model), batch, self.target)
        glimpse = Glimpse(epoch, task.streams(self.batch), self.titles, explanation)
        with replacing(self.run.explanation(epoch)) as temporary:
            pixels = self.draw(glimpse, temporary)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("explanations", pixels, epoch, dataformats="HWC")

    def _explain(self, task: Task, model: VisionModel, batch: Any, target: Tensor | None) -> Explanation:
        # A method may draw random numbers; those of training go on as if it had not.
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            return explain(model, task.normalize(task.streams(batch)), self.method, target)
