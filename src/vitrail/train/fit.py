"""Training: from a recipe to a finished run folder, also after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import Strategy

from vitrail.config.augment import augment_settings
from vitrail.config.load import dump_recipe
from vitrail.config.schema import Recipe, TrainerConfig
from vitrail.data.augment import Augmentation, Mixing, build_augmentation
from vitrail.data.dataset import EpochShuffle, ImageData, open_data
from vitrail.data.identity import KnownImages
from vitrail.data.images import BANDS
from vitrail.data.split_checks import describe_split, describe_steps
from vitrail.data.workers import explain_fault
from vitrail.errors import ConfigError, DataError, VitrailError
from vitrail.files import write_text
from vitrail.layers.shapes import to_pair
from vitrail.models.base import VisionModel
from vitrail.models.image_size import image_size
from vitrail.models.registry import create_model, find_family, list_families
from vitrail.runs.folder import RunFolder
from vitrail.runs.images import read_image_record, write_image_record
from vitrail.runs.input_hashes import input_hashes
from vitrail.runs.lock import lock_run_folder
from vitrail.runs.trained import ModelCard, StreamCard
from vitrail.runs.training_images import count_pretraining_images, describe_pretraining_images, record_training_images
from vitrail.tasks.base import Task
from vitrail.tasks.classification import ClassificationTask
from vitrail.tasks.losses import ClassificationLoss, MultiLabelLoss, balanced_positive_weights, balanced_weights
from vitrail.train.announcement import describe_start
from vitrail.train.auto.resolve import settle_as_begun, settle_labels, settle_sizes
from vitrail.train.callbacks.checkpoints import (
    EpochMetrics,
    RunCheckpoints,
    StopOnNonFinite,
    WeightEMA,
    WholeCheckpoints,
    bad_checkpoint,
)
from vitrail.train.callbacks.early_stopping import Patience
from vitrail.train.callbacks.explanations import Draw, Explaining
from vitrail.train.callbacks.freezing import Freezing
from vitrail.train.callbacks.progress import Progress
from vitrail.train.callbacks.progressive_size import ProgressiveSize
from vitrail.train.checks import ONE_VALUE, ONE_VALUE_REMEDY, describe_warmup, refuse_accumulation, refuse_single_values
from vitrail.train.copies import describe_copies
from vitrail.train.environment import describe_environment, is_first_process
from vitrail.train.module import TaskModule
from vitrail.train.quiet import silence_libraries
from vitrail.train.resume import nothing_left, recipe_of, refuse_changes, refuse_lost_checkpoint, refuse_other_inputs
from vitrail.train.sharding import ShardedStrategy
from vitrail.train.start_weights import choose_normalization, load_start
from vitrail.weights.locations import find_weights


@dataclass(frozen=True)
class Plan:
    """In what training with labels and without differ.

    Attributes:
        open: Opens the recipe's images, those that the run knows already in their split and order; the model's
            statistics are those of the split "train".
        classes: Names of the model's classes.
        task: Makes what is optimised.
        module: Makes of it, the trainer's settings and the seed what the trainer runs.
        callbacks: What is done besides while it trains, in order, the run's own files among it.
    """

    open: Callable[[Recipe, KnownImages | None], ImageData]
    classes: Callable[[ImageData], tuple[str, ...]]
    task: Callable[[Recipe, ImageData, VisionModel, ModelCard], Task]
    module: Callable[[Any, TrainerConfig, int], TaskModule]
    callbacks: Callable[[Recipe, RunFolder, ModelCard, ImageData], list[Callback]]


def train(recipe: Recipe, *, resume: bool = False, draw: Draw | None = None) -> RunFolder:
    """Train the recipe's model and write its run folder.

    Args:
        recipe: What to train.
        resume: Go on from the last checkpoint of the recipe's run folder (or start, where there is none yet).
        draw: Draws explanations while it trains, where ``run.explain_images`` asks for them:
            ``vitrail.analyze.explanations.draw_glimpse``.

    Returns:
        The run folder.

    Raises:
        ConfigError: A setting that does not fit.
        DataError: Images that are missing, unreadable or inconsistent.
        RunError: The run folder is taken or cannot be written, or a checkpoint cannot be resumed.
        WeightsError: ``model.weights`` cannot be read or does not fit.
    """
    if recipe.task.name != "classification":
        raise ConfigError(f"task.name {recipe.task.name} needs no labels: `vitrail pretrain` does it, not train")
    return carry_out(recipe, _WITH_LABELS, resume=resume, draw=draw)


def carry_out(recipe: Recipe, plan: Plan, *, resume: bool = False, draw: Draw | None = None) -> RunFolder:
    """Train by a plan; see :func:`train`.

    Args:
        recipe: What to train.
        plan: How the recipe's task is trained.
        resume: Go on from the last checkpoint of the recipe's run folder.
        draw: Draws explanations.
    """
    silence_libraries()
    torch.set_float32_matmul_precision("high")
    run = RunFolder(recipe.run_dir)
    if resume:
        RunFolder.open(run.path)  # there must be something to go on with
        refuse_lost_checkpoint(run)
    # What was decided when the run began stays, also for the processes that join the first.
    begun = resume or not is_first_process()
    known = settle_as_begun(recipe, recipe_of(run) if begun and run.recipe.is_file() else None)
    if resume:
        refuse_changes(known, run)
        done = nothing_left(known, run)
        if done is not None:
            if is_first_process():
                print(f"{run} is finished: {done}; nothing is changed")
            return run
    why = "the recipe asks for it" if known.trainer.precision == recipe.trainer.precision else "the run began in it"
    recipe = known
    # Everything that can be refused is refused before the run folder is made, and what needs no images before these
    # are opened, which decodes every file once.
    if not begun:
        run.refuse_taken(overwrite=recipe.run.overwrite)
        if recipe.model.weights is not None:
            find_weights(recipe.model.weights)
        _refuse_settings(recipe)
    data = plan.open(recipe, read_image_record(run) if resume else None)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, split=data.config.split))
    classes = plan.classes(data)
    if classes:
        recipe = settle_labels(recipe, data)
    seed_everything(recipe.run.seed, verbose=False)
    model = _build_model(recipe, data, len(classes))
    start = load_start(model, recipe.model, resumed=resume and run.last_checkpoint.is_file())
    card = ModelCard(
        name=recipe.model.name,
        settings={**_given_settings(recipe), **_data_settings(recipe, data, len(classes))},
        classes=classes,
        streams={
            name: StreamCard(data.source.bands[name], mean, std, image_size(recipe), _value_type(data, name))
            for name, (mean, std) in choose_normalization(data.statistics(), start, recipe.model).items()
        },
        resize=recipe.data.resize,
        color="gray" if data.source.bands["image"] == BANDS["gray"] else "rgb",
        spectral=recipe.data.spectral,
        label_separator=(recipe.data.label_separator or ";") if classes and data.source.targets.ndim == 2 else None,
    )
    data = dataclasses.replace(data, fill=card.filling())
    if not begun:
        for note in data.source.value_notes:
            print(note, file=sys.stderr)
    task = plan.task(recipe, data, model, card)
    if recipe.data.batch_size != "auto":
        refuse_single_values(recipe, data, model, card)  # before trial steps meet it
    recipe, reasons = settle_sizes(recipe, data, task)
    data = dataclasses.replace(data, config=recipe.data)
    refuse_accumulation(recipe, data)
    refuse_single_values(recipe, data, model, card)
    decided, reasons = reasons, {"precision": f"{recipe.trainer.precision}: {why}", **reasons}
    if recipe.trainer.compile:
        assert isinstance(task, ClassificationTask), "pre-training refuses it"
        task.compile_model()
    module = plan.module(task, recipe.trainer, recipe.run.seed)
    # What is frozen takes no part in a step either.
    unused = task.unused or recipe.trainer.freeze_epochs > 0
    callbacks = plan.callbacks(recipe, run, card, data)
    if recipe.run.explain_images:
        callbacks.append(Explaining(run, data, recipe, task, draw))
    trainer = _make_trainer(recipe, run, callbacks, unused)
    with lock_run_folder(run.path) if is_first_process() else contextlib.nullcontext():
        # Other processes begin when the first has made the folder, and only read it.
        checkpoint = _open_run(recipe, run, data, resume, reasons) if is_first_process() else _checkpoint(run, resume)
        if is_first_process():
            for line in describe_start(recipe, data, card, model, trainer, decided):
                print(line, file=sys.stderr)
        _fit(recipe, trainer, module, data, checkpoint, run)
        if is_first_process():
            ended = {"finished": datetime.now(UTC).isoformat(timespec="seconds")}
            run.write_json(run.environment, {**run.read_json(run.environment), **ended})
    return run


def _value_type(data: ImageData, stream: str) -> Any:
    """What decided the range of a stream's stored values; None where the recipe states it, or they are made."""
    values = data.source.values.get(stream)
    return None if values is None else values.limits.kind


