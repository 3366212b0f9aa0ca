"""Explanations of a few fixed images during training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor
from typing_extensions import override

from vitrail.config.schema import Recipe
from vitrail.data.dataset import Batch, ImageData
from vitrail.errors import plural
from vitrail.explain.capture.prepare import labels_points
from vitrail.explain.interface import explain
from vitrail.explain.methods.maps import Explanation
from vitrail.explain.methods.registry import default_method, get_method
from vitrail.models.base import VisionModel
from vitrail.models.modality import MODALITIES, POINTS
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


def draw_glimpse(glimpse: Glimpse, out: Path) -> None:
    """Draw explanations: a column an image and a row a stream, on one scale.

    Args:
        glimpse: The explanations.
        out: PNG file.

    Raises:
        RunError: The file cannot be written.
    """
    # matplotlib is loaded only by runs that draw.
    from vitrail.figures.clouds import cloud_picture, point_ranks
    from vitrail.figures.display import as_pictures
    from vitrail.figures.film_strip import flat_maps
    from vitrail.figures.heatmaps import EVEN, Cell, draw_cells, in_even_spreads
    from vitrail.figures.write import write_figure

    method = get_method(glimpse.explanation.method)
    several = len(glimpse.explanation) > 1
    cells: list[list[Cell | None]] = []
    labels = []
    for stream, found in glimpse.explanation.items():
        if stream == POINTS.name:
            clouds, maps = (x.detach().float().cpu().numpy() for x in (glimpse.streams[stream], found.map))
            ranks = [point_ranks(own, np.isfinite(cloud).all(1)) for cloud, own in zip(clouds, maps, strict=True)]
            cells = [
                [Cell(cloud_picture(cloud), title=title) for cloud, title in zip(clouds, glimpse.titles, strict=True)],
                [Cell(cloud_picture(cloud, own)) for cloud, own in zip(clouds, ranks, strict=True)],
            ]
            labels = [POINTS.singular, f"{method.name}, by rank"]
            break
        pictures = as_pictures(glimpse.streams[stream])
        heats = in_even_spreads(flat_maps(found.map.detach().float().cpu()).numpy())
        titles = [""] * len(pictures) if cells else glimpse.titles
        cells.append([Cell(pixels, title=title) for pixels, title in zip(pictures, titles, strict=True)])
        cells.append([Cell(p, heat, method.signed) for p, heat in zip(pictures, heats, strict=True)])
        labels += [
            stream if several else MODALITIES[stream].singular,
            f"{method.name}\n{stream}" if several else method.name,
        ]
    epochs = plural(glimpse.epoch, "epoch")
    write_figure(draw_cells(cells, labels, EVEN, f"{method.name} after {epochs}"), out, dpi=110)


class DrawExplanations(Callback):
    """Draw explanations of the same few images every few epochs and after the last.

    The images are the first validation images of each class in turn (training images without augmentation if there is
    no validation split), explained for their own class; where points are labelled, for the part with the most points.
    The first process draws; random numbers, gradients and modes of training do not change.

    Args:
        run: The run folder.
        data: The images.
        recipe: Number of images, interval in epochs and method (``run.explain_*``).
        task: Task whose model is explained, at once for one image, to reject an unsuitable method before training.

    Raises:
        ConfigError: The method is unknown or does not suit the model.
    """

    def __init__(self, run: RunFolder, data: ImageData, recipe: Recipe, task: Task) -> None:
        asked, self.every = recipe.run.explain_method, recipe.run.explain_every
        self.method = default_method(task.model) if asked == "auto" else asked
        by_class = get_method(self.method).by_class
        self.run = run
        split = "val" if "val" in data.splits else "train"
        self.batch: Batch = data.batch(data.balanced_sample(split, recipe.run.explain_images))
        self.titles = [data.source.label(i) for i in self.batch["index"].tolist()]
        one_class = self.batch["target"].ndim == 1 and not labels_points(task.model)
        self.target = self.batch["target"] if by_class and one_class else None
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
        file = self.run.explanation(epoch)
        draw_glimpse(glimpse, file)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                with Image.open(file) as image:
                    pixels = np.asarray(image.convert("RGB"))
                logger.experiment.add_image("explanations", pixels, epoch, dataformats="HWC")

    def _explain(self, task: Task, model: VisionModel, batch: Any, target: Tensor | None) -> Explanation:
        # A method may draw random numbers; those of training go on as if it had not.
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            return explain(model, task.normalize(task.streams(batch)), self.method, target)
