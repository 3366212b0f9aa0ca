"""Model, card and task of a run, built from its recipe and its images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback
from torch import nn

from vitrail.config.schema import Recipe
from vitrail.data.augment import build_augmentation
from vitrail.data.augment.directions import keep_directions
from vitrail.data.dataset import ImageData
from vitrail.data.identity import KnownImages
from vitrail.data.images import BANDS
from vitrail.data.points.augment import build_point_augmentation
from vitrail.errors import ConfigError, plural
from vitrail.models.base import VisionModel
from vitrail.models.image_size import image_size, size_settings
from vitrail.models.registry import create_model, find_family, list_families
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import ModelCard, StreamCard
from vitrail.tasks.base import Task
from vitrail.train.module import TaskModule
from vitrail.train.start_weights import choose_normalization
from vitrail.weights.report import LoadReport


class Builder(ABC):
    """Steps that differ between supervised training and pre-training."""

    def check_settings(self, recipe: Recipe) -> None:  # noqa: B027
        """Check settings before anything is read.

        Raises:
            ConfigError: A setting that does not apply to this kind of training.
        """

    @abstractmethod
    def open_images(self, recipe: Recipe, known: KnownImages | None) -> ImageData:
        """Open the recipe's images.

        Args:
            recipe: The recipe.
            known: Images of a resumed run, whose split and order stay.

        Returns:
            The images; the statistics of the split "train" become the model's normalisation.
        """

    @abstractmethod
    def classes(self, data: ImageData) -> tuple[str, ...]:
        """Return the names of the model's classes; none for a model without a classifier."""

    @abstractmethod
    def build_task(self, recipe: Recipe, data: ImageData, model: VisionModel, card: ModelCard) -> Task:
        """Build the task that is optimised."""

    @abstractmethod
    def build_module(self, recipe: Recipe, task: Any) -> TaskModule:
        """Wrap the task for Lightning."""

    @abstractmethod
    def build_callbacks(self, recipe: Recipe, run: RunFolder, card: ModelCard, data: ImageData) -> list[Callback]:
        """Build the callbacks of this kind of training, in the order of their calls."""


def build_model(recipe: Recipe, data: ImageData, classes: tuple[str, ...]) -> VisionModel:
    """Build the recipe's model for its images, with random weights.

    Args:
        recipe: Names the model and its settings.
        data: Gives the number of bands and the image size.
        classes: Names of the classes.

    Raises:
        ConfigError: A setting of the model contradicts the images.
    """
    derived = _settings_from_data(recipe, data, len(classes))
    for key in ("num_classes", "in_chans", "spectral_chans"):
        given = recipe.model.settings.get(key)
        if given is not None and given != derived.get(key, given):
            raise ConfigError(f"model.{key} is {given}, the data has {derived[key]}; leave it out or make them agree")
    model = create_model(recipe.model.name, **{**recipe.model.settings, **derived})
    model.set_grad_checkpointing(recipe.trainer.grad_checkpointing)
    return model


def build_card(recipe: Recipe, data: ImageData, classes: tuple[str, ...], start: LoadReport | None) -> ModelCard:
    """Describe the model's architecture, classes and inputs; the content of model.json.

    Args:
        recipe: The recipe, with labels resolved.
        data: The images.
        classes: Names of the classes.
        start: Report of the weights that training starts from, whose normalisation may be used.
    """
    given = {k: v for k, v in recipe.to_dict()["model"].items() if k in recipe.model.settings}
    normalization = choose_normalization(data.statistics(), start, recipe.model)
    return ModelCard(
        name=recipe.model.name,
        settings={**given, **_settings_from_data(recipe, data, len(classes))},
        classes=classes,
        streams={
            name: StreamCard(data.source.bands[name], mean, std, image_size(recipe), _value_type(data, name))
            for name, (mean, std) in normalization.items()
        },
        resize=recipe.data.images.resize,
        crop_pct=recipe.data.images.crop_pct,
        color="gray" if next(iter(data.source.bands.values())) == BANDS["gray"] else "rgb",
        spectral=recipe.data.spectral.derive,
        label_separator=(recipe.data.table.label_separator or ";")
        if classes and data.source.targets.ndim == 2
        else None,
    )


def build_batch_augmentation(
    recipe: Recipe, means: Mapping[str, Sequence[float]], classes: Sequence[str] = ()
) -> nn.Module | None:
    """Build the random transforms of training batches (``data.augment``, ``data.points``); None where nothing changes.

    Args:
        recipe: Data settings.
        means: Stream -> mean of each band, the first stream first.
        classes: Names of the classes where training has labels; clips are not flipped where these say left or right.

    Raises:
        ConfigError: Augmentation of images for other inputs.
    """
    if "points" in means:
        if recipe.data.augment != "none" or recipe.data.augmentation:
            raise ConfigError(
                f"data.augment {recipe.data.augment} changes images; point clouds have data.points.turn, zoom, shift, "
                "jitter and drop: set data.augment none"
            )
        return build_point_augmentation(recipe.data.points)
    preset, changes = recipe.data.augment, recipe.data.augmentation
    if "video" in means:
        changes = keep_directions(preset, changes, classes)
    return build_augmentation(preset, len(next(iter(means.values()))), changes, means)


def _settings_from_data(recipe: Recipe, data: ImageData, num_classes: int) -> dict[str, Any]:
    """Derive settings of the model from the images; the recipe's ``img_size`` has precedence."""
    bands = data.source.bands
    family = find_family(recipe.model.name)[0]
    modality = family.modality
    if modality.name not in bands:
        known = [name for name, other in list_families().items() if other.modality.name in bands]
        raise ConfigError(
            f"model.name {recipe.model.name} takes {modality.noun}, and data.source {recipe.data.source} has "
            f"{' and '.join(bands)}; choose a model of {' or '.join(known) or 'another family'}, or other data"
        )
    settings: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": len(bands[modality.name]) + len(bands.get("features", ())),
        **size_settings(recipe),
    }
    of_points = recipe.task.name == "parts"
    if of_points and "per_point" not in family.settings:
        raise ConfigError(
            f"task.name parts labels points, and model.name {recipe.model.name} takes {modality.noun}; choose a model "
            "of point clouds (`vitrail models`)"
        )
    if "per_point" in family.settings:
        if recipe.model.settings.get("per_point", of_points) != of_points:
            raise ConfigError(
                f"model.per_point {not of_points} does not fit task.name {recipe.task.name}; leave model.per_point out"
            )
        settings["per_point"] = of_points
    if family.takes_spectral:
        settings["spectral_chans"] = len(bands.get("spectral", ()))
    elif "spectral" in bands:
        others = " or ".join(name for name, family in list_families().items() if family.takes_spectral)
        raise ConfigError(
            f"the data has a second stream ({plural(len(bands['spectral']), 'band')}) and {recipe.model.name} takes "
            f"the image alone; use {others}, or leave the stream out (data.spectral.derive none, no "
            "data.spectral.path, data.spectral.use [])"
        )
    return settings


def _value_type(data: ImageData, stream: str) -> Any:
    """Return the type that determined the range of a stream's stored values; None if the recipe states the range."""
    values = data.source.values.get(stream)
    return None if values is None else values.limits.kind
