"""The margin that evaluation cuts off: images are read larger, evaluation sees their centre and training all of them.

Source: ``crop_pct`` of timm. Training with random crops shows objects larger than a centre crop of the whole image does
(Touvron et al. 2019, arXiv:1906.06423, section 3).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.augment.axes import as_channels
from vitrail.data.rasters import resize_tensor


def size_to_read(size: tuple[Any, ...], crop_pct: float) -> tuple[Any, ...]:
    """Compute height and width of an image of which the centre of a size is the share ``crop_pct`` of each side.

    Other sizes before them, the frames of a clip, stay.
    """
    return (*size[:-2], *(math.floor(length / crop_pct) for length in size[-2:]))


def crop_centre(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop images (or masks) ``(..., H, W)`` to the centre of a size; an odd margin is larger at the bottom right."""
    top, left = (x.shape[-2] - size[0]) // 2, (x.shape[-1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]]


def shrink_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize whole images ``(B, C, H, W)`` or clips, uint8 or float32 with NaN where there is no data, to a size."""
    frames = as_channels(x)
    if x.dtype == torch.uint8:
        small = F.interpolate(frames, size=size, mode="bicubic", antialias=True)
    else:
        small = resize_tensor(frames, size, "squash")
    return small.reshape(*x.shape[:-2], *size)
