"""Pre-training without labels: SimCLR, MAE and SimMIM."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor, nn
from torchmetrics import MeanMetric

from vitrail.config.augment import augment_settings
from vitrail.config.schema import PRETRAINING, Recipe, TaskConfig
from vitrail.data.augment.contrastive import build_clip_views, build_views
from vitrail.data.augment.directions import classes_with_directions
from vitrail.data.dataset import ImageData, open_data
from vitrail.data.identity import KnownImages
from vitrail.data.notes import print_notes
from vitrail.errors import ConfigError, DataError, few
from vitrail.models.base import VisionModel
from vitrail.models.image_size import image_size
from vitrail.models.modality import VIDEO, check_need
from vitrail.models.registry import find_family
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import ModelCard
from vitrail.tasks.mae import MAETask
from vitrail.tasks.pretraining import PretrainingTask
from vitrail.tasks.simclr import SimCLRTask
from vitrail.tasks.simmim import SimMIMTask
from vitrail.train.build import Builder, build_batch_augmentation
from vitrail.train.callbacks.checkpoints import RunCheckpoints
from vitrail.train.callbacks.metrics import EpochMetrics
from vitrail.train.callbacks.non_finite import StopOnNonFinite
from vitrail.train.callbacks.representation import RepresentationMetrics
from vitrail.train.module import TaskModule, seed_from

# Results of a step; columns of metrics.csv after "train_" and "val_".
_RESULTS = ("loss", "loss_image", "loss_spectral", "partner_accuracy")
_RECORDED = tuple(f"{part}_{name}" for name in _RESULTS for part in ("train", "val"))
# Settings of the trainer for classifiers.
_FOR_CLASSIFIERS = (
    "freeze_epochs", "unfreeze_every", "ema_decay", "early_stopping_patience", "early_stopping_monitor", "monitor",
)  # fmt: skip
# Separates the seeds of validation from those of training.
_VALIDATION = 1 << 20


class PretrainModule(TaskModule):
    """Lightning module of a pre-training task; the masks and views of validation are equal in every epoch."""

    task: PretrainingTask

    def make_metrics(self) -> None:
        """Make a mean of each result."""
        self.means = nn.ModuleDict({f"{part}_{name}": MeanMetric() for part in ("train", "val") for name in _RESULTS})

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Augment a batch and compute its loss."""
        self.batch = batch = self.task.prepare(batch)
        return self.scale_to_group(self._record("train", batch), batch_idx)

    def on_validation_batch_start(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Seed by the batch alone, so that the losses of epochs can be compared."""
        seed_from(self.seed, _VALIDATION, batch_idx, self.global_rank)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to the validation results."""
        self._record("val", batch)

    def _record(self, part: str, batch: dict[str, Tensor]) -> Tensor:
        result = self.task(batch)
        for name, value in result.items():
            metric = self.means[f"{part}_{name}"]
            assert isinstance(metric, MeanMetric)
            metric.update(value.detach(), len(batch["index"]))
            self.log(f"{part}_{name}", metric, on_step=False, on_epoch=True)
        return self.task.loss(result, batch)


class PretrainingBuilder(Builder):
    """Steps of training without labels."""

    def check_settings(self, recipe: Recipe) -> None:
        """Reject settings of supervised training, those that the task does not use, and models of other inputs."""
        _check_settings(recipe)

    def open_images(self, recipe: Recipe, known: KnownImages | None) -> ImageData:
        """Open all training images, with and without labels."""
        data = open_data(recipe.data, image_size(recipe), known=known)
        if "train" not in data.splits:
            raise DataError(f"pre-training needs a 'train' split, the data has only {', '.join(data.splits)}")
        everything = sorted([*data.indices("train"), *data.splits.get("unlabelled", [])])
        if data.recognition is not None:
            everything = data.recognition.sort_by_run(everything)
        labelled = data.indices("train") if data.source.classes else []
        return dataclasses.replace(data, splits={**data.splits, "train": everything, "labelled": labelled})

    def classes(self, data: ImageData) -> tuple[str, ...]:
        """Return no classes: the model has no classifier."""
        return ()

    def build_task(self, recipe: Recipe, data: ImageData, model: VisionModel, card: ModelCard) -> PretrainingTask:
        """Build the task that ``task.name`` names."""
        augment = build_batch_augmentation(recipe, card.filling())
        return _make_task(recipe.task, model, card, augment, data.source.classes)

    def build_module(self, recipe: Recipe, task: PretrainingTask) -> PretrainModule:
        """Wrap the task."""
        return PretrainModule(task, recipe.trainer, recipe.run.seed)

    def build_callbacks(self, recipe: Recipe, run: RunFolder, card: ModelCard, data: ImageData) -> list[Callback]:
        """Build metrics, checkpoints of the last epoch, and measurements of the features."""
        measurements: dict[str, float] = {}
        callbacks: list[Callback] = [StopOnNonFinite(run)]
        if recipe.task.watch_every:
            views = _build_views(card, data.source.classes)
            representation = RepresentationMetrics(data, views, recipe.task.watch_every, recipe.run.seed)
            # Before the metrics, whose row they join.
            callbacks.append(representation)
            measurements = representation.values
        return [*callbacks, EpochMetrics(run, _RECORDED, measurements), RunCheckpoints(run, card, None)]


def _check_settings(recipe: Recipe) -> None:
    """Reject settings of supervised training, and those that the task does not use."""
    modality, name = find_family(recipe.model.name)[0].modality, f"model.name {recipe.model.name}"
    check_need(f"task.name {recipe.task.name}", modality, name)
    check_need("pretrain", modality, name)
    defaults, trainer, data = Recipe(task=recipe.task).trainer, recipe.trainer, recipe.data
    for name in _FOR_CLASSIFIERS:
        value = getattr(trainer, name)
        if value != getattr(defaults, name):
            raise ConfigError(
                f"trainer.{name} {value!r} does not apply to pre-training, which trains the whole model and keeps the "
                "last epoch's weights; remove it"
            )
    if trainer.progressive_sizes:
        raise ConfigError(
            f"trainer.progressive_sizes {list(trainer.progressive_sizes)} is not supported in pre-training, which "
            "masks and compares images of one size; leave it out"
        )
    if trainer.compile:
        raise ConfigError(
            "trainer.compile true is not supported in pre-training, which calls the model's parts and not the whole; "
            "leave it out"
        )
    if data.loader.sampling != "shuffle":
        raise ConfigError(
            f"data.loader.sampling {data.loader.sampling!r} goes by labels, and pre-training takes each image as "
            "often as any other; leave it out"
        )
    if recipe.task.name == "simclr":
        if data.augment != "none" or data.augmentation:
            raise ConfigError(
                f"data.augment {data.augment!r} with {len(data.augmentation)} settings of data.augmentation: simclr "
                "draws views of its own (task.view_min_scale, task.color_strength); leave both out"
            )
        if data.batch_size == "auto" or data.batch_size < 2:
            raise ConfigError(
                f"data.batch_size must be a number of at least 2 for simclr, which compares the images of a batch, got "
                f"{data.batch_size}"
            )
    if augment_settings(data.augment, data.augmentation).mixes:
        raise ConfigError(
            f"data.augment {data.augment!r} mixes images and their labels (mixup, cutmix), and pre-training has no "
            "labels; add data.augmentation {mixup: 0, cutmix: 0}"
        )


def _build_views(card: ModelCard, classes: Sequence[str], min_scale: float = 0.2, strength: float = 0.5) -> nn.Module:
    """Build the random views of images or clips; clips are not mirrored where names of classes say left or right."""
    bands = len(next(iter(card.streams.values())).bands)
    if card.modality is VIDEO:
        return build_clip_views(bands, min_scale, strength, flips=not _not_mirrored(classes))
    return build_views(card.img_size, bands, min_scale, strength)


def _not_mirrored(classes: Sequence[str]) -> list[str]:
    return classes_with_directions("flip_horizontal", classes)


def _make_task(
    config: TaskConfig, model: VisionModel, card: ModelCard, augment: nn.Module | None, classes: Sequence[str]
) -> PretrainingTask:
    """Build the task that a recipe names; ``augment`` is for tasks without views of their own."""
    normalize = card.normalization()
    settings: dict[str, Any] = {name: getattr(config, name) for name in PRETRAINING[config.name]}
    if config.name == "simclr":
        if card.modality is VIDEO and (named := _not_mirrored(classes)):
            print_notes([f"views of clips are not mirrored: classes say a direction ({few(named)})"])
        views = _build_views(card, classes, settings.pop("view_min_scale"), settings.pop("color_strength"))
        return SimCLRTask(model, normalize, views, **settings)
    if config.name == "mae":
        return MAETask(model, normalize, augment, **settings)
    first, second = settings.pop("mask_ratio"), settings.pop("spectral_mask_ratio")
    ratios = {"image": first}
    if "spectral" in card.streams:
        ratios["spectral"] = first if second is None else second
    elif second is not None:
        raise ConfigError("task.spectral_mask_ratio needs a second stream, the data has the image alone; leave it out")
    return SimMIMTask(model, normalize, augment, mask_ratios=ratios, **settings)
