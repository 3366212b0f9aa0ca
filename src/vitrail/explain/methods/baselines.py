"""What stands for 'nothing here': images that attribution starts from and that removed pixels are replaced by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitrail.errors import ConfigError

BASELINES = ("zero", "mean", "blur")
# Of the shorter side; at 224 pixels that is a standard deviation of 14, at which no object is left to recognise.
_BLUR = 1 / 16


def make_baseline(images: Tensor, kind: str) -> Tensor:
    """An image without content for each image.

    Args:
        images: Normalised images, shape ``(B, C, H, W)``.
        kind: "zero" (after normalisation the mean of the data set), "mean" (each band's mean over the image) or "blur"
            (the image blurred by a Gaussian of a sixteenth of its shorter side).

    Returns:
        The same shape.

    Raises:
        ConfigError: Another kind.
    """
    if kind == "zero":
        return torch.zeros_like(images)
    if kind == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    if kind != "blur":
        raise ConfigError(f"baseline must be one of {', '.join(BASELINES)}, got {kind!r}")
    return blur(images, min(images.shape[2:]) * _BLUR)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian; beyond its border an image is mirrored.

    Args:
        images: Shape ``(B, C, H, W)``.
        sigma: Standard deviation in pixels.

    Returns:
        The same shape.
    """
    from kornia.filters import gaussian_blur2d

    # Three standard deviations to each side, as far as the image goes: reflection needs a side longer than that.
    reach = min(math.ceil(3 * sigma), min(images.shape[2:]) - 1)
    blurred: Tensor = gaussian_blur2d(images, (2 * reach + 1, 2 * reach + 1), (sigma, sigma))
    return blurred
