"""Localisation: agreement of a map with a mask of the relevant region."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ConfigError, ShapeError
from vitrail.explain.capture.forwarding import check_count
from vitrail.explain.metrics.scoring import rank_pixels


def pointing_game(maps: Tensor, masks: Tensor, tolerance: int = 0) -> Tensor:
    """Compute whether the maximum of a map lies in the mask.

    For a maximum of several pixels, the share of them in the mask: the expectation for a random choice.

    Args:
        maps: Shape ``(B, H, W)``.
        masks: Relevant pixels, bool, shape ``(B, H, W)``.
        tolerance: Largest distance of the maximum from the mask in pixels (15 in the paper, for photos of about 500).

    Returns:
        Shape ``(B,)``, from 0 to 1; NaN for an empty mask.

    Raises:
        ShapeError: Maps and masks of different shapes.
        ConfigError: ``tolerance`` is below 0, or masks are not boolean.

    Source: Zhang et al. 2016, arXiv:1608.00507, section 4.1.
    """
    _check(maps, masks)
    check_count("tolerance", tolerance, 0)
    top = maps == maps.amax(dim=(1, 2), keepdim=True)
    near = masks
    if tolerance:
        reach = torch.arange(-tolerance, tolerance + 1, device=masks.device)
        disc = (reach[:, None] ** 2 + reach[None] ** 2 <= tolerance**2).float()[None, None]
        near = F.conv2d(masks[:, None].float(), disc, padding=tolerance)[:, 0] > 0.5
    return _where_known((top & near).sum(dim=(1, 2)) / top.sum(dim=(1, 2)), masks)


def mask_iou(maps: Tensor, masks: Tensor, seed: int = 0) -> Tensor:
    """Compute the intersection over union of the mask and the most relevant pixels, as many as in the mask.

    Args:
        maps: Shape ``(B, H, W)``.
        masks: Relevant pixels, bool, shape ``(B, H, W)``.
        seed: Seed of the order of tied pixels.

    Returns:
        Shape ``(B,)``, from 0 to 1; NaN for an empty mask.

    Raises:
        ShapeError: Maps and masks of different shapes.
        ConfigError: Masks that are not boolean.
    """
    _check(maps, masks)
    chosen = rank_pixels(maps, seed) < masks.sum(dim=(1, 2))[:, None, None]
    either = (chosen | masks).sum(dim=(1, 2)).clamp_min(1)
    return _where_known((chosen & masks).sum(dim=(1, 2)) / either, masks)


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Compute the share of a map's positive part in the mask.

    A map without a positive part counts as uniform.

    Args:
        maps: Shape ``(B, H, W)``.
        masks: Relevant pixels, bool, shape ``(B, H, W)``.

    Returns:
        Shape ``(B,)``, from 0 to 1; NaN for an empty mask.

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