def _fit(
    recipe: Recipe, trainer: Trainer, module: TaskModule, data: ImageData, checkpoint: Path | None, run: RunFolder
) -> None:
    share = {"rank": trainer.global_rank, "world": trainer.world_size}
    training = data.loader("train", shuffle_seed=recipe.run.seed, **share)
    assert isinstance(training.sampler, EpochShuffle)
    module.order = training.sampler
    try:
        trainer.fit(
            module,
            training,
            data.loader("val", **share) if "val" in data.splits else None,
            ckpt_path=str(checkpoint) if checkpoint else None,
        )
    except DataError as error:
        if not run.last_checkpoint.is_file():
            raise
        raise DataError(f"{error}; once that is mended, --resume goes on from the last epoch") from error
    except (RuntimeError, KeyError, ValueError) as error:
        found = explain_fault(error) or _one_value(error)
        if found is not None:
            raise found from error
        # A whole checkpoint of another model or program is only found out while its parts are restored.
        if checkpoint is None or module.started or isinstance(error, ValueError):
            raise
        raise bad_checkpoint(checkpoint, error) from error
    if trainer.interrupted:
        raise KeyboardInterrupt


def _one_value(error: Exception) -> VitrailError | None:
    return ConfigError(ONE_VALUE_REMEDY) if str(error).startswith(ONE_VALUE) else None


