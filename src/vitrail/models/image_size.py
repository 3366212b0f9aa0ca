"""The size that a recipe brings its images to."""

from __future__ import annotations

from vitrail.config.schema import Recipe
from vitrail.layers.shapes import to_pair
from vitrail.models.registry import find_family


def image_size(recipe: Recipe) -> tuple[int, int]:
    """Height and width of the images: the data's setting, else the model's, else the variant's."""
    if recipe.data.img_size is not None:
        return to_pair(recipe.data.img_size, "data.img_size")
    family, variant = find_family(recipe.model.name)
    settings = {**variant, **recipe.model.settings}
    if "img_size" in settings:
        return to_pair(settings["img_size"], "model.img_size")
    return to_pair(family.config().img_size)
