"""Pre-training: from a recipe to a run folder with an encoder, and no labels needed on the way."""

from __future__ import annotations

import dataclasses
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor, nn
from torchmetrics import MeanMetric

from vitrail.config.augment import augment_settings
from vitrail.config.schema import PRETRAINING, Recipe, TaskConfig, TrainerConfig
from vitrail.data.augment.contrastive import build_views
from vitrail.data.dataset import ImageData, open_data
from vitrail.data.identity import KnownImages
from vitrail.errors import ConfigError, DataError
from vitrail.models.base import VisionModel
from vitrail.models.image_size import image_size
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import ModelCard
from vitrail.tasks.mae import MAETask
from vitrail.tasks.pretraining import PretrainingTask
from vitrail.tasks.simclr import SimCLRTask
from vitrail.tasks.simmim import SimMIMTask
from vitrail.train.callbacks.checkpoints import EpochMetrics, RunCheckpoints, StopOnNonFinite
from vitrail.train.callbacks.explanations import Draw
from vitrail.train.callbacks.representation import Watching
from vitrail.train.fit import Plan, augmentation, carry_out
from vitrail.train.module import TaskModule, seed_from

# What a step's result may hold, by name; in metrics.csv after "train_" and "val_".
_RESULTS = ("loss", "loss_image", "loss_spectral", "partner_accuracy")
_RECORDED = tuple(f"{part}_{name}" for name in _RESULTS for part in ("train", "val"))
# Settings of the trainer that are about a classifier.
_FOR_CLASSIFIERS = (
    "freeze_epochs", "unfreeze_every", "ema_decay", "early_stopping_patience", "early_stopping_monitor", "monitor",
)  # fmt: skip
# Keeps the random numbers of validation apart from those of training.
_VALIDATION = 1 << 20


def pretrain(recipe: Recipe, *, resume: bool = False, draw: Draw | None = None) -> RunFolder:
    """Pre-train the recipe's model and write its run folder, whose model is the last epoch's, without a classifier.

    Labels are not used for training. Where there are any, metrics.csv says how well they can be told from what the
    model has learned. Training images that ``data.label_fraction`` leaves without label are trained on too.

    Args:
        recipe: What to pre-train, and how (``task.name``).
        resume: Go on from the last checkpoint of the recipe's run folder (or start, where there is none yet).
        draw: Draws explanations while it trains, as for :func:`vitrail.train.fit.train`.

    Returns:
        The run folder.

    Raises:
        ConfigError: A setting that does not fit.
        DataError: Images that are missing, unreadable or inconsistent.
        RunError: The run folder is taken or cannot be written, or a checkpoint cannot be resumed.
        WeightsError: ``model.weights`` cannot be read or does not fit.
    """
    if recipe.task.name not in PRETRAINING:
        raise ConfigError(
            f"task.name {recipe.task.name} is no pre-training; choose --task.name {', '.join(PRETRAINING)}, or use "
            "`vitrail train`"
        )
    _refuse_meaningless(recipe)
    return carry_out(recipe, _WITHOUT_LABELS, resume=resume, draw=draw)


def _refuse_meaningless(recipe: Recipe) -> None:
    """Settings that belong to training with labels, and those that a task has no use for."""
    defaults, trainer, data = TrainerConfig(), recipe.trainer, recipe.data
    for name in _FOR_CLASSIFIERS:
        value = getattr(trainer, name)
        if value != getattr(defaults, name):
            raise ConfigError(
                f"trainer.{name} {value!r} has no meaning in pre-training, which trains the whole model and keeps the "
                "last epoch's weights; leave it out"
            )
    if trainer.progressive_sizes:
        raise ConfigError(
            f"trainer.progressive_sizes {list(trainer.progressive_sizes)} cannot be had in pre-training, which masks "
            "and compares images of one size; leave it out"
        )
    if trainer.compile:
        raise ConfigError(
            "trainer.compile true cannot be had in pre-training, which calls the model's parts and not the whole; "
            "leave it out"
        )
    if data.sampling != "shuffle":
        raise ConfigError(
            f"data.sampling {data.sampling!r} goes by labels, and pre-training takes each image as often as any other; "
            "leave it out"
        )
    if recipe.task.name == "simclr":
        if data.augment != "none" or data.augment_settings:
            raise ConfigError(
                f"data.augment {data.augment!r} with {len(data.augment_settings)} augment_settings: simclr draws views "
                "of its own (task.view_min_scale, task.color_strength); leave both out"
            )
        if data.batch_size == "auto" or data.batch_size < 2:
            raise ConfigError(
                f"data.batch_size must be a number of at least 2 for simclr, which compares the images of a batch, got "
                f"{data.batch_size}"
            )
    if augment_settings(data.augment, data.augment_settings).mixes:
        raise ConfigError(
            f"data.augment {data.augment!r} mixes images and their labels (mixup, cutmix), and pre-training has no "
            "labels; add data.augment_settings {mixup: 0, cutmix: 0}"
        )


