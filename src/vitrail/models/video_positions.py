"""Positions of a checkpoint, of clips or of images, for the grid of a model of clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrail.layers.positions import resample_positions, resample_space_time
from vitrail.layers.shapes import divide_up, product, to_pair
from vitrail.layers.tap import Grid
from vitrail.layers.tubelets import to_triple
from vitrail.models.checkpoint_sizes import count_prefix, embeds_prefix, old_grid


class VideoTable(NamedTuple):
    """Table of positions that a model has.

    Attributes:
        grid: Tubelets along time, rows and columns.
        tubelet: Frames, height and width of a tubelet.
        prefix: Positions of class tokens, at the start.
        of_slice: Whether the table is that of one slice of time.
    """

    grid: Grid
    tubelet: Grid
    prefix: int
    of_slice: bool


def fit_video_positions(
    table: VideoTable, value: Tensor, state: Mapping[str, Tensor], made_for: Mapping[str, Any]
) -> tuple[Tensor, str] | None:
    """Resample positions in space and time, apart; those of an image are repeated for each time.

    Args:
        table: Positions of the model.
        value: Positions of the checkpoint, shape ``(1, N, C)``.
        state: The checkpoint, by our names; a kernel of four dimensions shows an image model.
        made_for: Settings of the model that the checkpoint was made for; empty where they are not known.

    Returns:
        The fitting positions and what was done, or None where that is impossible.

    Source: Arnab et al. 2021, arXiv:2103.15691, section 3.4, "Positional embeddings".
    """
    times, *space = table.grid
    size, patch = (space[0], space[1]), (table.tubelet[1], table.tubelet[2])
    kernel = state.get("patch_embed.proj.weight")
    if table.of_slice or (kernel is not None and kernel.ndim == 4):
        # An image model may have a class token, and a position of it, that the model has not.
        prefix = count_prefix(state) if embeds_prefix(value.shape[1], state) else 0
        prefix = max(prefix, table.prefix)
        old = old_grid(value.shape[1] - prefix, patch, made_for)
        if old is None:
            return None
        resampled = resample_positions(value, old, size, prefix)
        repeats = 1 if table.of_slice else times
        parts = [resampled[:, : table.prefix], resampled[:, prefix:].repeat(1, repeats, 1)]
        how = f"positions from {_by(old)} to {_by(size)}, bicubic"
        return torch.cat(parts, dim=1), how + (f", repeated {times} times" if repeats > 1 else "")
    grid = _old_grid(table, value.shape[1] - table.prefix, made_for)
    if grid is None:
        return None
    how = f"positions from {_by(grid)} to {_by(table.grid)}, bicubic in space and linear in time"
    return resample_space_time(value, grid, table.grid, table.prefix), how


def _old_grid(table: VideoTable, count: int, made_for: Mapping[str, Any]) -> Grid | None:
    """Find the grid of a checkpoint's positions, by its settings.

    Without any a clip of another length on the same grid in space, or a square in space at as many times.
    """
    if "num_frames" in made_for and "img_size" in made_for:
        tubelet = to_triple(made_for.get("tubelet_size", table.tubelet), "tubelet_size")
        size = (made_for["num_frames"], *to_pair(made_for["img_size"]))
        told = tuple(divide_up(length, step) for length, step in zip(size, tubelet, strict=True))
        if product(told) == count:
            return told
    times, *space = table.grid
    if count % product(space) == 0:
        return (count // product(space), *space)
    square = old_grid(count // times, (table.tubelet[1], table.tubelet[2]), {}) if count % times == 0 else None
    return None if square is None else (times, *square)


def _by(grid: Grid) -> str:
    return " x ".join(map(str, grid))
