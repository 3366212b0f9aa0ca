"""MixUp and CutMix: blend or paste images of a batch; targets become shares of classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.config.augment import AugmentSettings
from vitrail.data.augment.axes import expand_like
from vitrail.data.augment.erasing import box_mask
from vitrail.data.augment.random_numbers import bernoulli, beta


class Mixing(nn.Module):
    """Mix each image of a batch with another one, all streams alike.

    Args:
        settings: Settings of mixup and CutMix.
        num_classes: K.

    Source: mixup: Zhang et al. 2018, arXiv:1710.09412, section 2; CutMix: Yun et al. 2019, arXiv:1905.04899, section
    3.1; a share for each image instead of one a batch: timm's "elem" mode.
    """

    def __init__(self, settings: AugmentSettings, num_classes: int) -> None:
        super().__init__()
        self.settings, self.num_classes = settings, num_classes

    def forward(self, streams: Mapping[str, Tensor], target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Mix a batch.

        Args:
            streams: Stream -> images or clips, shape ``(B, C, H, W)`` or ``(B, C, T, H, W)``.
            target: Classes ``(B,)``, or shares ``(B, K)``.

        Returns:
            The streams, and each image's share of each class, shape ``(B, K)``, float32.
        """
        shares = soft_targets(target, self.num_classes)
        count = len(shares)
        settings = self.settings
        partner = torch.randperm(count).to(shares.device)
        chosen = bernoulli(settings.mix_probability, count)
        paste = (
            bernoulli(0.5, count) if settings.mixup and settings.cutmix else torch.full((count,), settings.cutmix > 0)
        )
        # How much of the image itself is left.
        kept = torch.ones(count)
        if settings.mixup:
            kept = torch.where(chosen & ~paste, beta(settings.mixup, count), kept)
        boxes = torch.zeros(count, 4)
        if settings.cutmix:
            boxes = torch.where((chosen & paste)[:, None], _boxes(beta(settings.cutmix, count)), boxes)
        result = {}
        for name, x in streams.items():
            other = x[partner]
            mixed = torch.lerp(other, x, expand_like(kept, x)) if settings.mixup else x
            result[name] = torch.where(box_mask(boxes, x), other, mixed) if settings.cutmix else mixed
        first = next(iter(streams.values()))
        # The remaining share is counted in pixels: the rectangle may lie partly outside, and pixels are whole.
        left = kept.to(shares) * (1 - box_mask(boxes, first).flatten(1).float().mean(dim=1))
        return result, torch.lerp(shares[partner], shares, left[:, None])


def _boxes(kept: Tensor) -> Tensor:
    """Sample rectangles of the mixed share at any position; parts outside of the image are lost, as in the paper."""
    side = (1 - kept).sqrt()[:, None]
    center = torch.rand(len(kept), 2)
    return torch.cat([center - side / 2, center + side / 2], dim=1)


def soft_targets(target: Tensor, num_classes: int) -> Tensor:
    """Convert targets to shares of classes ``(B, K)``, float32 (one-hot for classes ``(B,)``).

    Args:
        target: Shape ``(B,)`` or ``(B, K)``.
        num_classes: K.
    """
    return F.one_hot(target, num_classes).float() if target.ndim == 1 else target.float()
