"""Supervised training: single-label and multi-label classification."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torchmetrics import MeanMetric

from vitrail.config.augment import augment_settings
from vitrail.config.schema import Recipe, TaskConfig
from vitrail.data.augment import Mixing
from vitrail.data.dataset import ImageData, open_data
from vitrail.data.identity import KnownImages
from vitrail.data.video.sampling import average_views
from vitrail.errors import ConfigError, DataError
from vitrail.models.base import VisionModel
from vitrail.models.image_size import image_size
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import ModelCard
from vitrail.tasks.classification import ClassificationTask, PartsTask
from vitrail.tasks.distillation import DistillationTask
from vitrail.tasks.losses import ClassificationLoss, MultiLabelLoss, balanced_positive_weights, balanced_weights
from vitrail.train.build import Builder, build_batch_augmentation
from vitrail.train.callbacks.checkpoints import RunCheckpoints
from vitrail.train.callbacks.early_stopping import Patience
from vitrail.train.callbacks.ema import WeightEMA
from vitrail.train.callbacks.freezing import Freezing
from vitrail.train.callbacks.metrics import EpochMetrics
from vitrail.train.callbacks.non_finite import StopOnNonFinite
from vitrail.train.callbacks.progressive_size import ProgressiveSize
from vitrail.train.module import TaskModule
from vitrail.train.teacher import LoadedTeacher, check_teacher
from vitrail.train.validation_metrics import make_metrics


class SupervisedModule(TaskModule):
    """Lightning module of a classification task."""

    task: ClassificationTask

    def make_metrics(self) -> None:
        """Make the metrics, which are exact over several processes and batches of different sizes."""
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.train_accuracy, self.val_metrics = make_metrics(
            self.task.model.num_classes, self.task.multi_label, isinstance(self.task, PartsTask)
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Augment a batch and compute its loss."""
        self.batch = batch = self.task.prepare(batch)
        output = self.task(batch)
        loss = self.task.loss(output, batch)
        logits, target = self.task.labelled(output, batch)
        self.train_accuracy(*self._hard(logits, target))
        self.train_loss.update(loss.detach(), len(logits))
        options = _each_epoch(logits)
        self.log("train_loss", self.train_loss, **options)
        self.log("train_accuracy", self.train_accuracy, **options)
        return self.scale_to_group(loss, batch_idx)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to the validation loss and metrics."""
        output = average_views(self.task(batch), len(batch["index"]))
        logits, target = self.task.labelled(output, batch)
        self.val_metrics.update(*self._hard(logits, target))
        self.val_loss.update(self.task.loss(output, batch), len(logits))
        options = _each_epoch(logits)
        self.log("val_loss", self.val_loss, **options)
        self.log_dict(self.val_metrics, **options)

    def _hard(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Convert soft targets of mixed images for metrics: the largest class, or labels of at least one half."""
        if self.task.multi_label:
            return logits.detach(), (target >= 0.5).long()
        return logits, target if target.ndim == 1 else target.argmax(dim=1)


