"""Relevance maps over clips: a column for each frame, and frames of an animation; one scale for the whole clip."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitrail.figures.captions import TITLE_HEIGHT, title_strip
from vitrail.figures.display import enlarge, in_color
from vitrail.figures.film_strip import FRAMES, spread_frames
from vitrail.figures.heatmaps import (
    SHARE,
    Cell,
    concentration,
    enlarge_tokens,
    in_even_spreads,
    in_ranks,
    overlay,
    smooth_map,
)

Array = npt.NDArray[Any]
# Pixels of the shorter side of an animation, and of those side by side.
_SIDE = 224
_PANE = 176
# Frames of an animation on a page at most.
_MOST_FRAMES = 32
_GAP = 8


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
        # The line encloses the top 10 % of the pixels of all frames together.
        rows.append([Cell(frames[i], ranks[i], method in signed, level=1 - SHARE) for i in shown])
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
    rows: list[list[Cell | None]] = []
    for number, part in enumerate(in_even_spreads(parts, axes=3)):
        large = enlarge_tokens(part, frames.shape[1:3])
        titles = [f"frame {middles[i] + 1}" if number == 0 else "" for i in shown]
        rows.append([Cell(frames[middles[i]], large[i], title=title) for i, title in zip(shown, titles, strict=True)])
    return rows, [str(number) for number in range(len(parts))]


def animated_overlay(frames: Array, heat: Array, signed: bool, least: int = _SIDE) -> npt.NDArray[np.uint8]:
    """Overlay one method's map on the frames of a clip, beside the clip itself, on one scale for all frames.

    Args:
        frames: Shape ``(T, H, W)`` or ``(T, H, W, 3)``, in 0..1.
        heat: Shape ``(T, H, W)``.
        signed: Whether the map holds evidence for and against.
        least: Pixels of the shorter side of a frame; smaller frames are enlarged by a whole factor.

    Returns:
        Shape ``(T, H', W', 3)``, uint8.
    """
    return _overlay_frames(frames, [None, heat], signed, -(-least // min(frames.shape[1:3])))


def _overlay_frames(frames: Array, maps: Sequence[Array | None], signed: bool, factor: int) -> npt.NDArray[np.uint8]:
    """Overlay maps on enlarged frames of a clip, side by side; None leaves the frames as they are."""
    # All frames one below the other are one picture with one scale.
    tall = frames.reshape(-1, *frames.shape[2:])
    flat = [None if heat is None else heat.reshape(tall.shape[:2]) for heat in maps]
    pixels = overlay([tall] * len(maps), flat, signed, least=factor * min(tall.shape[:2]))
    return pixels.reshape(len(frames), -1, *pixels.shape[1:])


def panes(frames: Array, maps: Mapping[str, Array], signed: Container[str] = ()) -> npt.NDArray[np.uint8]:
    """Draw a clip and its overlays side by side, small enough for a page, with a name above each.

    Args:
        frames: Shape ``(T, H, W)`` or ``(T, H, W, 3)``, in 0..1; of more than 32 those at equal distances are drawn.
        maps: Method -> map ``(T, H, W)``.
        signed: Methods whose maps hold evidence for and against.

    Returns:
        Shape ``(T', H', W', 3)``, uint8, on white.
    """
    shown = spread_frames(len(frames), min(len(frames), _MOST_FRAMES))
    columns = [("clip", np.stack([np.round(255 * in_color(frames[i])).astype(np.uint8) for i in shown]))]
    columns += [(name, _overlay_frames(frames, [heat], name in signed, 1)[shown]) for name, heat in maps.items()]
    parts: list[npt.NDArray[np.uint8]] = []
    for name, pixels in columns:
        small = np.stack([_fit(frame) for frame in pixels])
        head = np.broadcast_to(title_strip(name, small.shape[2]), (len(small), TITLE_HEIGHT, small.shape[2], 3))
        gap = np.full((len(small), TITLE_HEIGHT + small.shape[1], _GAP, 3), 255, np.uint8)
        parts += [np.concatenate([head, small], axis=1), gap]
    return np.concatenate(parts[:-1], axis=2)


def _fit(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Resize a frame to a pane: small ones by a whole factor."""
    height, width = frame.shape[:2]
    if min(height, width) < _PANE:
        return enlarge(frame, -(-_PANE // min(height, width)))
    scale = _PANE / min(height, width)
    size = (round(scale * width), round(scale * height))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
