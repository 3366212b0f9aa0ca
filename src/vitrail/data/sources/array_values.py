"""Values of arrays: axis of the bands, pixels without data of scenes and patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitrail.data.no_data import no_data_mask
from vitrail.data.sources.array_files import Array
from vitrail.data.stored_values import StreamValues, Surveys, Tally, survey
from vitrail.data.value_range import ValueRule, resolve_range
from vitrail.errors import DataError

Mask = npt.NDArray[np.bool_]


def survey_array(
    cube: Array, invalid: Mask | None, rule: ValueRule, bands: tuple[str, ...], what: str
) -> tuple[StreamValues, list[str]]:
    """Resolve the range of an array's values.

    Args:
        cube: Images ``(N, C, H, W)``, or a scene ``(C, H, W)``.
        invalid: True where there is no data, the same shape.
        rule: Value settings of the recipe.
        bands: Names of the bands.
        what: Name in errors.

    Returns:
        The values (of a scene as if it were one image), and what to log of them.
    """
    seen = Surveys(bands)
    found = survey(cube, invalid, rule, what)
    seen.add_array(what, found)
    limits, notes = resolve_range(rule, seen.kinds, seen.extent, len(bands))
    none = not any(part.any() for part in (found.tally.no_data, found.tally.below, found.tally.above))
    return StreamValues(bands, rule, limits, seen.low, seen.high, None if none else found.tally), notes


def by_patch(
    values: StreamValues, cube: Array, invalid: Mask | None, corners: npt.NDArray[np.int64], side: int
) -> StreamValues:
    """Count the values of a scene by patch.

    Args:
        values: Stored values of the scene.
        cube: The scene, shape ``(C, H, W)``.
        invalid: True where there is no data, shape ``(C, H, W)``.
        corners: Top and left pixel of each patch, shape ``(N, 2)``.
        side: Side of a patch, in pixels.
    """
    if values.tally is None:
        return values
    low, high = values.limits.columns()
    lost = np.zeros(cube.shape, dtype=bool) if invalid is None else invalid
    masks = lost, (cube < low) & ~lost, (cube > high) & ~lost
    parts = [_patch_sums(mask, corners, side) for mask in masks]
    return dataclasses.replace(values, tally=Tally(np.full_like(parts[0], side * side), *parts))


def bands_first(images: Array, layout: str | None, names: Sequence[str] | None, what: str) -> Array:
    """Convert images to ``(N, C, H, W)``, from that or ``(N, H, W, C)``."""
    first, height, last = images.shape[1:]
    if layout is None:
        if names is not None:
            fits = {"channels_first": first == len(names), "channels_last": last == len(names)}
        else:  # bands are taken to be fewer than the pixels of a side
            fits = {"channels_first": first < min(height, last), "channels_last": last < min(first, height)}
        possible = [name for name, fit in fits.items() if fit]
        if names is not None and not possible:
            possible = ["channels_last"]  # the names are refused with the number of bands
        if len(possible) != 1 and images.shape[1:] != (1, 1, 1):
            raise DataError(
                f"{what} has the shape {images.shape}: are the bands last or first? Say so with --data.arrays.layout "
                "channels_last or channels_first" + ("" if names is not None else ", or name them (data.bands.names)")
            )
        layout = possible[0] if possible else "channels_last"
    return images if layout == "channels_first" else images.transpose(0, 3, 1, 2)


def scene_layout(cube: Array, labels: Array, names: Sequence[str] | None, what: str) -> str:
    """Find the axis of a scene's bands, by their names and the size of the label plane."""
    if cube.ndim != 3:
        return "channels_last"
    sizes = {"channels_last": cube.shape[:2], "channels_first": cube.shape[1:]}
    bands = {"channels_last": cube.shape[2], "channels_first": cube.shape[0]}
    # A plane of labels or shares has the scene's height and width; flat labels have its number of pixels.
    possible = [
        name
        for name, size in sizes.items()
        if (labels.ndim > 1 and size in (labels.shape, labels.shape[1:], labels.shape[:2]))
        or size[0] * size[1] in labels.shape
    ]
    if names is not None:
        named = [name for name in possible or sizes if bands[name] == len(names)]
        possible = named or possible
    if len(possible) > 1:
        raise DataError(
            f"{what} has the shape {cube.shape}: are the bands last or first? Say so with --data.arrays.layout "
            "channels_last or channels_first"
        )
    return possible[0] if possible else "channels_last"


def scene_without_data(cube: Array, labelled: Mask, rule: ValueRule) -> Mask | None:
    """Find pixels without data in a scene: declared values, and NaN outside of all labels."""
    invalid = no_data_mask(cube, rule)
    if cube.dtype.kind != "f" or rule.no_data == ():
        return invalid
    outside = np.isnan(cube) & ~labelled
    if not outside.any():
        return invalid
    return outside if invalid is None else invalid | outside


def _patch_sums(mask: npt.NDArray[np.bool_], corners: npt.NDArray[np.int64], side: int) -> npt.NDArray[np.int64]:
    """Count marked pixels by patch and band, shape ``(N, C)``.

    Source: summed-area tables: Crow 1984, Computer Graphics 18(3), 207-212.
    """
    top, left = corners.T
    sums = np.zeros((len(corners), len(mask)), dtype=np.int64)
    for band in np.flatnonzero(mask.any((1, 2))):
        table = np.pad(mask[band].cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
        bottom, right = top + side, left + side
        sums[:, band] = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    return sums
