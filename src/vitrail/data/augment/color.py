"""Colour jitter: brightness, contrast, saturation and hue as one linear map of each image's colours.

Each of the four maps the three bands of a pixel linearly, so any sequence of them is one 3 x 3 matrix and an offset an
image, and costs one product of matrices instead of four passes and a way through HSV and back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitrail.config.augment import AugmentSettings
from vitrail.data.augment.random_numbers import bernoulli, uniform_symmetric

# Rec. 601, as Pillow and kornia weigh the bands of a gray image.
GRAY = (0.299, 0.587, 0.114)


def color_jitter(images: Tensor, settings: AugmentSettings) -> Tensor:
    """Change the colours of each image; the order of the four changes is sampled for the batch.

    Args:
        images: Images or clips, shape ``(B, 3, H, W)`` or ``(B, 3, T, H, W)``, in 0..1.
        settings: Strengths of the changes.

    Returns:
        The same shape, in 0..1.
    """
    count = len(images)
    matrix = torch.eye(3).repeat(count, 1, 1)
    offset = torch.zeros(count, 3)
    gray = torch.tensor(GRAY)
    mean = images.flatten(2).mean(dim=2).cpu() if settings.contrast else torch.zeros(count, 3)
    chosen = bernoulli(settings.color_probability, count)
    changes = ("brightness", "contrast", "saturation", "hue")
    for name in [changes[i] for i in torch.randperm(len(changes)).tolist()]:
        most = getattr(settings, name)
        if not most:
            continue
        amount = uniform_symmetric(most, count) * chosen
        if name == "hue":
            step, shift = hue_matrices(amount), torch.zeros(count, 3)
        elif name == "saturation":
            step, shift = saturation_matrices(1 + amount), torch.zeros(count, 3)
        else:
            step = torch.eye(3) * (1 + amount)[:, None, None]
            # Contrast is about the mean gray of the image as it is after the changes before this one.
            now = (matrix @ mean[:, :, None])[:, :, 0] + offset
            shift = (-amount * (now @ gray))[:, None].expand(count, 3) if name == "contrast" else torch.zeros(count, 3)
        matrix, offset = step @ matrix, (step @ offset[:, :, None])[:, :, 0] + shift
    if settings.grayscale:
        step = saturation_matrices(1.0 - bernoulli(settings.grayscale, count).float())
        matrix, offset = step @ matrix, (step @ offset[:, :, None])[:, :, 0]
    return apply_color_matrices(images, matrix, offset)


def saturation_matrices(factor: Tensor) -> Tensor:
    """Build matrices that scale the distance from gray, shape ``(B, 3, 3)``: 0 is gray, 1 the identity."""
    gray = torch.tensor(GRAY).expand(3, 3)
    return factor[:, None, None] * torch.eye(3) + (1 - factor)[:, None, None] * gray


def hue_matrices(share: Tensor) -> Tensor:
    """Build matrices that rotate the hue at constant luma, shape ``(B, 3, 3)``.

    Args:
        share: Rotation as a share of the whole circle, shape ``(B,)``; red goes to yellow at 1/6.

    Source: the chroma plane of YIQ, Rec. 601; a turn in HSV, which is not a linear map, changes the luma too.
    """
    forward = torch.tensor([list(GRAY), [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    angle = -2 * math.pi * share
    zeros, ones = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [[ones, zeros, zeros], [zeros, angle.cos(), -angle.sin()], [zeros, angle.sin(), angle.cos()]]
    turn = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    turned: Tensor = torch.linalg.inv(forward) @ turn @ forward
    return turned


def apply_color_matrices(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Map the bands of each pixel linearly, and clip to 0..1.

    Args:
        images: Images or clips, shape ``(B, 3, H, W)`` or ``(B, 3, T, H, W)``.
        matrix: Shape ``(B, 3, 3)``.
        offset: Shape ``(B, 3)``.
    """
    matrix, offset = matrix.to(images), offset.to(images)
    flat = torch.baddbmm(offset[:, :, None], matrix, images.flatten(2))
    return flat.clamp_(0.0, 1.0).view_as(images)
