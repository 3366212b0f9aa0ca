"""Pictures of how a model takes an image apart, drawn from what the model itself did."""

from vitrail.figures.anatomy.canvas import View
from vitrail.figures.anatomy.draw import draw_anatomy

__all__ = ["View", "draw_anatomy"]