def _open_labelled(recipe: Recipe, known: KnownImages | None) -> ImageData:
    data = open_data(recipe.data, image_size(recipe), known=known)
    if not data.source.classes:
        raise ConfigError(
            f"data.source {recipe.data.source} has no labels; pre-train on it (`vitrail pretrain`), then train from "
            "that run on images with labels (--model.weights runs/PRETRAINED)"
        )
    for split in ("train", "val"):
        if split not in data.splits:
            raise DataError(f"training needs a {split!r} split, the data has only {', '.join(data.splits)}")
    _refuse_other_labels(recipe, data)
    return data


def _classification(recipe: Recipe, data: ImageData, model: VisionModel, card: ModelCard) -> ClassificationTask:
    criterion, mixing = _criterion(recipe, data), _mixing(recipe, card)
    return ClassificationTask(model, card.normalization(), augmentation(recipe, card), criterion, mixing)


def augmentation(recipe: Recipe, card: ModelCard) -> Augmentation | None:
    """The recipe's random changes of training images."""
    means = {name: stream.mean for name, stream in card.streams.items()}
    bands = len(card.streams["image"].bands)
    return build_augmentation(recipe.data.augment, bands, recipe.data.augment_settings, means)


def _mixing(recipe: Recipe, card: ModelCard) -> Mixing | None:
    settings = augment_settings(recipe.data.augment, recipe.data.augment_settings)
    return Mixing(settings, len(card.classes)) if settings.mixes else None


def _refuse_other_labels(recipe: Recipe, data: ImageData) -> None:
    """The loss and the metrics must be for as many labels an image as the data has."""
    several = data.source.targets.ndim == 2
    if several != (recipe.task.loss == "bce"):
        remedy = "use cross_entropy, or data.multi_label, or data.label_separator with a table"
        remedy = "use bce" if several else remedy
        has = "several labels" if several else "one label"
        raise ConfigError(f"task.loss {recipe.task.loss!r} does not fit: the data has {has} an image; {remedy}")
    for name in ("monitor", "early_stopping_monitor"):
        value = getattr(recipe.trainer, name)
        if value == ("val_balanced_accuracy" if several else "val_map"):
            has = "several labels" if several else "one label"
            raise ConfigError(f"trainer.{name} {value!r} is not measured where images have {has}; use val_f1_macro")


