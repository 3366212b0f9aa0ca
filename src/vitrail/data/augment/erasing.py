"""Blur, random erasing, and dropping of bands and streams."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitrail.config.augment import AugmentSettings
from vitrail.data.augment.axes import as_channels, expand_like
from vitrail.data.augment.random_numbers import bernoulli, uniform


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Apply Gaussian blur with a separate deviation for each image; kernels reach three of the largest.

    Args:
        images: Images or clips, shape ``(B, C, H, W)`` or ``(B, C, T, H, W)``.
        sigma: Standard deviation in pixels, above 0, shape ``(B,)``.
    """
    from kornia.filters import gaussian_blur2d

    # Reflected pixels at the border: there are no more of them than the image has.
    height, width = (2 * min(math.ceil(3 * float(sigma.max())), length - 1) + 1 for length in images.shape[-2:])
    planes = as_channels(images)
    blurred: Tensor = gaussian_blur2d(planes, (height, width), torch.stack([sigma, sigma], dim=1).to(images))
    return blurred.view_as(images)


def random_blur(streams: dict[str, Tensor], settings: AugmentSettings) -> dict[str, Tensor]:
    """Blur all streams of some images alike: the deviation is a share of each stream's own size."""
    count = len(next(iter(streams.values())))
    rows = torch.nonzero(bernoulli(settings.blur, count))[:, 0]
    share = uniform(*settings.blur_sigma, count)[rows] / 100
    if not len(rows):
        return streams
    result = {}
    for name, x in streams.items():
        there = rows.to(x.device)
        result[name] = x.index_copy(0, there, blur(x[there], share * min(x.shape[-2:])))
    return result


def random_erasing(streams: dict[str, Tensor], settings: AugmentSettings, fill: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fill one rectangle of some images, at the same position in all streams."""
    count = len(next(iter(streams.values())))
    chosen = bernoulli(settings.erase, count)
    area = uniform(*settings.erase_area, count)
    ratio = uniform(-1.2, 1.2, count).exp().clamp(min=area, max=1 / area)
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    left, top = torch.rand(count) * (1 - width), torch.rand(count) * (1 - height)
    if not chosen.any():
        return streams
    boxes = torch.stack([left, top, left + width, top + height], dim=1) * chosen[:, None]
    return {name: torch.where(box_mask(boxes, x), fill[name], x) for name, x in streams.items()}


def box_mask(boxes: Tensor, images: Tensor) -> Tensor:
    """Mark pixels whose centres lie in a rectangle.

    Args:
        boxes: Left, top, right and bottom of each image's, from 0 to 1, shape ``(B, 4)``.
        images: Images or clips, shape ``(B, C, H, W)`` or ``(B, C, T, H, W)``.

    Returns:
        Shape ``(B, 1, H, W)`` or ``(B, 1, 1, H, W)``, bool.
    """
    height, width = images.shape[-2:]
    left, top, right, bottom = boxes.to(images.device).T.unsqueeze(2).unbind(0)
    x = (torch.arange(width, device=images.device) + 0.5) / width
    y = (torch.arange(height, device=images.device) + 0.5) / height
    across, down = (x >= left) & (x < right), (y >= top) & (y < bottom)
    inside = down[:, :, None] & across[:, None, :]
    return inside.view(len(images), *[1] * (images.ndim - 3), height, width)


def drop_bands(streams: dict[str, Tensor], probability: float, fill: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fill whole bands of images; at least one band of each stream stays."""
    result = {}
    for name, x in streams.items():
        order = torch.rand(x.shape[:2])
        dropped = order < probability
        # The one that would have gone last stays.
        dropped.scatter_(1, order.argmax(dim=1, keepdim=True), False)
        result[name] = torch.where(expand_like(dropped, x) > 0, fill[name], x)
    return result


def drop_streams(streams: dict[str, Tensor], probability: float, fill: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fill one whole stream of some images; single streams are never filled."""
    if len(streams) < 2:
        return streams
    count = len(next(iter(streams.values())))
    chosen = torch.where(bernoulli(probability, count), torch.randint(len(streams), (count,)), -1)
    return {
        name: torch.where(expand_like(chosen == number, x) > 0, fill[name], x)
        for number, (name, x) in enumerate(streams.items())
    }
