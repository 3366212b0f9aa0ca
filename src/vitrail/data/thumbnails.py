"""Small gray images for the search of copies."""

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
# Share of the pixels that a stretched contrast cuts off at either end.
_CUT = 0.01
# ITU-R BT.601: red, green, blue.
_LUMA = (0.299, 0.587, 0.114)


def thumbnails(images: Tensor, stretch: bool = False) -> Thumbnails:
    """Compute gray images of 32 x 32 pixels: luma of three bands, else the mean over bands.

    Gray copies of colour images are made by luma, by nearly every tool.

    Args:
        images: Shape ``(B, C, H, W)``, 0..1; NaN where there is no data.
        stretch: Stretch the contrast of each image, whatever its values are: those of satellites fill a small part of
            0..1. A comparison of copies undoes contrast and brightness.

    Returns:
        Shape ``(B, 32, 32)``.
    """
    weights = images.new_tensor(_LUMA if images.shape[1] == 3 else [1.0] * images.shape[1])[:, None, None]
    known = ~images.isnan() * weights
    gray = (images.nan_to_num(0.0) * weights).sum(1, keepdim=True) / known.sum(1, keepdim=True)
    if gray.isnan().any():
        mean = gray.nanmean((2, 3), keepdim=True).nan_to_num(0.0)
        gray = torch.where(gray.isnan(), mean, gray)
    if min(gray.shape[2:]) >= 2 * SIDE:
        gray = F.interpolate(gray, size=(SIDE, SIDE), mode="area")
    elif gray.shape[2:] != (SIDE, SIDE):
        # Means over areas repeat pixels of small images, and the edges of such squares look like detail.
        gray = F.interpolate(gray, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    if stretch:
        low, high = (gray.flatten(1).quantile(share, dim=1)[:, None, None, None] for share in (_CUT, 1 - _CUT))
        # Rounding alone is not contrast.
        known = (high - low) > 1e-4 * torch.maximum(low.abs(), high.abs())
        gray = torch.where(known, (gray - low) / (high - low).clamp(min=1e-12), 0.0)
    small: Thumbnails = (gray[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return small


def thumbnail_of_stored(values: npt.NDArray[Any], invalid: npt.NDArray[np.bool_] | None) -> Thumbnails:
    """Compute the thumbnail of one stored image, before its range of values is known.

    Bytes keep their contrast; that of other types is stretched.

    Args:
        values: Shape ``(C, H, W)``.
        invalid: Pixels without data, shape ``(H, W)`` or ``(C, H, W)``.

    Returns:
        Shape ``(32, 32)``.
    """
    # Every pixel of a large image adds nothing: four by four for each of the thumbnail's are enough.
    step = max(1, min(values.shape[1:]) // (4 * SIDE))
    with np.errstate(over="ignore"):  # of values without data
        part = torch.from_numpy(np.ascontiguousarray(values[:, ::step, ::step]).astype(np.float32))
    if invalid is not None:
        hidden = torch.from_numpy(np.ascontiguousarray(invalid[..., ::step, ::step]))
        part = part.masked_fill(hidden, torch.nan)
    part = torch.where(part.isfinite(), part, torch.nan)
    eight_bits = values.dtype == np.uint8
    small: Thumbnails = thumbnails((part / 255 if eight_bits else part)[None], stretch=not eight_bits)[0]
    return small
