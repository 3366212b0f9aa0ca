"""The largest centre of a wanted shape, in integer arithmetic that exported graphs repeat exactly."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Length = TypeVar("Length", int, Tensor)


def keep_length(other: Length, wanted: int, other_wanted: int) -> Length:
    """Compute how many rows belong to ``other`` columns at a wanted shape, rounded half up.

    Args:
        other: Number of columns at hand; an integer tensor in a graph.
        wanted: Height wanted.
        other_wanted: Width wanted.
    """
    return (2 * wanted * other + other_wanted) // (2 * other_wanted)


def centre_box(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Compute the largest centre of an image that has the shape of a size.

    Args:
        height: Height of the image.
        width: Its width.
        size: Height and width wanted after the resize.

    Returns:
        Top, left, height and width of the box; an odd margin is larger at the bottom right.
    """
    rows = min(max(keep_length(width, size[0], size[1]), 1), height)
    columns = min(max(keep_length(height, size[1], size[0]), 1), width)
    return (height - rows) // 2, (width - columns) // 2, rows, columns
