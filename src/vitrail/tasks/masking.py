"""Random masks for masked image modelling, and the reconstruction target."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.layers.shapes import grid_size

Pair = tuple[int, int]

# Masked patches along the shorter side, at least; the published 32 pixels at 224 give seven.
_MIN_PATCHES = 6


def choose_mask_size(img_size: Pair, stride: Pair, wanted: int | None = None) -> Pair:
    """Choose the size of masked patches.

    Args:
        img_size: Height and width of the images in pixels.
        stride: Pixels per token after the patch embedding.
        wanted: Side of a masked patch in pixels, if it is set.

    Returns:
        Height and width in pixels: ``wanted``, or the largest ``stride * 2 ** n`` that fits six times along each side
        (at least the stride).

    Raises:
        ConfigError: ``wanted`` is not a multiple of the stride.

    Source: 32 pixels at 224 for every architecture: Xie et al. 2022, arXiv:2111.09886, section 4.1.
    """
    if wanted is not None:
        if wanted % stride[0] or wanted % stride[1]:
            raise ConfigError(
                f"task.mask_size must be a multiple of the model's first stride {stride[0]} x {stride[1]}, got {wanted}"
            )
        return wanted, wanted
    size = stride
    while all(side // (2 * s) >= _MIN_PATCHES for side, s in zip(img_size, size, strict=True)):
        size = (2 * size[0], 2 * size[1])
    return size


def random_masks(batch: int, grid: Pair, ratio: float, device: torch.device | str | None = None) -> Tensor:
    """Sample random masks with the same number of masked patches each, from torch's CPU generator.

    Args:
        batch: Number of masks.
        grid: Rows and columns of patches.
        ratio: Share of masked patches, rounded up.
        device: Device of the result.

    Returns:
        Shape ``(batch, *grid)``, bool, True where masked.

    Raises:
        ConfigError: A ratio below 1 leaves no patch visible.

    Source: He et al. 2022, arXiv:2111.06377, section 3, "Simple implementation".
    """
    count = grid[0] * grid[1]
    order = torch.rand(batch, count).argsort(dim=1)
    masks = torch.zeros(batch, count, dtype=torch.bool).scatter_(1, order[:, : num_masked(count, ratio)], True)
    return masks.view(batch, *grid).to(device)


def num_masked(count: int, ratio: float) -> int:
    """Compute the number of masked patches among ``count``.

    Raises:
        ConfigError: A ratio below 1 leaves no patch visible.
    """
    # Floating point: 0.6 * 5 may exceed 3.
    masked = math.ceil(ratio * count - 1e-9)
    if ratio < 1 and masked == count:
        raise ConfigError(
            f"task.mask_ratio {ratio} of {count} patches leaves none visible; use a lower ratio, a smaller "
            "task.mask_size or a larger data.img_size"
        )
    return masked


def upsample_mask(mask: Tensor, factor: Pair, size: Pair) -> Tensor:
    """Upsample a mask by nearest neighbours.

    Args:
        mask: Shape ``(B, h, w)``.
        factor: Vertical and horizontal factor.
        size: Height and width of the result; the rest is cropped.

    Returns:
        Shape ``(B, *size)``.
    """
    whole = mask.repeat_interleave(factor[0], dim=1).repeat_interleave(factor[1], dim=2)
    return whole[:, : size[0], : size[1]]


def mask_pixels(x: Tensor, mask: Tensor, size: Pair) -> Tensor:
    """Replace masked pixels by 0, the mean of normalised images.

    The result does not depend on the masked pixels, not even where they are infinite or NaN.

    Args:
        x: Normalised images, shape ``(B, C, H, W)``.
        mask: Shape ``(B, h, w)``, True where masked.
        size: Height and width of a masked patch in pixels.
    """
    pixels = upsample_mask(mask, size, (x.shape[2], x.shape[3]))
    return torch.where(pixels[:, None], 0.0, x)


def insert_mask_tokens(tokens: Tensor, mask: Tensor, size: Pair, stride: Pair, mask_token: Tensor) -> Tensor:
    """Replace the tokens of masked patches by the mask token.

    Args:
        tokens: Tokens after the patch embedding, shape ``(B, H, W, C)``.
        mask: Shape ``(B, h, w)``, True where masked.
        size: Height and width of a masked patch in pixels, multiples of the stride.
        stride: Pixels per token.
        mask_token: Shape ``(C,)``.
    """
    factor = (size[0] // stride[0], size[1] // stride[1])
    masked = upsample_mask(mask, factor, (tokens.shape[1], tokens.shape[2]))
    return torch.where(masked[..., None], mask_token.to(tokens.dtype), tokens)


def patchify(x: Tensor, size: Pair) -> Tensor:
    """Split images into patches; the last row and column are padded with zeros.

    Args:
        x: Shape ``(B, C, H, W)``.
        size: Height and width of a patch in pixels.

    Returns:
        Shape ``(B, h, w, C * ph * pw)``, bands first.
    """
    B, C, H, W = x.shape
    h, w = grid_size((H, W), size)
    x = F.pad(x, (0, w * size[1] - W, 0, h * size[0] - H))
    patches = x.view(B, C, h, size[0], w, size[1]).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(B, h, w, C * size[0] * size[1])


def unpatchify(patches: Tensor, size: Pair, img_size: Pair) -> Tensor:
    """Invert :func:`patchify`: ``(B, h, w, C * ph * pw)`` to ``(B, C, *img_size)``."""
    B, h, w, values = patches.shape
    C = values // (size[0] * size[1])
    x = patches.view(B, h, w, C, *size).permute(0, 3, 1, 4, 2, 5).reshape(B, C, h * size[0], w * size[1])
    return x[:, :, : img_size[0], : img_size[1]]


def normalize_patches(x: Tensor, size: Pair) -> Tensor:
    """Normalise each patch to mean 0 and standard deviation 1 over its pixels and bands.

    Args:
        x: Shape ``(B, C, H, W)``; padding of the last patches does not count.
        size: Height and width of a patch in pixels.

    Source: He et al. 2022, arXiv:2111.06377, section 3, "Reconstruction target"; unbiased variance and 1e-6 as in
    the authors' code.
    """
    img_size = (x.shape[2], x.shape[3])
    inside = patchify(torch.ones_like(x), size)
    patches = patchify(x, size)
    count = inside.sum(-1, keepdim=True)
    mean = patches.sum(-1, keepdim=True) / count
    offset = (patches - mean) * inside
    variance = offset.square().sum(-1, keepdim=True) / (count - 1).clamp_min(1)
    return unpatchify(offset / (variance + 1e-6).sqrt(), size, img_size)


def masked_mean(errors: Tensor, pixels: Tensor | None) -> Tensor:
    """Average errors over the masked pixels.

    Args:
        errors: Shape ``(B, C, H, W)``.
        pixels: Mask, shape ``(B, H, W)``; None averages over all pixels.
    """
    if pixels is None:
        return errors.mean()
    weight = pixels[:, None].expand_as(errors)
    # torch.where instead of a product: errors outside of the mask may be infinite.
    return torch.where(weight, errors, 0.0).sum() / weight.sum().clamp_min(1)
