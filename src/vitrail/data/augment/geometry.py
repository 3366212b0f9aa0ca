"""Geometric augmentation: one matrix for each image, one resampling for each stream."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.config.augment import AugmentSettings, Padding
from vitrail.data.augment.axes import as_channels
from vitrail.data.augment.random_numbers import bernoulli, uniform, uniform_symmetric
from vitrail.errors import ConfigError


def random_transforms(settings: AugmentSettings, count: int, size: tuple[int, int]) -> Tensor:
    """Sample a random geometric transform for each image.

    Args:
        settings: Ranges and probabilities of the transforms.
        count: B.
        size: Height and width of the images.

    Returns:
        Shape ``(B, 3, 3)``: from the position of a pixel in the result to its position in the image, in coordinates
        ``(x, y, 1)`` that run from -1 to 1 over the image.

    Raises:
        ConfigError: Quarter turns of images that are not square.
    """
    if settings.quarter_turns and size[0] != size[1]:
        raise ConfigError(f"data.augmentation.quarter_turns needs square images, got {size[0]} x {size[1]}")
    # The image is turned, sheared, zoomed and shifted; a crop is taken of that; the crop is turned and flipped. The
    # matrix goes the other way, from the result back to the image.
    return _affine(settings, count, size) @ _crop(settings, count, size) @ _dihedral(settings, count)


def _affine(settings: AugmentSettings, count: int, size: tuple[int, int]) -> Tensor:
    if not (settings.rotate or settings.translate or settings.shear or settings.zoom != (1.0, 1.0)):
        return torch.eye(3).expand(count, 3, 3)
    motion = affine_matrices(
        uniform_symmetric(settings.rotate, count),
        torch.stack([uniform_symmetric(settings.shear, count), uniform_symmetric(settings.shear, count)], dim=1),
        torch.stack(
            [uniform_symmetric(settings.translate, count), uniform_symmetric(settings.translate, count)], dim=1
        ),
        uniform(*settings.zoom, count),
        size,
    )
    chosen = bernoulli(settings.affine_probability, count)
    return torch.where(chosen[:, None, None], motion, torch.eye(3))


def affine_matrices(degrees: Tensor, shear: Tensor, shift: Tensor, zoom: Tensor, size: tuple[int, int]) -> Tensor:
    """Compose rotation about the centre, shear, zoom and shift.

    Args:
        degrees: Counter-clockwise, as one looks at the image, shape ``(B,)``.
        shear: Along x and along y, in degrees, shape ``(B, 2)``.
        shift: To the right and down, as a share of width and height, shape ``(B, 2)``.
        zoom: Magnification, shape ``(B,)``.
        size: Height and width: turning keeps angles in pixels.

    Returns:
        From result to image, shape ``(B, 3, 3)``, as :func:`random_transforms`.
    """
    turn = torch.deg2rad(degrees)
    zeros, ones = torch.zeros_like(zoom), torch.ones_like(zoom)
    # Forward in pixels around the centre, y down.
    rotation = _matrix([[turn.cos(), turn.sin()], [-turn.sin(), turn.cos()]])
    slope = torch.deg2rad(shear).tan()
    shearing = _matrix([[ones, slope[:, 0]], [zeros, ones]]) @ _matrix([[ones, zeros], [slope[:, 1], ones]])
    forward = zoom[:, None, None] * (rotation @ shearing)
    backward = torch.linalg.inv(forward)
    height, width = size
    aspect = torch.tensor([[1.0, height / width], [width / height, 1.0]])
    backward = backward * aspect
    offset = -(backward @ (2 * shift)[:, :, None])
    return _homogeneous(backward, offset[:, :, 0])


def _crop(settings: AugmentSettings, count: int, size: tuple[int, int]) -> Tensor:
    """Sample random resized crops; an aspect ratio that does not fit is narrowed to the image."""
    if settings.crop_area == (1.0, 1.0):
        return torch.eye(3).expand(count, 3, 3)
    area = uniform(*settings.crop_area, count)
    low, high = settings.crop_ratio
    ratio = uniform(math.log(low), math.log(high), count).exp()
    # A ratio beyond what the area has room for is brought back to the nearest that fits.
    ratio = ratio.clamp(min=area, max=1 / area)
    width, height = (area * ratio).sqrt().clamp_max(1.0), (area / ratio).sqrt().clamp_max(1.0)
    x, y = uniform_symmetric(1.0, count) * (1 - width), uniform_symmetric(1.0, count) * (1 - height)
    return _homogeneous(torch.diag_embed(torch.stack([width, height], dim=1)), torch.stack([x, y], dim=1))


def _dihedral(settings: AugmentSettings, count: int) -> Tensor:
    flips = torch.ones(count, 2)
    if settings.flip_horizontal:
        flips[:, 0] = 1.0 - 2.0 * bernoulli(settings.flip_horizontal, count)
    if settings.flip_vertical:
        flips[:, 1] = 1.0 - 2.0 * bernoulli(settings.flip_vertical, count)
    linear = torch.diag_embed(flips)
    if settings.quarter_turns:
        turns = torch.randint(1, 4, (count,)) * bernoulli(settings.quarter_turns, count)
        # Whole numbers, so that a quarter turn moves pixels and blends none.
        cos, sin = torch.tensor([1.0, 0.0, -1.0, 0.0])[turns], torch.tensor([0.0, 1.0, 0.0, -1.0])[turns]
        linear = linear @ _matrix([[cos, -sin], [sin, cos]])
    return _homogeneous(linear, torch.zeros(count, 2))


def _matrix(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _homogeneous(linear: Tensor, offset: Tensor) -> Tensor:
    last = torch.tensor([0.0, 0.0, 1.0]).expand(len(linear), 1, 3)
    return torch.cat([torch.cat([linear, offset[:, :, None]], dim=2), last], dim=1)


def warp(images: Tensor, motions: Tensor, padding: Padding = "zeros") -> Tensor:
    """Resample images by geometric transforms, bilinearly.

    Args:
        images: Images or clips, shape ``(B, C, H, W)`` or ``(B, C, T, H, W)``.
        motions: Shape ``(B, 3, 3)``, as :func:`random_transforms` gives them; they fit images of any size.
        padding: Values outside of the image.

    Returns:
        The same shape.
    """
    height, width = images.shape[-2:]
    m = motions.to(images.device, images.dtype)[:, :2, :, None, None]
    x = torch.arange(1 - width, width, 2, device=images.device, dtype=images.dtype) / width
    y = torch.arange(1 - height, height, 2, device=images.device, dtype=images.dtype)[:, None] / height
    # The grid of torch's affine_grid; as sums of rows and columns it costs an eighth of its product of matrices.
    grid = torch.empty(len(images), height, width, 2, device=images.device, dtype=images.dtype)
    for axis in range(2):
        torch.add(m[:, axis, 0] * x, m[:, axis, 1] * y + m[:, axis, 2], out=grid[..., axis])
    moved = F.grid_sample(as_channels(images), grid, padding_mode=padding, align_corners=False)
    return moved.view_as(images)
