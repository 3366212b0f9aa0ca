"""Axes of a batch of images ``(B, C, H, W)`` or clips ``(B, C, T, H, W)``, all frames of which change alike."""

from __future__ import annotations

from torch import Tensor


def expand_like(values: Tensor, x: Tensor) -> Tensor:
    """Append axes of length 1 to values of each input, ``(B, ...)``, so that they broadcast over the batch."""
    return values.to(x).view(*values.shape, *[1] * (x.ndim - values.ndim))


def as_channels(x: Tensor) -> Tensor:
    """View frames as further channels of one image, ``(B, C * T, H, W)``, for equal warps and blurs of all frames."""
    return x.flatten(1, -3)


def as_rows(x: Tensor) -> Tensor:
    """View frames below each other in one image, ``(B, C, T * H, W)``, for equal maps of single pixels."""
    return x.flatten(2, -2)