def make_task(config: TaskConfig, model: VisionModel, card: ModelCard, augment: nn.Module | None) -> PretrainingTask:
    """The task that a recipe names.

    Args:
        config: Its settings.
        model: Is trained.
        card: What its inputs are.
        augment: Random transforms for those tasks that draw no views.

    Raises:
        ConfigError: A model or settings that the task cannot do with.
    """
    normalize = card.normalization()
    settings: dict[str, Any] = {name: getattr(config, name) for name in PRETRAINING[config.name]}
    if config.name == "simclr":
        bands = len(card.streams["image"].bands)
        views = build_views(card.img_size, bands, settings.pop("view_min_scale"), settings.pop("color_strength"))
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


class PretrainModule(TaskModule):
    """Wraps a task without labels for Lightning.

    Args:
        task: What is optimised.
        config: Learning rate and the like.
        seed: Of the random numbers, which start anew at each step, in validation alike in every epoch.
    """

    task: PretrainingTask  # type: ignore[assignment]  # a sibling of the classification that its base trains

    def __init__(self, task: PretrainingTask, config: TrainerConfig, seed: int) -> None:
        super().__init__(task, config, seed)  # type: ignore[arg-type]

    def _make_metrics(self) -> None:
        self.means = nn.ModuleDict({f"{part}_{name}": MeanMetric() for part in ("train", "val") for name in _RESULTS})

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step's loss."""
        self.batch = batch = self.task.prepare(batch)
        return self._of_its_group(self._record("train", batch), batch_idx)

    def on_validation_batch_start(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """The same masks and views in every epoch, so that losses can be compared."""
        seed_from(self.seed, _VALIDATION, batch_idx, self.global_rank)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The loss of a validation batch."""
        self._record("val", batch)

    def _record(self, part: str, batch: dict[str, Tensor]) -> Tensor:
        result = self.task(batch)
        for name, value in result.items():
            metric = self.means[f"{part}_{name}"]
            assert isinstance(metric, MeanMetric)
            metric.update(value.detach(), len(batch["index"]))
            self.log(f"{part}_{name}", metric, on_step=False, on_epoch=True)
        return self.task.loss(result, batch)


def _open(recipe: Recipe, known: KnownImages | None) -> ImageData:
    """All training images, those without a label too."""
    data = open_data(recipe.data, image_size(recipe), known=known)
    if "train" not in data.splits:
        raise DataError(f"pre-training needs a 'train' split, the data has only {', '.join(data.splits)}")
    everything = sorted([*data.indices("train"), *data.splits.get("unlabelled", [])])
    if data.recognition is not None:
        everything = data.recognition.in_order(everything)
    labelled = data.indices("train") if data.source.classes else []
    return dataclasses.replace(data, splits={**data.splits, "train": everything, "labelled": labelled})


def _task(recipe: Recipe, data: ImageData, model: VisionModel, card: ModelCard) -> PretrainingTask:
    return make_task(recipe.task, model, card, augmentation(recipe, card))


def _callbacks(recipe: Recipe, run: RunFolder, card: ModelCard, data: ImageData) -> list[Callback]:
    if not recipe.task.watch_every:
        return [StopOnNonFinite(run), EpochMetrics(run, _RECORDED), RunCheckpoints(run, card, None)]
    views = build_views(card.img_size, len(card.streams["image"].bands))
    watching = Watching(data, views, recipe.task.watch_every, recipe.run.seed)
    # Measured before the epoch's row is written.
    metrics = EpochMetrics(run, _RECORDED, watching.values)
    return [StopOnNonFinite(run), watching, metrics, RunCheckpoints(run, card, None)]


_WITHOUT_LABELS = Plan(
    open=_open,
    classes=lambda data: (),
    task=_task,
    module=PretrainModule,
    callbacks=_callbacks,
)
