"""Sizes: one number or two, and the arithmetic of padding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vitrail.errors import ConfigError

Size = int | tuple[int, int]


def to_pair(size: object, name: str = "size", least: int = 1) -> tuple[int, int]:
    """Read a size as height and width.

    Args:
        size: One number for both, or ``(height, width)``.
        name: The setting's name, for the error.
        least: Lower bound of both, 1 or 0.

    Raises:
        ConfigError: Not one or two whole numbers of at least that.
    """
    values: list[Any] = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(values) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values):
        kind = "positive whole number" if least else "whole number of at least 0"
        raise ConfigError(f"{name} must be a {kind} or a pair of them (height, width), got {size!r}")
    return values[0], values[1]


def divide_up(length: int, by: int) -> int:
    """Divide and round up, for lengths of 0 and more.

    torch.compile proves of this form, and not of others, that it is positive for every length, and simplifies it where
    it is divided again.
    """
    return (length - 1) // by + 1


def product(lengths: Iterable[int]) -> int:
    """Multiply lengths: the number of positions of a grid. torch.compile does not trace ``math.prod`` of symbols."""
    result = 1
    for length in lengths:
        result = result * length
    return result


def grid_size(img_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Compute the grid of patches that covers an image; the last row and column may extend beyond it."""
    return divide_up(img_size[0], patch_size[0]), divide_up(img_size[1], patch_size[1])


def check_img_size(img_size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    """Raise an error for images smaller than a patch.

    Raises:
        ConfigError: Height or width is smaller.
    """
    (height, width), (ph, pw) = img_size, patch_size
    if height < ph or width < pw:
        raise ConfigError(
            f"img_size {height} x {width} is smaller than one patch of {ph} x {pw}; choose a larger image or a smaller "
            "patch"
        )


def padding_to_multiple(length: int, multiple: int) -> int:
    """Compute the padding of ``length`` to a multiple of ``multiple``; 0 where it is one."""
    return divide_up(length, multiple) * multiple - length
