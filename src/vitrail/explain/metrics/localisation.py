"""Agreement of a map with a mask of what should matter, where one is known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ConfigError, ShapeError
from vitrail.explain.metrics.scoring import rank_pixels


def pointing_game(maps: Tensor, masks: Tensor, tolerance: int = 0) -> Tensor:
    """Whether the map's maximum lies in the mask.

    Where several pixels share the maximum, the share of them that do: what choosing one at random gives.

    Args:
        maps: Shape ``(B, H, W)``.
        masks: What should matter, shape ``(B, H, W)``, boolean.
        tolerance: Pixels by which the maximum may miss (15 in the paper, for photos of some 500 pixels).

    Returns:
        Shape ``(B,)``, from 0 to 1; not a number for an image with an empty mask.

    Raises:
        ShapeError: Maps and masks of different shapes.
        ConfigError: A tolerance below 0, or masks that are not boolean.

    Source: Zhang et al. 2016, arXiv:1608.00507, section 4.1.
    """
    _check(maps, masks)
    if tolerance < 0:
        raise ConfigError(f"tolerance must be at least 0 pixels, got {tolerance}")
    top = maps == maps.amax(dim=(1, 2), keepdim=True)
    near = masks
    if tolerance:
        reach = torch.arange(-tolerance, tolerance + 1, device=masks.device)
        disc = (reach[:, None] ** 2 + reach[None] ** 2 <= tolerance**2).float()[None, None]
        near = F.conv2d(masks[:, None].float(), disc, padding=tolerance)[:, 0] > 0.5
    return _where_known((top & near).sum(dim=(1, 2)) / top.sum(dim=(1, 2)), masks)


def mask_iou(maps: Tensor, masks: Tensor, seed: int = 0) -> Tensor:
    """Intersection over union of the mask and as many of the most relevant pixels as the mask has.

    Args:
        maps: Shape ``(B, H, W)``.
        masks: What should matter, shape ``(B, H, W)``, boolean.
        seed: Of the order among pixels that the map calls equal.

    Returns:
        Shape ``(B,)``, from 0 to 1; not a number for an image with an empty mask.

    Raises:
        ShapeError: Maps and masks of different shapes.
        ConfigError: Masks that are not boolean.
    """
    _check(maps, masks)
    chosen = rank_pixels(maps, seed) < masks.sum(dim=(1, 2))[:, None, None]
    either = (chosen | masks).sum(dim=(1, 2)).clamp_min(1)
    return _where_known((chosen & masks).sum(dim=(1, 2)) / either, masks)


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of a map's positive part that lies in the mask.

    A map without a positive part says nothing and counts as spread evenly.

    Args:
        maps: Shape ``(B, H, W)``.
        masks: What should matter, shape ``(B, H, W)``, boolean.

    Returns:
        Shape ``(B,)``, from 0 to 1; not a number for an image with an empty mask.

    Raises:
        ShapeError: Maps and masks of different shapes.
        ConfigError: Masks that are not boolean.

    Source: Wang et al. 2020, arXiv:1910.01279, section 4.3 (the energy-based pointing game).
    """
    _check(maps, masks)
    positive = maps.double().relu()
    positive = torch.where((positive > 0).any(dim=2).any(dim=1)[:, None, None], positive, torch.ones_like(positive))
    share = (positive * masks).sum(dim=(1, 2)) / positive.sum(dim=(1, 2))
    return _where_known(share.to(maps.dtype), masks)


def _check(maps: Tensor, masks: Tensor) -> None:
    if maps.ndim != 3 or maps.shape != masks.shape:
        raise ShapeError(f"maps and masks must both be (B, H, W), got {tuple(maps.shape)} and {tuple(masks.shape)}")
    if masks.dtype != torch.bool:
        raise ConfigError(f"masks must be boolean, got {masks.dtype}; compare them with a threshold")


def _where_known(values: Tensor, masks: Tensor) -> Tensor:
    return torch.where(masks.flatten(1).any(dim=1), values, torch.nan)
