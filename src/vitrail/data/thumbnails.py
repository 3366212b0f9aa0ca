"""Small gray images by which copies are recognised."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Thumbnails = npt.NDArray[np.uint8]

# Height and width.
SIDE = 32


def thumbnails(images: Tensor) -> Thumbnails:
    """Gray images of 32 x 32 pixels, the mean of all bands.

    Args:
        images: Shape ``(B, C, H, W)``, 0..1; NaN where there is no data.

    Returns:
        Shape ``(B, 32, 32)``.
    """
    gray = images.nanmean(1, keepdim=True)
    if gray.isnan().any():
        mean = gray.nanmean((2, 3), keepdim=True).nan_to_num(0.0)
        gray = torch.where(gray.isnan(), mean, gray)
    if gray.shape[2:] != (SIDE, SIDE):
        gray = F.interpolate(gray, size=(SIDE, SIDE), mode="area")
    small: Thumbnails = (gray[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return small


def thumbnail_of_stored(values: npt.NDArray[Any], invalid: npt.NDArray[np.bool_] | None) -> Thumbnails:
    """The same of one image as it is stored, before its range of values is known.

    Bytes keep their range; other types are stretched to theirs, which a comparison of contrast and brightness undoes.

    Args:
        values: Shape ``(C, H, W)``.
        invalid: Pixels without data, shape ``(H, W)`` or ``(C, H, W)``.

    Returns:
        Shape ``(32, 32)``.
    """
    # Every pixel of a large image adds nothing: four by four for each of the thumbnail's are enough.
    step = max(1, min(values.shape[1:]) // (4 * SIDE))
    part = torch.from_numpy(np.ascontiguousarray(values[:, ::step, ::step]).astype(np.float32))
    if invalid is not None:
        hidden = torch.from_numpy(np.ascontiguousarray(invalid[..., ::step, ::step]))
        part = part.masked_fill(hidden, torch.nan)
    part = torch.where(part.isfinite(), part, torch.nan)
    if values.dtype == np.uint8:
        low, high = 0.0, 255.0
    else:
        known = part[~part.isnan()]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    small: Thumbnails = thumbnails(((part - low) / max(high - low, 1e-12))[None])[0]
    return small
