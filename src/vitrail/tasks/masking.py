"""Hiding squares of an image: which, from whom, and what must be reconstructed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ConfigError

Pair = tuple[int, int]

# Squares along the shorter side that the chosen mask size leaves: the published 32 pixels at 224 are seven.
_LEAST_SQUARES = 6


def choose_mask_size(img_size: Pair, stride: Pair, wanted: int | None = None) -> Pair:
    """Height and width in pixels of the squares that are masked.

    Args:
        img_size: Of the images.
        stride: Pixels per first token of the model.
        wanted: The side, where it is given.

    Returns:
        ``wanted``, or the largest doubling of the stride of which six fit along the image's shorter side (the stride
        itself where none does).

    Raises:
        ConfigError: ``wanted`` is no multiple of the stride.

    Source: 32 pixels at 224 for every architecture: Xie et al. 2022, arXiv:2111.09886, section 4.1.
    """
    if wanted is not None:
        if wanted % stride[0] or wanted % stride[1]:
            raise ConfigError(
                f"task.mask_size must be a multiple of the model's first stride {stride[0]} x {stride[1]}, got {wanted}"
            )
        return wanted, wanted
    size = stride
    while all(side // (2 * s) >= _LEAST_SQUARES for side, s in zip(img_size, size, strict=True)):
        size = (2 * size[0], 2 * size[1])
    return size


def grid_size(img_size: Pair, size: Pair) -> Pair:
    """How many squares of a size cover an image, the last ones beyond its edge where need be."""
    return -(-img_size[0] // size[0]), -(-img_size[1] // size[1])


def random_masks(batch: int, grid: Pair, ratio: float, device: torch.device | str | None = None) -> Tensor:
    """Draw masks of which each hides the same number of squares, from torch's generator on the CPU.

    Args:
        batch: How many.
        grid: Squares, height and width.
        ratio: Share to hide, rounded up to whole squares; 0 hides none and 1 all.
        device: Where they are wanted.

    Returns:
        Shape ``(batch, *grid)``, bool, True where hidden.

    Raises:
        ConfigError: A ratio below 1 that leaves no square visible, or one above 0 without squares.

    Source: He et al. 2022, arXiv:2111.06377, section 3, "Simple implementation".
    """
    count = grid[0] * grid[1]
    hidden = num_masked(count, ratio)
    order = torch.rand(batch, count).argsort(dim=1)
    masks = torch.zeros(batch, count, dtype=torch.bool).scatter_(1, order[:, :hidden], True)
    return masks.view(batch, *grid).to(device)


def num_masked(count: int, ratio: float) -> int:
    """How many of ``count`` squares are hidden.

    Raises:
        ConfigError: A ratio below 1 that leaves none visible.
    """
    # A product such as 0.6 * 5 may lie a hair above the whole number that it stands for.
    hidden = math.ceil(ratio * count - 1e-9)
    if ratio < 1 and hidden == count:
        raise ConfigError(
            f"task.mask_ratio {ratio} of {count} squares leaves none visible; give a lower ratio, smaller squares "
            "(task.mask_size) or larger images (data.img_size)"
        )
    return hidden


def upsample_mask(mask: Tensor, factor: Pair, size: Pair) -> Tensor:
    """Bring a mask from squares to what they consist of.

    Args:
        mask: Shape ``(B, h, w)``.
        factor: Rows and columns of a square.
        size: Height and width wanted; what lies beyond is cut off.

    Returns:
        Shape ``(B, *size)``.
    """
    whole = mask.repeat_interleave(factor[0], dim=1).repeat_interleave(factor[1], dim=2)
    return whole[:, : size[0], : size[1]]


def mask_pixels(x: Tensor, mask: Tensor, size: Pair) -> Tensor:
    """Replace what is masked by zeros, the mean of a normalised image.

    What comes out does not depend on the masked pixels at all, be they infinite or no number.

    Args:
        x: Normalised images, shape ``(B, C, H, W)``.
        mask: Shape ``(B, h, w)``, True where hidden.
        size: Height and width of a square in pixels.
    """
    pixels = upsample_mask(mask, size, (x.shape[2], x.shape[3]))
    return torch.where(pixels[:, None], 0.0, x)


def insert_mask_tokens(tokens: Tensor, mask: Tensor, size: Pair, stride: Pair, mask_token: Tensor) -> Tensor:
    """Put the mask token where squares are hidden.

    Args:
        tokens: A model's first tokens, shape ``(B, H, W, C)``.
        mask: Shape ``(B, h, w)``, True where hidden.
        size: Height and width of a square in pixels, multiples of the stride.
        stride: Pixels per token.
        mask_token: Shape ``(C,)``.
    """
    factor = (size[0] // stride[0], size[1] // stride[1])
    hidden = upsample_mask(mask, factor, (tokens.shape[1], tokens.shape[2]))
    return torch.where(hidden[..., None], mask_token.to(tokens.dtype), tokens)


def patchify(x: Tensor, size: Pair) -> Tensor:
    """Cut images into squares, with zeros beyond the edge where the size does not divide them.

    Args:
        x: Shape ``(B, C, H, W)``.
        size: Height and width of a square.

    Returns:
        Shape ``(B, h, w, C * sh * sw)``, bands first.
    """
    B, C, H, W = x.shape
    h, w = grid_size((H, W), size)
    x = F.pad(x, (0, w * size[1] - W, 0, h * size[0] - H))
    squares = x.view(B, C, h, size[0], w, size[1]).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(B, h, w, C * size[0] * size[1])


def unpatchify(squares: Tensor, size: Pair, img_size: Pair) -> Tensor:
    """What :func:`patchify` cut, put together: ``(B, h, w, C * sh * sw)`` to ``(B, C, *img_size)``."""
    B, h, w, values = squares.shape
    C = values // (size[0] * size[1])
    x = squares.view(B, h, w, C, *size).permute(0, 3, 1, 4, 2, 5).reshape(B, C, h * size[0], w * size[1])
    return x[:, :, : img_size[0], : img_size[1]]


def normalize_patches(x: Tensor, size: Pair) -> Tensor:
    """Bring each square of each image to mean 0 and deviation 1 over its pixels and bands.

    Args:
        x: Shape ``(B, C, H, W)``; pixels beyond the edge do not count.
        size: Height and width of a square.

    Source: He et al. 2022, arXiv:2111.06377, section 3, "Reconstruction target"; the unbiased variance and the 1e-6
    are the authors' code's.
    """
    img_size = (x.shape[2], x.shape[3])
    inside = patchify(torch.ones_like(x), size)
    squares = patchify(x, size)
    number = inside.sum(-1, keepdim=True)
    mean = squares.sum(-1, keepdim=True) / number
    offset = (squares - mean) * inside
    variance = offset.square().sum(-1, keepdim=True) / (number - 1).clamp_min(1)
    return unpatchify(offset / (variance + 1e-6).sqrt(), size, img_size)


def masked_mean(errors: Tensor, pixels: Tensor | None) -> Tensor:
    """Mean error of the masked pixels.

    Args:
        errors: Of each band of each pixel, shape ``(B, C, H, W)``.
        pixels: Shape ``(B, H, W)``, True where they count; all of them when None.
    """
    if pixels is None:
        return errors.mean()
    weight = pixels[:, None].expand_as(errors)
    # Not a product: what is not counted may be infinite.
    return torch.where(weight, errors, 0.0).sum() / weight.sum().clamp_min(1)
