"""Blur, warp and noise with sub-pixel amounts, the building blocks of corruptions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.bootstrap import Doubles


def disc_kernel(radius: float) -> Tensor:
    """Build a uniform disc kernel ``(1, k, k)`` with sum 1.

    Args:
        radius: Radius in pixels, above 0.
    """
    step = np.arange(-31.5, 32) / 32
    y, x = np.meshgrid(step, step, indexing="ij")
    inside = y**2 + x**2 <= 1
    return torch.from_numpy(_spread(radius * y[inside], radius * x[inside], np.ones(inside.sum()), radius))[None]


def streak_kernel(length: float, sigma: float, angle: float) -> Tensor:
    """Build the kernel ``(1, k, k)`` of a fading line that begins at the centre, with sum 1.

    Args:
        length: Length in pixels.
        sigma: Standard deviation of the Gaussian fade in pixels.
        angle: Angle in degrees.
    """
    t = np.linspace(0, length, max(2, math.ceil(4 * length) + 1))
    weights = np.exp(-(t**2) / (2 * sigma**2))
    direction = math.radians(angle)
    return torch.from_numpy(_spread(t * math.sin(direction), t * math.cos(direction), weights, length))[None]


def _spread(y: Doubles, x: Doubles, weights: Doubles, reach: float) -> npt.NDArray[np.float32]:
    """Splat points bilinearly onto the pixels of a kernel."""
    half = math.ceil(reach) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    for dy in (0, 1):
        for dx in (0, 1):
            share = (1 - np.abs(y - top - dy)) * (1 - np.abs(x - left - dx))
            np.add.at(kernel, (top + dy + half, left + dx + half), weights * share)
    even: npt.NDArray[np.float32] = (kernel / kernel.sum()).astype(np.float32)
    return even


def convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve all bands of each image with its kernel, with replicate padding.

    Args:
        images: Shape ``(B, C, H, W)``.
        kernels: Shape ``(B, k, k)``, or ``(1, k, k)`` for all images; k odd.
    """
    height, width = images.shape[2:]
    half = kernels.shape[1] // 2
    padded = F.pad(images, (half, half, half, half), mode="replicate")
    size = (height + 2 * half, width + 2 * half)
    product = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels.to(images), s=size)[:, None]
    # Circular convolution; the crop removes the wrapped rows and columns.
    result: Tensor = torch.fft.irfft2(product, s=size)[:, :, 2 * half :, 2 * half :]
    return result


def gaussian(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian, with replicate padding.

    Args:
        images: Shape ``(B, C, H, W)``.
        sigma: Standard deviation in pixels.
    """
    half = max(1, math.ceil(4 * sigma))
    t = torch.arange(-half, half + 1, dtype=torch.float32)
    line = torch.exp(-(t**2) / (2 * sigma**2))
    kernel = torch.outer(line, line)
    return convolve(images, (kernel / kernel.sum())[None])


def move(images: Tensor, dy: Tensor, dx: Tensor, border: str = "border") -> Tensor:
    """Warp images: sample each pixel bilinearly at an offset.

    Args:
        images: Shape ``(B, C, H, W)``.
        dy: Vertical offset in pixels, downwards, broadcastable to ``(B, H, W)``.
        dx: Horizontal offset in pixels, rightwards, broadcastable to ``(B, H, W)``.
        border: Padding mode of :func:`torch.nn.functional.grid_sample`: "border" or "reflection".
    """
    b, _, height, width = images.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = [(2 * (p + d + 0.5) / n - 1).expand(b, height, width) for p, d, n in ((x, dx, width), (y, dy, height))]
    grid = torch.stack(positions, dim=3).to(images)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=border, align_corners=False)


def enlarge(images: Tensor, factor: float) -> Tensor:
    """Zoom into the centre; the size stays."""
    height, width = images.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pull = 1 / factor - 1
    return move(images, pull * (y - (height - 1) / 2), pull * (x - (width - 1) / 2))


def cloud(rng: np.random.Generator, size: tuple[int, int], decay: float) -> Tensor:
    """Sample fractal noise in 0..1, shape ``(H, W)``; each octave is ``decay`` times weaker.

    Source: fractal sums as in Fournier et al. 1982, Commun. ACM 25, 371-384.
    """
    total = torch.zeros(size)
    for octave in range(math.ceil(math.log2(max(size))) + 1):
        cells = 2**octave + 1
        noise = torch.from_numpy(rng.uniform(-1, 1, (1, 1, cells, cells)).astype(np.float32))
        total += decay**-octave * F.interpolate(noise, size, mode="bilinear", align_corners=True)[0, 0]
    low, high = total.min(), total.max()
    return (total - low) / (high - low).clamp_min(1e-6)
