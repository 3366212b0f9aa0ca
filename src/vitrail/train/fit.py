"""Training from a recipe to a finished run folder, top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import sys

import torch
from lightning.pytorch import seed_everything

from vitrail.config.schema import PRETRAINING, Recipe
from vitrail.data.notes import print_notes
from vitrail.errors import ConfigError
from vitrail.runs.folder import RunFolder
from vitrail.runs.images import read_image_record
from vitrail.runs.lock import lock_run_folder
from vitrail.train.auto.resolve import precision_origin, resolve_auto, resolve_from_data
from vitrail.train.build import Builder, build_card, build_model
from vitrail.train.checks import check_accumulation, check_batch_norm, check_before_images
from vitrail.train.environment import is_first_process
from vitrail.train.pretraining import PretrainingBuilder
from vitrail.train.quiet import silence_libraries
from vitrail.train.resume import (
    describe_interruption,
    find_checkpoint,
    is_finished,
    opening_images,
    resume_settings,
)
from vitrail.train.start_report import print_start
from vitrail.train.start_run import finish_run, start_run
from vitrail.train.start_weights import load_start
from vitrail.train.supervised import PartsBuilder, SupervisedBuilder
from vitrail.train.trainer import make_trainer, run_trainer


def train(recipe: Recipe, *, resume: bool = False) -> RunFolder:
    """Train the recipe's model with labels and write its run folder.

    Args:
        recipe: Data, model, task, trainer and run; ``task.name`` is "classification", "distill" or "parts".
        resume: Continue from the last checkpoint of the recipe's run folder, or start if there is none yet.

    Returns:
        The run folder.

    Raises:
        ConfigError: A setting is invalid.
        DataError: Images are missing, unreadable or inconsistent.
        RunError: The run folder is taken or cannot be written, or a checkpoint cannot be resumed.
        WeightsError: ``model.weights`` cannot be read or does not match the model.
    """
    if recipe.task.name in PRETRAINING:
        raise ConfigError(f"task.name {recipe.task.name} needs no labels: `vitrail pretrain` does it, not train")
    return fit(recipe, PartsBuilder() if recipe.task.name == "parts" else SupervisedBuilder(), resume=resume)


def pretrain(recipe: Recipe, *, resume: bool = False) -> RunFolder:
    """Pre-train the recipe's model and write its run folder, with the last epoch's model and no classifier.

    Labels are not used for training; if there are any, metrics.csv has the accuracy of nearest neighbours and of a
    linear probe on the features. Training images without a label (``data.classes.label_fraction``) are trained on too.

    Arguments, result and errors are those of :func:`train`; ``task.name`` is the kind of pre-training.
    """
    if recipe.task.name not in PRETRAINING:
        raise ConfigError(
            f"task.name {recipe.task.name} is not pre-training; choose --task.name {', '.join(PRETRAINING)}, or use "
            "`vitrail train`"
        )
    return fit(recipe, PretrainingBuilder(), resume=resume)


def fit(asked: Recipe, builder: Builder, *, resume: bool) -> RunFolder:
    """Train a recipe with the steps of a builder; see :func:`train` and :func:`pretrain`."""
    silence_libraries()
    torch.set_float32_matmul_precision("high")
    builder.check_settings(asked)
    run = RunFolder(asked.run_dir)
    first = is_first_process()

    # A resumed run, and the processes that join the first, keep the settings that the run started with.
    recipe = resume_settings(asked, run, resume) if resume or not first else asked
    if resume and is_finished(recipe, run):
        return run
    if first and not resume:
        check_before_images(recipe, run)
    checkpoint = find_checkpoint(run) if resume else None
    if first and resume and checkpoint is None:
        print(f"{run} has no checkpoint yet; training starts from epoch 1", file=sys.stderr)

    with opening_images():
        data = builder.open_images(recipe, read_image_record(run) if resume else None)
    classes = builder.classes(data)
    recipe = resolve_from_data(recipe, data, classes)

    seed_everything(recipe.run.seed, verbose=False)
    model = build_model(recipe, data, classes)
    start = load_start(model, recipe.model, resumed=checkpoint is not None)
    card = build_card(recipe, data, classes, start)
    data = dataclasses.replace(data, fill=card.filling())
    if first and not resume:
        print_notes(data.source.value_notes)
    task = builder.build_task(recipe, data, model, card)

    check_batch_norm(recipe, data, model, card)
    recipe, reasons = resolve_auto(recipe, data, task)
    data = dataclasses.replace(data, config=recipe.data)
    check_accumulation(recipe, data)

    module = builder.build_module(recipe, task)
    callbacks = builder.build_callbacks(recipe, run, card, data)
    trainer = make_trainer(recipe, run, data, task, callbacks)
    # Other processes start when the first has made the folder, and only read it.
    with lock_run_folder(run.path) if first else contextlib.nullcontext():
        if first:
            start_run(recipe, run, data, {"precision": precision_origin(asked, recipe), **reasons}, resume)
            print_start(recipe, data, card, model, trainer, reasons)
        try:
            run_trainer(trainer, module, data, run, checkpoint)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(describe_interruption(recipe, run)) from error
        if first:
            finish_run(run)
    return run
