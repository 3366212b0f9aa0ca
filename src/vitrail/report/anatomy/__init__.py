"""Pictures of how a model takes an image apart, drawn from what the model itself did."""

from vitrail.report.anatomy.canvas import View
from vitrail.report.anatomy.draw import draw_anatomy

__all__ = ["View", "draw_anatomy"]
