"""Random masks for masked image modelling, and the reconstruction target."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ConfigError, plural
from vitrail.layers.shapes import divide_up, product

Pair = tuple[int, int]
# Lengths along height and width, of clips along time before them.
Grid = tuple[int, ...]

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


def grid_of(size: Grid, unit: Grid) -> Grid:
    """Compute the grid of patches, or tubelets, that cover an input; the last ones may extend beyond it."""
    return tuple(divide_up(length, step) for length, step in zip(size, unit, strict=True))


def random_masks(batch: int, grid: Grid, ratio: float, device: torch.device | str | None = None) -> Tensor:
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
    count = product(grid)
    order = torch.rand(batch, count).argsort(dim=1)
    masks = torch.zeros(batch, count, dtype=torch.bool).scatter_(1, order[:, : num_masked(count, ratio)], True)
    return masks.view(batch, *grid).to(device)


def tube_masks(batch: int, grid: Grid, ratio: float, device: torch.device | str | None = None) -> Tensor:
    """Sample random masks of clips: the same rows and columns at all times, so that no motion reveals masked pixels.

    Args:
        batch: Number of masks.
        grid: Times, rows and columns of tubelets.
        ratio: Share of masked tubelets, rounded up in each slice of time.
        device: Device of the result.

    Returns:
        Shape ``(batch, *grid)``, bool, True where masked.

    Raises:
        ConfigError: A ratio below 1 leaves no tubelet of a slice visible.

    Source: Tong et al. 2022, arXiv:2203.12602, section 3.3, "Video masked autoencoders with tube masking".
    """
    masks = random_masks(batch, grid[1:], ratio, device)
    return masks[:, None].expand(-1, grid[0], *[-1] * (len(grid) - 1))


def num_masked(count: int, ratio: float) -> int:
    """Compute the number of masked patches among ``count``.

    Raises:
        ConfigError: A ratio below 1 leaves no patch visible.
    """
    # Floating point: 0.6 * 5 may exceed 3.
    masked = math.ceil(ratio * count - 1e-9)
    if ratio < 1 and masked == count:
        raise ConfigError(
            f"task.mask_ratio {ratio} of {plural(count, 'patch')} leaves none visible; use a lower ratio, a smaller "
            "task.mask_size or a larger data.img_size"
        )
    return masked


def upsample_mask(mask: Tensor, factor: Grid, size: Grid) -> Tensor:
    """Upsample a mask by nearest neighbours.

    Args:
        mask: Shape ``(B, h, w)``, of clips ``(B, t, h, w)``.
        factor: Factor along each axis.
        size: Lengths of the result; the rest is cropped.

    Returns:
        Shape ``(B, *size)``.
    """
    for axis, (times, length) in enumerate(zip(factor, size, strict=True), 1):
        mask = mask.repeat_interleave(times, dim=axis).narrow(axis, 0, length)
    return mask


def mask_pixels(x: Tensor, mask: Tensor, size: Grid) -> Tensor:
    """Replace masked pixels by 0, the mean of normalised images.

    The result does not depend on the masked pixels, not even where they are infinite or NaN.

    Args:
        x: Normalised images or clips, shape ``(B, C, H, W)`` or ``(B, C, T, H, W)``.
        mask: Shape ``(B, h, w)`` or ``(B, t, h, w)``, True where masked.
        size: Height and width of a masked patch in pixels, the frames of a tubelet before them.
    """
    pixels = upsample_mask(mask, size, tuple(x.shape[2:]))
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


def patchify(x: Tensor, size: Grid) -> Tensor:
    """Split images into patches, or clips into tubelets; the last ones of each axis are padded with zeros.

    Args:
        x: Shape ``(B, C, H, W)`` or ``(B, C, T, H, W)``.
        size: Height and width of a patch in pixels, the frames of a tubelet before them.

    Returns:
        Shape ``(B, h, w, C * ph * pw)`` or ``(B, t, h, w, C * pt * ph * pw)``, bands first.
    """
    B, C, *lengths = x.shape
    grid, axes = grid_of(tuple(lengths), size), len(size)
    missing = [count * step - length for count, step, length in zip(grid, size, lengths, strict=True)]
    x = F.pad(x, [pad for count in reversed(missing) for pad in (0, count)])
    split = [length for pair in zip(grid, size, strict=True) for length in pair]
    order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    return x.view(B, C, *split).permute(order).reshape(B, *grid, C * product(size))


def unpatchify(patches: Tensor, size: Grid, lengths: Grid) -> Tensor:
    """Invert :func:`patchify`: ``(B, h, w, C * ph * pw)`` to ``(B, C, *lengths)``."""
    B, *grid, values = patches.shape
    C, axes = values // product(size), len(size)
    order = [0, 1 + axes, *(axis for i in range(axes) for axis in (1 + i, 2 + axes + i))]
    whole = [count * step for count, step in zip(grid, size, strict=True)]
    x = patches.view(B, *grid, C, *size).permute(order).reshape(B, C, *whole)
    for axis, length in enumerate(lengths, 2):
        x = x.narrow(axis, 0, length)
    return x


def normalize_patches(x: Tensor, size: Grid) -> Tensor:
    """Normalise each patch to mean 0 and standard deviation 1 over its pixels and bands.

    Args:
        x: Shape ``(B, C, H, W)``; padding of the last patches does not count.
        size: Height and width of a patch in pixels.

    Source: He et al. 2022, arXiv:2111.06377, section 3, "Reconstruction target"; unbiased variance and 1e-6 as in
    the authors' code.
    """
    offset, variance = _centred(x, size, 1)
    return unpatchify((offset / (variance + 1e-6).sqrt()).flatten(-2), size, tuple(x.shape[2:]))


def normalize_tubelets(x: Tensor, size: Grid) -> Tensor:
    """Normalise each band of each tubelet to mean 0 and standard deviation 1.

    Args:
        x: Shape ``(B, C, T, H, W)``; padding of the last tubelets does not count.
        size: Frames, height and width of a tubelet.

    Source: Tong et al. 2022, arXiv:2203.12602, the authors' code: unlike images band by band, 1e-6 beside the standard
    deviation.
    """
    offset, variance = _centred(x, size, x.shape[1])
    return unpatchify((offset / (variance.sqrt() + 1e-6)).flatten(-2), size, tuple(x.shape[2:]))


def _centred(x: Tensor, size: Grid, groups: int) -> tuple[Tensor, Tensor]:
    """Subtract the mean of each group of bands of each patch; also compute the unbiased variance of each.

    Returns:
        Shapes ``(B, *grid, groups, values)`` and ``(B, *grid, groups, 1)``.
    """
    patches, inside = (patchify(part, size) for part in (x, torch.ones_like(x)))
    patches, inside = (part.view(*part.shape[:-1], groups, -1) for part in (patches, inside))
    count = inside.sum(-1, keepdim=True)
    offset = (patches - patches.sum(-1, keepdim=True) / count) * inside
    return offset, offset.square().sum(-1, keepdim=True) / (count - 1).clamp_min(1)


def masked_mean(errors: Tensor, pixels: Tensor | None) -> Tensor:
    """Average errors over the masked pixels.

    Args:
        errors: Shape ``(B, C, H, W)`` or ``(B, C, T, H, W)``.
        pixels: Mask, shape ``(B, H, W)`` or ``(B, T, H, W)``; None averages over all pixels.
    """
    if pixels is None:
        return errors.mean()
    weight = pixels[:, None].expand_as(errors)
    # torch.where instead of a product: errors outside of the mask may be infinite.
    return torch.where(weight, errors, 0.0).sum() / weight.sum().clamp_min(1)
