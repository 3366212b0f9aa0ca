"""Pictures of clips: frames at equal distances, side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Frames of a picture at most, and in each of its rows.
FRAMES, COLUMNS = 8, 4


def spread_frames(length: int, count: int) -> list[int]:
    """Choose frames of a clip at equal distances: the middle of each of ``count`` equal parts."""
    return [int((part + 0.5) * length / count) for part in range(count)]


def film_strip(clips: Tensor) -> Tensor:
    """Lay frames side by side, in rows from left to right.

    Args:
        clips: Shape ``(n, C, T, H, W)``; of more than :data:`FRAMES` frames those at equal distances are shown.

    Returns:
        Shape ``(n, C, rows * H, columns * W)``; places without a frame are 0.
    """
    n, chans, length, height, width = clips.shape
    count = min(length, FRAMES)
    shown = clips[:, :, torch.tensor(spread_frames(length, count), device=clips.device)]
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    shown = F.pad(shown, (0, 0, 0, 0, 0, rows * columns - count))
    tiles = shown.view(n, chans, rows, columns, height, width).transpose(3, 4)
    return tiles.reshape(n, chans, rows * height, columns * width)


def square_of_frames(clips: Tensor) -> Tensor:
    """Lay four frames at equal distances two by two, in the shape of a frame.

    Args:
        clips: Shape ``(n, C, T, H, W)``.

    Returns:
        Shape ``(n, C, 2 * H, 2 * W)``.
    """
    n, chans, length, height, width = clips.shape
    shown = clips[:, :, torch.tensor(spread_frames(length, 4), device=clips.device)]
    tiles = shown.view(n, chans, 2, 2, height, width).transpose(3, 4)
    return tiles.reshape(n, chans, 2 * height, 2 * width)


def flat_maps(maps: Tensor) -> Tensor:
    """Convert maps to the layout of the pictures: ``(n, H, W)`` as they are, of clips, ``(n, T, H, W)``, as strips."""
    return maps if maps.ndim == 3 else film_strip(maps[:, None])[:, 0]