class SupervisedBuilder(Builder):
    """Steps of training with labels."""

    def check_settings(self, recipe: Recipe) -> None:
        """Check that there is a teacher where one is needed."""
        if recipe.task.teacher is not None:
            check_teacher(recipe.task.teacher)

    def open_images(self, recipe: Recipe, known: KnownImages | None) -> ImageData:
        """Open images with labels, split into training and validation."""
        data = open_data(recipe.data, image_size(recipe), known=known)
        if not data.source.classes:
            raise ConfigError(
                f"data.source {recipe.data.source} has no labels; pre-train on it (`vitrail pretrain`), then train "
                "from that run on images with labels (--model.weights runs/PRETRAINED)"
            )
        for split in ("train", "val"):
            if split not in data.splits:
                raise DataError(f"training needs a {split!r} split, the data has only {', '.join(data.splits)}")
        _check_labels(recipe, data)
        return data

    def classes(self, data: ImageData) -> tuple[str, ...]:
        """Return the classes of the images."""
        return data.source.classes

    def build_task(self, recipe: Recipe, data: ImageData, model: VisionModel, card: ModelCard) -> ClassificationTask:
        """Build the classification task with its loss, augmentation and mixing."""
        normalize, config = card.normalization(), recipe.task
        augment, mix = build_batch_augmentation(recipe, card.filling(), card.classes), _mixing(recipe, card)
        criterion = self.criterion(recipe.task, data)
        if config.name != "distill":
            return ClassificationTask(model, normalize, augment, criterion, mix)
        assert config.teacher is not None, "checked by the config"
        settings: dict[str, Any] = {name: getattr(config, name) for name in ("distillation", "alpha", "temperature")}
        teacher = LoadedTeacher(config.teacher, card)
        return DistillationTask(model, normalize, teacher, augment=augment, criterion=criterion, mix=mix, **settings)

    def training_targets(self, data: ImageData) -> Tensor:
        """Return the targets of the training split, classes ``(N,)`` or labels ``(N, K)``, for balanced weights."""
        return torch.from_numpy(data.source.targets[data.indices("train")])

    def criterion(self, config: TaskConfig, data: ImageData) -> ClassificationLoss | MultiLabelLoss:
        """Build the loss, with balanced weights of classes where the recipe asks for them."""
        targets = self.training_targets(data) if config.class_weights == "balanced" else None
        if config.loss == "bce":
            positive = None if targets is None else balanced_positive_weights(targets)
            return MultiLabelLoss(config.label_smoothing, positive)
        weights = None if targets is None else balanced_weights(targets, len(self.classes(data)))
        gamma = config.focal_gamma if config.loss == "focal" else 0.0
        return ClassificationLoss(config.label_smoothing, gamma, weights)

    def build_module(self, recipe: Recipe, task: ClassificationTask) -> SupervisedModule:
        """Compile the model if the recipe asks for it, and wrap the task."""
        if recipe.trainer.compile:
            task.compile_model()
        return SupervisedModule(task, recipe.trainer, recipe.run.seed)

    def build_callbacks(self, recipe: Recipe, run: RunFolder, card: ModelCard, data: ImageData) -> list[Callback]:
        """Build metrics, checkpoints of the best epoch, and the options of fine-tuning."""
        config = recipe.trainer
        metrics = EpochMetrics(run)
        callbacks: list[Callback] = [StopOnNonFinite(run), metrics, RunCheckpoints(run, card, config.monitor)]
        if config.freeze_epochs:
            callbacks.append(Freezing(config.freeze_epochs, config.unfreeze_every))
        if config.progressive_sizes:
            callbacks.append(ProgressiveSize(config.progressive_sizes, card.img_size[-2:], config.max_epochs))
        if config.ema_decay:
            callbacks.insert(0, WeightEMA(config.ema_decay))
        if config.early_stopping_patience:
            callbacks.append(Patience(config.early_stopping_monitor, config.early_stopping_patience, metrics))
        return callbacks


def _check_labels(recipe: Recipe, data: ImageData) -> None:
    """Check that loss and monitors match the task and single-label or multi-label data."""
    multi_label = data.source.targets.ndim == 2
    if multi_label != (recipe.task.loss == "bce"):
        remedy = "use cross_entropy, or data.classes.multi_label, or data.table.label_separator with a table"
        remedy = "use bce" if multi_label else remedy
        kind = "multi-label" if multi_label else "single-label"
        raise ConfigError(f"task.loss {recipe.task.loss!r} does not fit: the data is {kind}; {remedy}")
    lacking = {"val_balanced_accuracy": "on multi-label data"} if multi_label else {"val_map": "on single-label data"}
    if recipe.task.name != "parts":
        lacking["val_miou"] = f"with task.name {recipe.task.name}"
    for name in ("monitor", "early_stopping_monitor"):
        value = getattr(recipe.trainer, name)
        if value in lacking:
            raise ConfigError(f"trainer.{name} {value!r} is not measured {lacking[value]}; use val_f1_macro")


class PartsBuilder(SupervisedBuilder):
    """Steps of training with labels of points."""

    def open_images(self, recipe: Recipe, known: KnownImages | None) -> ImageData:
        """Open clouds whose points have labels."""
        data = super().open_images(recipe, known)
        if not data.source.parts:
            raise ConfigError(
                "task.name parts needs labels of points: set data.points.part to the column that holds them ('surface' "
                f"of solids), got {recipe.data.points.part!r} and data.source {recipe.data.source}"
            )
        return data

    def classes(self, data: ImageData) -> tuple[str, ...]:
        """Return the names of the parts."""
        return data.source.parts

    def training_targets(self, data: ImageData) -> Tensor:
        """Return the parts of all labelled points of the training split, shape ``(M,)``."""
        parts = data.source.read(data.indices("train"))["parts"]
        return parts[parts >= 0]

    def build_task(self, recipe: Recipe, data: ImageData, model: VisionModel, card: ModelCard) -> PartsTask:
        """Build the task; balanced weights are by the number of points."""
        augment = build_batch_augmentation(recipe, card.filling(), card.classes)
        return PartsTask(model, card.normalization(), augment, self.criterion(recipe.task, data))


def _mixing(recipe: Recipe, card: ModelCard) -> Mixing | None:
    settings = augment_settings(recipe.data.augment, recipe.data.augmentation)
    return Mixing(settings, len(card.classes)) if settings.mixes else None


def _each_epoch(logits: Tensor) -> dict[str, Any]:
    return {"on_step": False, "on_epoch": True, "batch_size": len(logits)}
