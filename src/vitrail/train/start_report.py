"""Lines that a run prints before its first epoch: model, images, device and resolved settings."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer

from vitrail.config.schema import Recipe
from vitrail.data.dataset import ImageData
from vitrail.errors import plural
from vitrail.machine import processor
from vitrail.models.base import VisionModel
from vitrail.models.modality import reword
from vitrail.models.profile import count_parameters
from vitrail.runs.trained import ModelCard

_PURPOSES = {"train": "training", "val": "validation", "test": "testing"}


def print_start(
    recipe: Recipe, data: ImageData, card: ModelCard, model: VisionModel, trainer: Trainer, reasons: Mapping[str, str]
) -> None:
    """Print a line each on the model, the images and the device, and one for each resolved setting.

    Args:
        recipe: The recipe, with every "auto" resolved.
        data: The images.
        card: Classes and inputs of the model.
        model: The model.
        trainer: Its device and number of processes.
        reasons: Setting -> its value and reason, for resolved settings.
    """
    streams = " and ".join(plural(len(s.bands), "band") for s in card.streams.values())
    size = " x ".join(map(str, card.img_size[-2:])) + (" pixels" if data.source.is_image else " points")
    if len(card.img_size) == 3:
        size = f"{plural(card.img_size[0], 'frame')} of {size}"
    classes = f", {plural(len(card.classes), 'class')}" if card.classes else ""
    images = [f"{len(data.splits[name]):,} for {what}" for name, what in _PURPOSES.items() if name in data.splits]
    device = trainer.strategy.root_device
    processes = f" in {trainer.world_size} processes" if trainer.world_size > 1 else ""
    for line in (
        f"model: {card.name}, {count_parameters(model):,} parameters; input {streams}, {size}{classes}",
        f"images: {', '.join(images)}",
        f"device: {_name(device)}{processes}; precision {recipe.trainer.precision}, "
        f"{plural(int(recipe.data.batch_size), 'image')} a batch, learning rate {recipe.trainer.peak_learning_rate:g}",
        *(f"{name} {reason}" for name, reason in reasons.items()),
    ):
        print(reword(line, model.modality), file=sys.stderr)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"GPU ({torch.cuda.get_device_name(device)})"
    return f"CPU ({processor()}, {plural(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else str(device)
