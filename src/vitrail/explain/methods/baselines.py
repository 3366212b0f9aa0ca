"""Baselines: images without content, which attribution starts from and which replace removed pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.forwarding import check_positive

BASELINES = ("zero", "mean", "blur")
# Share of the shorter side: a standard deviation of 14 at 224 pixels, where objects are no longer recognisable.
_BLUR = 1 / 16


def make_baseline(images: Tensor, kind: str) -> Tensor:
    """Compute an image without content for each image.

    Args:
        images: Normalised images, shape ``(B, C, H, W)``.
        kind: "zero" (after normalisation the mean of the data set), "mean" (each band's mean over the image) or "blur"
            (the image blurred by a Gaussian of a sixteenth of its shorter side).

    Returns:
        The same shape.

    Raises:
        ConfigError: An unknown kind.
    """
    if kind == "zero":
        return torch.zeros_like(images)
    if kind == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    if kind != "blur":
        raise ConfigError(f"baseline must be one of {', '.join(BASELINES)}, got {kind!r}")
    return blur(images, min(images.shape[2:]) * _BLUR)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian; images are reflected at their border.

    Args:
        images: Shape ``(B, C, H, W)``.
        sigma: Standard deviation in pixels, above 0.

    Returns:
        The same shape.

    Raises:
        ConfigError: ``sigma`` is not above 0.
    """
    from kornia.filters import gaussian_blur2d

    check_positive("sigma", sigma)
    # Three standard deviations to each side, limited because reflection needs a longer side.
    reach = min(math.ceil(3 * sigma), min(images.shape[2:]) - 1)
    blurred: Tensor = gaussian_blur2d(images, (2 * reach + 1, 2 * reach + 1), (sigma, sigma))
    return blurred