def _criterion(recipe: Recipe, data: ImageData) -> ClassificationLoss | MultiLabelLoss:
    config = recipe.task
    weights = None
    training = torch.from_numpy(data.source.targets[data.indices("train")])
    if config.loss == "bce":
        positive = balanced_positive_weights(training) if config.class_weights == "balanced" else None
        return MultiLabelLoss(config.label_smoothing, positive)
    if config.class_weights == "balanced":
        weights = balanced_weights(training, len(data.source.classes))
    return ClassificationLoss(config.label_smoothing, config.focal_gamma if config.loss == "focal" else 0.0, weights)


def _given_settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe's own settings of the model, as plain values."""
    return {k: v for k, v in recipe.to_dict()["model"].items() if k in recipe.model.settings}


def _data_settings(recipe: Recipe, data: ImageData, num_classes: int) -> dict[str, Any]:
    """Settings of the model that follow from the data, unless the recipe gives them."""
    bands = data.source.bands
    settings: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": len(bands["image"]),
        "img_size": list(to_pair(recipe.model.settings.get("img_size", image_size(recipe)))),
    }
    if find_family(recipe.model.name)[0].takes_spectral:
        settings["spectral_chans"] = len(bands.get("spectral", ()))
    elif "spectral" in bands:
        others = " or ".join(name for name, family in list_families().items() if family.takes_spectral)
        raise ConfigError(
            f"the data has a second stream ({len(bands['spectral'])} bands) and {recipe.model.name} takes the image "
            f"alone; use {others}, or leave the stream out (data.spectral none, no spectral_path, spectral_bands [])"
        )
    return settings


def _refuse_settings(recipe: Recipe) -> None:
    """Build the model without memory for its weights: settings that contradict each other need no images to be seen.

    Raises:
        ConfigError: They do, with a second stream as well as without.
    """
    settings = {"img_size": image_size(recipe), **recipe.model.settings}
    tries = [settings]
    if find_family(recipe.model.name)[0].takes_spectral:
        tries.append({**settings, "spectral_chans": settings.get("spectral_chans") or 1})
    errors = []
    for settings in tries:
        try:
            with torch.device("meta"):
                create_model(recipe.model.name, **settings)
        except ConfigError as error:
            errors.append(error)
        else:
            return
    raise errors[-1]


def _build_model(recipe: Recipe, data: ImageData, num_classes: int) -> VisionModel:
    derived = _data_settings(recipe, data, num_classes)
    for key in ("num_classes", "in_chans", "spectral_chans"):
        given = recipe.model.settings.get(key)
        if given is not None and given != derived.get(key, given):
            raise ConfigError(f"model.{key} is {given}, the data has {derived[key]}; leave it out or make them agree")
    model = create_model(recipe.model.name, **{**recipe.model.settings, **derived})
    model.set_grad_checkpointing(recipe.trainer.grad_checkpointing)
    return model


def _open_run(recipe: Recipe, run: RunFolder, data: ImageData, resume: bool, reasons: dict[str, str]) -> Path | None:
    """Make or reopen the run folder and write the recipe into it; gives the checkpoint to go on from."""
    checkpoint = _checkpoint(run, resume)
    environment = describe_environment(recipe.run.seed)
    environment.update(reasons)
    environment["images"] = {"number": len(data.source), **data.identity()}
    environment["inputs"] = input_hashes(recipe.data, recipe.model.weights)
    if resume:
        run.remove_leftovers()
        if run.environment.is_file():
            refuse_other_inputs(run, environment)
            environment["resumed_from"] = run.read_json(run.environment)
    else:
        RunFolder.create(run.path, overwrite=recipe.run.overwrite)
    settled = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, dir=recipe.run_dir, overwrite=False))
    write_text(run.recipe, dump_recipe(settled))
    run.write_json(run.environment, environment)
    if not (resume and run.images.is_file()):
        write_image_record(run, data)
    if not resume or not run.seen.is_file():
        record_training_images(run, data, recipe.model.weights)
    for split in ("val", "test"):
        if split in data.splits and (
            line := describe_pretraining_images(
                count_pretraining_images(run, data, split), len(data.splits[split]), split
            )
        ):
            print(f"warning: {line}", file=sys.stderr)
    # A run that goes on has stated the copies and the warm-up.
    warmup = describe_warmup(recipe.trainer)
    of_start = [] if resume else [*describe_copies(data, shlex.quote(str(run.recipe))), *([warmup] if warmup else [])]
    for line in [*describe_split(data), *describe_steps(data), *of_start]:
        print(line, file=sys.stderr)
    if data.source.left_out:
        run.write_unreadable(data.source.left_out)
        print(f"{len(data.source.left_out)} files cannot be read and are left out: {run.unreadable}", file=sys.stderr)
    return checkpoint


