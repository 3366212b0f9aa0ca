"""Relevance maps over clips: a column for each frame, and frames of an animation; one scale for the whole clip."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrail.figures.film_strip import FRAMES, spread_frames
from vitrail.figures.heatmaps import Cell, concentration, enlarge_tokens, in_ranks, overlay, smooth_map

Array = npt.NDArray[Any]
# Rank at the line: it encloses the top 10 % of the pixels of all frames together.
_LINE = 0.9
# Pixels of the shorter side of an animation.
_SIDE = 224


def clip_cells(
    frames: Array, maps: Mapping[str, Array], titles: Mapping[str, str], signed: Container[str] = ()
) -> tuple[list[list[Cell | None]], list[str]]:
    """Arrange panels of one clip: a row of frames at equal distances, and a row of overlays for each method.

    Args:
        frames: Shape ``(T, H, W)`` or ``(T, H, W, 3)``, in 0..1.
        maps: Method -> map ``(T, H, W)``, in the method's own units.
        titles: Method -> label of its row; "" for the frames.
        signed: Methods whose maps hold evidence for and against.

    Returns:
        The rows of panels and a label for each.
    """
    shown = spread_frames(len(frames), min(len(frames), FRAMES))
    rows: list[list[Cell | None]] = [[Cell(frames[i], title=f"frame {i + 1}") for i in shown]]
    labels = [titles.get("", "")]
    for method, heat in maps.items():
        ranks = in_ranks(np.stack([smooth_map(frame) for frame in heat]))
        rows.append([Cell(frames[i], ranks[i], method in signed, level=_LINE) for i in shown])
        labels.append(f"{titles.get(method, method)}\ntop 10 % hold {concentration(heat):.0%}".strip())
    return rows, labels


def clip_part_cells(frames: Array, parts: Array) -> tuple[list[list[Cell | None]], list[str]]:
    """Arrange panels of heads or learned tokens: a row for each, a column for each slice of time.

    Args:
        frames: Shape ``(T, H, W)`` or ``(T, H, W, 3)``, in 0..1.
        parts: Shape ``(parts, t, h, w)``, on the grid of tokens.

    Returns:
        The rows of panels and a label for each; values in multiples of an even spread over the clip.
    """
    slices = parts.shape[1]
    shown = spread_frames(slices, min(slices, FRAMES))
    middles = spread_frames(len(frames), slices)
    mean = np.abs(parts).mean(axis=(1, 2, 3), keepdims=True)
    spread = parts / np.where(mean > 0, mean, 1)
    rows: list[list[Cell | None]] = []
    for number, part in enumerate(spread):
        large = enlarge_tokens(part, frames.shape[1:3])
        titles = [f"frame {middles[i] + 1}" if number == 0 else "" for i in shown]
        rows.append([Cell(frames[middles[i]], large[i], title=title) for i, title in zip(shown, titles, strict=True)])
    return rows, [str(number) for number in range(len(parts))]


def animated_overlay(frames: Array, heat: Array, signed: bool, least: int = _SIDE) -> npt.NDArray[np.uint8]:
    """Lay one method's map over the frames of a clip, beside the clip itself, on one scale for all frames.

    Args:
        frames: Shape ``(T, H, W)`` or ``(T, H, W, 3)``, in 0..1.
        heat: Shape ``(T, H, W)``.
        signed: Whether the map holds evidence for and against.
        least: Pixels of the shorter side of a frame; smaller frames are enlarged by a whole factor.

    Returns:
        Shape ``(T, H', W', 3)``, uint8.
    """
    # All frames one below the other are one picture with one scale.
    count, height, width = frames.shape[:3]
    tall = frames.reshape(-1, *frames.shape[2:])
    factor = -(-least // min(height, width))
    pixels = overlay([tall, tall], [None, heat.reshape(-1, width)], signed, least=factor * min(tall.shape[:2]))
    return pixels.reshape(count, -1, *pixels.shape[1:])
