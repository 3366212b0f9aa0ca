"""Checks of a recipe before training starts."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from vitrail.config.schema import Recipe, TrainerConfig
from vitrail.data.dataset import ImageData
from vitrail.errors import ConfigError
from vitrail.models.base import VisionModel
from vitrail.models.image_size import size_settings
from vitrail.models.registry import create_model, find_family
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import ModelCard
from vitrail.train.callbacks.progressive_size import ProgressiveSize
from vitrail.weights.locations import find_weights

# The start of torch's error.
_ONE_VALUE = "Expected more than 1 value per channel"
_BATCH_NORM = (
    "BatchNorm has one value a channel to normalise in training; use a data.batch_size of at least 2 images a process, "
    "or larger images (model.img_size)"
)


def check_before_images(recipe: Recipe, run: RunFolder) -> None:
    """Check settings that need no images: opening them decodes every file once.

    The model is built without memory for its weights; a model of two streams without and with the second.

    Raises:
        ConfigError: Settings of the model contradict each other.
        RunError: The run folder is taken.
        WeightsError: ``model.weights`` does not exist.
    """
    run.refuse_taken(overwrite=recipe.run.overwrite)
    if recipe.model.weights is not None:
        find_weights(recipe.model.weights)
    settings = {**size_settings(recipe), **recipe.model.settings}
    variants = [settings]
    if find_family(recipe.model.name)[0].takes_spectral:
        variants.append({**settings, "spectral_chans": settings.get("spectral_chans") or 1})
    errors = []
    for settings in variants:
        try:
            with torch.device("meta"):
                create_model(recipe.model.name, **settings)
        except ConfigError as error:
            errors.append(error)
        else:
            return
    raise errors[-1]


def check_accumulation(recipe: Recipe, data: ImageData) -> None:
    """Check that an epoch has at least as many batches as ``trainer.accumulate``.

    Args:
        recipe: The recipe, with the batch size resolved.
        data: The images.

    Raises:
        ConfigError: ``trainer.accumulate`` is more than the batches of an epoch.
    """
    config = recipe.trainer
    world = config.devices * config.num_nodes
    batches = len(data.loader("train", shuffle_seed=recipe.run.seed, world=world))
    if config.accumulate > batches:
        raise ConfigError(
            f"trainer.accumulate {config.accumulate} is more than the {batches} batch{'es' * (batches != 1)} of an "
            f"epoch, at whose end the weights move in any case; use at most {batches}, or a smaller data.batch_size"
        )


def describe_warmup(config: TrainerConfig) -> str | None:
    """Describe a warm-up that is shortened; None if it is not."""
    if config.warmup_epochs <= config.max_epochs / 2:
        return None
    return (
        f"trainer.warmup_epochs {config.warmup_epochs:g} is more than half of trainer.max_epochs {config.max_epochs}; "
        f"it is shortened to {config.max_epochs / 2:g}"
    )


def check_batch_norm(recipe: Recipe, data: ImageData, model: VisionModel, card: ModelCard) -> None:
    """Check that no BatchNorm has one value a channel, by one forward pass of a copy at each training size.

    Args:
        recipe: The recipe; a batch size of "auto" resolves to at least two images a process.
        data: The images.
        model: The model.
        card: Inputs of the model.

    Raises:
        ConfigError: A BatchNorm has one value a channel.
    """
    config, size = recipe.trainer, recipe.data.batch_size
    world = config.devices * config.num_nodes
    share = min(2 if size == "auto" else size // world, len(data.indices("train")))
    # Over several GPUs the statistics are those of all processes together.
    if share > 1 or (world > 1 and torch.cuda.is_available()) or recipe.task.name == "simclr":
        return
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return
    sizes: Sequence[tuple[int, ...]] = [card.img_size]
    if config.progressive_sizes:
        sizes = ProgressiveSize(config.progressive_sizes, card.img_size[-2:], config.max_epochs).sizes
    trial = copy.deepcopy(model).train()
    for training_size in sizes:
        inputs = [
            torch.zeros(1, *stream._replace(size=(*stream.size[:-2], *training_size[-2:])).shape)
            for stream in model.streams
        ]
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                trial(*inputs)
        except ValueError as error:
            if not str(error).startswith(_ONE_VALUE):
                raise
            raise ConfigError(
                f"data.batch_size {size} gives each of {world} process{'es' * (world != 1)} one image a step: "
                f"{_BATCH_NORM}"
            ) from error


def explain_batch_norm(error: Exception) -> ConfigError | None:
    """Translate torch's error about one value a channel; None for other errors."""
    return ConfigError(_BATCH_NORM) if str(error).startswith(_ONE_VALUE) else None
