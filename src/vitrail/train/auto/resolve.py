"""Resolution of "auto" settings, once for each run; the results are written into the run's recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vitrail.config.schema import Recipe
from vitrail.data.dataset import ImageData
from vitrail.data.sources.base import unwrap_source
from vitrail.errors import ConfigError
from vitrail.models.registry import find_family
from vitrail.tasks.base import Task
from vitrail.tasks.mae import default_mask_ratio
from vitrail.train.auto.batch_size import find_batch_size
from vitrail.train.auto.learning_rate import find_learning_rate
from vitrail.train.auto.precision import Precision, hardware_precision, resolve_precision
from vitrail.train.environment import is_first_process

# Batch size of the steps that precision is measured in while data.batch_size is "auto".
_TRIAL_IMAGES = 32


def resolve_from_run(recipe: Recipe, begun: Recipe) -> Recipe:
    """Replace "auto" settings, and labels and a mask ratio that are not given, by those that a run started with.

    Args:
        recipe: The recipe.
        begun: The recipe in the run folder.
    """
    trainer, data, task = recipe.trainer, recipe.data, recipe.task
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
    if data.classes.values is None and data.classes.names in (None, begun.data.classes.names):
        names, values = begun.data.classes.names, begun.data.classes.values
        data = data.changed({"classes.names": names, "classes.values": values})
    if data.classes.unlabelled_value is None:
        data = data.changed({"classes.unlabelled_value": begun.data.classes.unlabelled_value})
    if task.mask_ratio is None and task.name == begun.task.name:
        task = dataclasses.replace(task, mask_ratio=begun.task.mask_ratio)
    return dataclasses.replace(recipe, trainer=trainer, data=data, task=task)


def resolve_from_data(recipe: Recipe, data: ImageData, classes: tuple[str, ...]) -> Recipe:
    """Write the kind of split, the labels' numbering and the share that is masked into the recipe.

    Other data with these labels then has the same classes.

    Args:
        recipe: The recipe.
        data: The images.
        classes: Names of the model's classes; without them labels are not used.
    """
    resolved: dict[str, Any] = {"split": data.config.split}
    numbering = unwrap_source(data.source).numbering
    if classes and numbering is not None:
        resolved |= {f"classes.{name}": value for name, value in vars(numbering).items() if value is not None}
    task = recipe.task
    if task.name == "mae" and task.mask_ratio is None:
        task = dataclasses.replace(task, mask_ratio=default_mask_ratio(find_family(recipe.model.name)[0].modality))
    return dataclasses.replace(recipe, data=recipe.data.changed(resolved), task=task)


def precision_origin(asked: Recipe, recipe: Recipe) -> str:
    """State the precision and where it comes from, for a precision that is not measured.

    Args:
        asked: The recipe as it was given.
        recipe: The recipe, resolved.
    """
    origin = "the run began in it" if asked.trainer.precision == "auto" else "the recipe asks for it"
    return f"{recipe.trainer.precision}: {origin}"


def resolve_auto(recipe: Recipe, data: ImageData, task: Task) -> tuple[Recipe, dict[str, str]]:
    """Resolve "auto" of precision, batch size and learning rate, in this order, by trial steps on copies of the model.

    Args:
        recipe: The recipe.
        data: The images.
        task: The task with its first weights; it is not changed.

    Returns:
        The recipe, and for each resolved setting its name -> value and reason.

    Raises:
        ConfigError: Several machines or processes, which would each resolve a setting on their own.
        RunError: The loss falls at no learning rate.
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
            loader = dataclasses.replace(data, config=recipe.data).loader("train", shuffle_seed=recipe.run.seed)
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