def _checkpoint(run: RunFolder, resume: bool) -> Path | None:
    return run.last_checkpoint if resume and run.last_checkpoint.is_file() else None


def _watch_classifier(recipe: Recipe, run: RunFolder, card: ModelCard, data: ImageData) -> list[Callback]:
    config = recipe.trainer
    metrics = EpochMetrics(run)
    callbacks: list[Callback] = [StopOnNonFinite(run), metrics, RunCheckpoints(run, card, config.monitor)]
    if config.freeze_epochs:
        callbacks.append(Freezing(config.freeze_epochs, config.unfreeze_every))
    if config.progressive_sizes:
        callbacks.append(ProgressiveSize(config.progressive_sizes, card.img_size, config.max_epochs))
    if config.ema_decay:
        callbacks.insert(0, WeightEMA(config.ema_decay))
    if config.early_stopping_patience:
        callbacks.append(Patience(config.early_stopping_monitor, config.early_stopping_patience, metrics))
    return callbacks


def _make_trainer(recipe: Recipe, run: RunFolder, callbacks: list[Callback], unused: bool) -> Trainer:
    config = recipe.trainer
    assert config.precision != "auto", "it has been settled"
    if config.max_minutes:
        callbacks.append(Timer(timedelta(minutes=config.max_minutes), verbose=False))
    (metrics,) = (callback for callback in callbacks if isinstance(callback, EpochMetrics))
    # After the metrics, whose rows it shows.
    callbacks.append(Progress(metrics, config.monitor))
    logger = TensorBoardLogger(str(run.path), name="", version="tensorboard") if recipe.run.tensorboard else False
    try:
        trainer = Trainer(
            max_epochs=config.max_epochs,
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=_strategy(config, unused),
            use_distributed_sampler=False,
            sync_batchnorm=config.devices * config.num_nodes > 1 and torch.cuda.is_available(),
            precision=config.precision,
            deterministic=config.deterministic,
            gradient_clip_val=config.gradient_clip or None,
            accumulate_grad_batches=config.accumulate,
            callbacks=callbacks,
            logger=logger,
            plugins=[WholeCheckpoints()],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # What a sharded model gathers under inference_mode could not be trained with later.
            inference_mode=config.strategy != "fsdp",
            log_every_n_steps=10,
            default_root_dir=str(run.path),
        )
    except (MisconfigurationException, ImportError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"trainer.accelerator {config.accelerator!r}, devices {config.devices!r}, precision {config.precision!r} "
            f"cannot be used here: {reason}"
        ) from error
    if trainer.precision != config.precision:
        raise ConfigError(
            f"trainer.precision {config.precision!r} cannot be used here, only {trainer.precision!r} in its place; "
            "ask for that"
        )
    return trainer


def _strategy(config: TrainerConfig, unused: bool) -> str | Strategy:
    processes = config.devices * config.num_nodes
    if processes == 1:
        return "auto"
    if config.strategy == "fsdp":
        return ShardedStrategy(processes)
    return "ddp_find_unused_parameters_true" if unused else "ddp"


_WITH_LABELS = Plan(
    open=_open_labelled,
    classes=lambda data: data.source.classes,
    task=_classification,
    module=TaskModule,
    callbacks=_watch_classifier,
)
