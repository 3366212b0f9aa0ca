"""Settings that training would take in another way than they are meant: refused or reported before it begins."""

from __future__ import annotations

import copy

import torch
from torch import nn

from vitrail.config.schema import Recipe, TrainerConfig
from vitrail.data.dataset import ImageData
from vitrail.errors import ConfigError
from vitrail.models.base import VisionModel
from vitrail.runs.trained import ModelCard
from vitrail.train.callbacks.progressive_size import ProgressiveSize

# The beginning of torch's error.
ONE_VALUE = "Expected more than 1 value per channel"
ONE_VALUE_REMEDY = (
    "BatchNorm has one value a channel to normalise in training; use a data.batch_size of at least 2 images a process, "
    "or larger images (model.img_size)"
)


def refuse_accumulation(recipe: Recipe, data: ImageData) -> None:
    """Refuse an accumulation beyond an epoch.

    Args:
        recipe: Its batch size is known.
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
    """A line about a warm-up that is shortened; None where there is room for it."""
    if config.warmup_epochs <= config.max_epochs / 2:
        return None
    return (
        f"trainer.warmup_epochs {config.warmup_epochs:g} is more than half of trainer.max_epochs {config.max_epochs}; "
        f"it is shortened to {config.max_epochs / 2:g}"
    )


def refuse_single_values(recipe: Recipe, data: ImageData, model: VisionModel, card: ModelCard) -> None:
    """Refuse batches in which a BatchNorm would have one value a channel, by one forward pass of a copy.

    Args:
        recipe: Its batch size is known.
        data: The images.
        model: The model.
        card: What its inputs are.

    Raises:
        ConfigError: There is such a BatchNorm.
    """
    config = recipe.trainer
    world = config.devices * config.num_nodes
    share = min(recipe.data.images_a_step // world, len(data.indices("train")))
    # Over several GPUs the statistics are those of all processes together.
    if share > 1 or (world > 1 and torch.cuda.is_available()) or recipe.task.name == "simclr":
        return
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return
    progressive = ProgressiveSize(config.progressive_sizes, card.img_size, config.max_epochs)
    trial = copy.deepcopy(model).train()
    streams = {name: len(stream.bands) for name, stream in card.streams.items()}
    for height, width in progressive.sizes:
        inputs = [torch.zeros(1, bands, height, width) for bands in streams.values()]
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                trial(*inputs)
        except ValueError as error:
            if not str(error).startswith(ONE_VALUE):
                raise
            raise ConfigError(
                f"data.batch_size {recipe.data.images_a_step} gives each of {world} process{'es' * (world != 1)} one "
                f"image a step: {ONE_VALUE_REMEDY}"
            ) from error
