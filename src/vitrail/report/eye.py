"""Images of any number of bands as pictures for the eye."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from torch import Tensor


def as_pictures(images: Tensor, alike: bool = False) -> npt.NDArray[Any]:
    """Three bands in their colours, one in gray, others as the mean of all bands, stretched.

    Args:
        images: Shape ``(n, C, H, W)``, in 0..1.
        alike: Stretch all as the first one, where they show the same thing.

    Returns:
        Shape ``(n, H, W)`` or ``(n, H, W, 3)``, in 0..1.
    """
    if images.shape[1] == 3:
        shown = images.permute(0, 2, 3, 1)
    elif images.shape[1] == 1:
        shown = images[:, 0]
    else:
        shown = images.mean(dim=1)
        measured = shown[:1] if alike else shown
        low, high = measured.amin(dim=(1, 2), keepdim=True), measured.amax(dim=(1, 2), keepdim=True)
        shown = (shown - low) / (high - low).clamp_min(1e-6)
    array: npt.NDArray[Any] = shown.clamp(0, 1).cpu().numpy()
    return array


def gray(picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A picture ``(H, W)`` or ``(H, W, 3)`` without its colours, so that colour laid over it means one thing.

    Source: ITU-R BT.601, luma.
    """
    if picture.ndim == 2:
        return picture
    light: npt.NDArray[Any] = picture @ [0.299, 0.587, 0.114]
    return light
