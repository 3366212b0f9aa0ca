"""Pictures of clips: frames at equal distances, side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Frames of a picture at most, and in each of its rows.
FRAMES, COLUMNS = 8, 4


def film_strip(clips: Tensor) -> Tensor:
    """Lay frames side by side, in rows from left to right.

    Args:
        clips: Shape ``(n, C, T, H, W)``; of more than :data:`FRAMES` frames those at equal distances are shown.

    Returns:
        Shape ``(n, C, rows * H, columns * W)``; places without a frame are 0.
    """
    n, chans, length, height, width = clips.shape
    count = min(length, FRAMES)
    # The middle of each of as many equal parts.
    shown = clips[:, :, ((torch.arange(count, device=clips.device) + 0.5) * length / count).long()]
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    shown = F.pad(shown, (0, 0, 0, 0, 0, rows * columns - count))
    tiles = shown.view(n, chans, rows, columns, height, width).transpose(3, 4)
    return tiles.reshape(n, chans, rows * height, columns * width)


def flat_maps(maps: Tensor) -> Tensor:
    """Bring maps to the layout of the pictures: ``(n, H, W)`` as they are, of clips, ``(n, T, H, W)``, as strips."""
    return maps if maps.ndim == 3 else film_strip(maps[:, None])[:, 0]
