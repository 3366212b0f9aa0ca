"""The size that a recipe brings its images, or other inputs, to."""

from __future__ import annotations

from typing import Any

from vitrail.config.schema import Recipe
from vitrail.layers.shapes import to_pair
from vitrail.models.registry import find_family


def image_size(recipe: Recipe) -> tuple[Any, ...]:
    """Return height and width of the images, with the number of frames before them for clips; or that of points.

    The data's setting, else the model's, else the variant's.
    """
    family, variant = find_family(recipe.model.name)
    settings = {**variant, **recipe.model.settings}
    if "num_points" in family.modality.settings:
        asked = recipe.data.points.num_points
        return (settings.get("num_points", family.config().num_points) if asked is None else asked,)
    if recipe.data.img_size is not None:
        size = to_pair(recipe.data.img_size, "data.img_size")
    else:
        size = to_pair(settings.get("img_size", family.config().img_size), "model.img_size")
    if "num_frames" in family.modality.settings:
        asked = recipe.data.video.num_frames
        return (settings.get("num_frames", family.config().num_frames) if asked is None else asked, *size)
    return size


def size_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of the recipe's model that say the size of its inputs; the recipe's own have precedence."""
    size, given = image_size(recipe), recipe.model.settings
    if "num_points" in find_family(recipe.model.name)[0].modality.settings:
        return {"num_points": given.get("num_points", size[0])}
    pixels = {"img_size": list(to_pair(given.get("img_size", size[-2:])))}
    return pixels if len(size) == 2 else {"num_frames": given.get("num_frames", size[0]), **pixels}
