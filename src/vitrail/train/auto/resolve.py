"""What a recipe leaves to vitrail: decided once, and written into the run's own recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitrail.config.schema import Recipe
from vitrail.data.dataset import ImageData
from vitrail.data.sources.base import innermost
from vitrail.errors import ConfigError
from vitrail.tasks.base import Task
from vitrail.train.auto.batch_size import find_batch_size
from vitrail.train.auto.learning_rate import find_learning_rate
from vitrail.train.auto.precision import Precision, hardware_precision, resolve_precision
from vitrail.train.environment import is_first_process

# Images of the steps that precision is measured in, where the batch size is not known yet.
_TRIAL_IMAGES = 32


def settle_as_begun(recipe: Recipe, begun: Recipe | None) -> Recipe:
    """Take what is "auto" from the recipe of the run as it began.

    Args:
        recipe: What was asked for.
        begun: The run's own recipe, where there is one already.
    """
    if begun is None:
        return recipe
    trainer, data = recipe.trainer, recipe.data
    if trainer.precision == "auto":
        trainer = dataclasses.replace(trainer, precision=begun.trainer.precision)
    if trainer.learning_rate == "auto":
        rate = begun.trainer.peak_learning_rate
        low = min(trainer.min_learning_rate, rate)
        trainer = dataclasses.replace(trainer, learning_rate=rate, min_learning_rate=low)
    if data.batch_size == "auto":
        data = dataclasses.replace(data, batch_size=begun.data.images_a_step)
    if data.split == "auto":
        data = dataclasses.replace(data, split=begun.data.split)
    if data.label_values is None and data.class_names in (None, begun.data.class_names):
        names, values = begun.data.class_names, begun.data.label_values
        data = dataclasses.replace(data, class_names=names, label_values=values)
    if data.unlabelled_value is None:
        data = dataclasses.replace(data, unlabelled_value=begun.data.unlabelled_value)
    return dataclasses.replace(recipe, trainer=trainer, data=data)


def settle_labels(recipe: Recipe, data: ImageData) -> Recipe:
    """Write into the recipe how the labels were numbered, so that other data with these labels has the same classes."""
    numbering = innermost(data.source).numbering
    if numbering is None:
        return recipe
    known = {name: value for name, value in vars(numbering).items() if value is not None}
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **known))


def settle_sizes(recipe: Recipe, data: ImageData, task: Task) -> tuple[Recipe, dict[str, str]]:
    """Resolve "auto" of precision, batch size and learning rate, in this order, by short trials on copies of the model.

    Args:
        recipe: The recipe.
        data: The images.
        task: As it will be trained, with its first weights; it is not changed.

    Returns:
        The recipe, and for what was decided the setting's name and the reason.

    Raises:
        ConfigError: Several machines, which would each decide on their own.
        RunError: No rate at which the loss falls.
    """
    wanted = {"data.batch_size": recipe.data.batch_size, "trainer.learning_rate": recipe.trainer.learning_rate}
    auto = [name for name, value in wanted.items() if value == "auto"]
    if auto and recipe.trainer.num_nodes > 1:
        raise ConfigError(f"{auto[0]} auto is found on one machine; find it there and give the number to all of them")
    if auto and not is_first_process():
        raise ConfigError(f"{auto[0]} auto is found by the first process alone; start one, it starts the others")
    device = _device(recipe.trainer.accelerator)
    origin = next(task.parameters()).device
    reasons: dict[str, str] = {}
    task.to(device)
    indices = data.indices("train")

    def load(count: int) -> Mapping[str, Tensor]:
        rows = [indices[i % len(indices)] for i in range(count)]
        return data.batch(rows)

    try:
        if recipe.trainer.precision == "auto":
            precision, why = _resolve_precision(recipe, task, load)
            recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, precision=precision))
            reasons["precision"] = f"{precision}: {why}"
        if recipe.data.batch_size == "auto":
            size, why = find_batch_size(task, recipe.trainer, load, len(indices), recipe.trainer.devices)
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, batch_size=size))
            reasons["data.batch_size"] = f"{size}: {why}"
        if recipe.trainer.learning_rate == "auto":
            settled = dataclasses.replace(data, config=recipe.data)
            loader = settled.loader("train", shuffle_seed=recipe.run.seed)
            rate, why = find_learning_rate(task, recipe.trainer, loader, recipe.run.seed)
            low = min(recipe.trainer.min_learning_rate, rate)
            trainer = dataclasses.replace(recipe.trainer, learning_rate=rate, min_learning_rate=low)
            recipe = dataclasses.replace(recipe, trainer=trainer)
            reasons["trainer.learning_rate"] = f"{rate:g}: {why}"
    finally:
        task.to(origin)
    return recipe, reasons


def _resolve_precision(
    recipe: Recipe, task: Task, load: Callable[[int], Mapping[str, Tensor]]
) -> tuple[Precision, str]:
    # Several machines must not disagree, so they decide by their hardware alone.
    if recipe.trainer.num_nodes > 1 or not is_first_process():
        return hardware_precision(recipe.trainer.accelerator)
    size = recipe.data.batch_size
    images = _TRIAL_IMAGES if size == "auto" else size // recipe.trainer.devices
    return resolve_precision(task, recipe.trainer, load(images))


def _device(accelerator: str) -> torch.device:
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")
