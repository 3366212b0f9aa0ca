"""The fifteen common corruptions at five severities, for any number of bands and any size.

Corruptions and parameters follow Hendrycks & Dietterich 2019, arXiv:1903.12261 (ImageNet-C, 224 x 224 pixels).
Differences:

- Lengths are scaled by the shorter side over 224 and may be fractions of a pixel, so that a severity means the same at
  every size. Relative amounts (zoom, pixelate) and changes of values are unscaled. JPEG blocks are 8 x 8 pixels.
- Operations on colours are generalised to bands: brightness scales all bands by the increase of the largest one (for
  three bands, V of HSV), snow desaturates towards the mean of the bands, weather is equal in all bands. JPEG compresses
  three bands as colours and other numbers of bands one by one.
- Frost is synthetic (ridges of fractal noise) instead of photographs.
- Glass blur displaces each pixel at random, as often as the paper swaps neighbours.
- Elastic: severities 1 and 2 of the paper are large shifts; here all five are local deformations, weaker in the first
  two.

Random numbers depend on the seed, the corruption and the image only, and are equal at all severities.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vitrail.errors import ConfigError, ShapeError, closest
from vitrail.evaluate.warping import cloud, convolve, disc_kernel, enlarge, gaussian, move, streak_kernel

SEVERITIES = (1, 2, 3, 4, 5)
_REFERENCE_SIDE = 224


@dataclass(frozen=True)
class _Generators:
    """One random generator for each image of a batch."""

    generators: list[np.random.Generator]

    def each(self, draw: Callable[[np.random.Generator], npt.NDArray[Any]]) -> Tensor:
        """Stack the samples of ``draw`` for each image, float32."""
        return torch.stack([torch.from_numpy(np.asarray(draw(g), dtype=np.float32)) for g in self.generators])


Corruption = Callable[[Tensor, int, _Generators], Tensor]


def _scale(images: Tensor) -> float:
    return min(images.shape[2:]) / _REFERENCE_SIDE


def _gaussian_noise(x: Tensor, level: int, rng: _Generators) -> Tensor:
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * rng.each(lambda g: g.standard_normal(x.shape[1:], np.float32))


def _shot_noise(x: Tensor, level: int, rng: _Generators) -> Tensor:
    photons = (60, 25, 12, 5, 3)[level]
    counts = [g.poisson(photons * image.clamp(0, 1).numpy()) for g, image in zip(rng.generators, x, strict=True)]
    return torch.from_numpy(np.stack(counts).astype(np.float32)) / photons


def _impulse_noise(x: Tensor, level: int, rng: _Generators) -> Tensor:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    u = rng.each(lambda g: g.random(x.shape[1:], np.float32))
    return torch.where(u < share / 2, 0.0, torch.where(u > 1 - share / 2, 1.0, x))


def _defocus_blur(x: Tensor, level: int, rng: _Generators) -> Tensor:
    return convolve(x, disc_kernel((3, 4, 6, 8, 10)[level] * _scale(x)))


def _glass_blur(x: Tensor, level: int, rng: _Generators) -> Tensor:
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    x = gaussian(x, sigma * _scale(x))
    steps = rng.each(lambda g: g.uniform(-1, 1, (3, 2, *x.shape[2:])))[:, :times] * reach * _scale(x)
    for i in range(times):
        x = move(x, steps[:, i, 0], steps[:, i, 1])
    return gaussian(x, sigma * _scale(x))


def _motion_blur(x: Tensor, level: int, rng: _Generators) -> Tensor:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    angles = rng.each(lambda g: g.uniform(-45, 45, 1))
    return _streaks(x, radius, sigma, angles)


def _streaks(x: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    s = _scale(x)
    return convolve(x, torch.cat([streak_kernel(2 * radius * s, sigma * s, float(angle)) for angle in angles]))


def _zoom_blur(x: Tensor, level: int, rng: _Generators) -> Tensor:
    most, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    factors = np.arange(1, most, step)
    total = x.clone()
    for factor in factors:
        total += enlarge(x, float(factor))
    return total / (len(factors) + 1)


def _snow(x: Tensor, level: int, rng: _Generators) -> Tensor:
    mean, spread, flake, least, radius, sigma, kept = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    # Flakes below two pixels are drawn at higher resolution; otherwise they would be noise.
    finer = max(1, math.ceil(2 / (flake * _scale(x))))
    canvas = (x.shape[2] * finer, x.shape[3] * finer)
    size = flake * _scale(x) * finer
    grid = [max(1, round(n / size)) for n in canvas]
    noise = mean + spread * rng.each(lambda g: g.standard_normal((1, *grid), np.float32))
    angles = rng.each(lambda g: g.uniform(-135, -45, 1))
    layer = F.interpolate(noise, canvas, mode="bilinear", align_corners=False)
    layer = torch.where(layer < least, 0.0, layer).clamp(0, 1)
    layer = F.avg_pool2d(_streaks(layer, radius, sigma, angles), finer)
    pale = torch.maximum(x, x.mean(dim=1, keepdim=True) * 1.5 + 0.5)
    return kept * x + (1 - kept) * pale + layer + layer.flip(2, 3)


def _frost(x: Tensor, level: int, rng: _Generators) -> Tensor:
    kept, added = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    size = (x.shape[2], x.shape[3])
    covers = torch.stack([cloud(g, size, 2.0) for g in rng.generators])
    ridges = torch.stack([1 - (2 * cloud(g, size, 1.3) - 1).abs() for g in rng.generators])
    return kept * x + added * (0.3 * covers + 0.7 * covers * ridges**2)[:, None]


def _fog(x: Tensor, level: int, rng: _Generators) -> Tensor:
    amount, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    most = x.amax(dim=(1, 2, 3), keepdim=True)
    clouds = torch.stack([cloud(g, (x.shape[2], x.shape[3]), decay) for g in rng.generators])
    return (x + amount * clouds[:, None]) * most / (most + amount)


def _brightness(x: Tensor, level: int, rng: _Generators) -> Tensor:
    most = x.amax(dim=1, keepdim=True)
    raised = (most + (0.1, 0.2, 0.3, 0.4, 0.5)[level]).clamp_max(1)
    return torch.where(most > 0, x * raised / most.clamp_min(1e-6), raised)


def _contrast(x: Tensor, level: int, rng: _Generators) -> Tensor:
    mean = x.mean(dim=(2, 3), keepdim=True)
    return mean + (0.4, 0.3, 0.2, 0.1, 0.05)[level] * (x - mean)


def _elastic_transform(x: Tensor, level: int, rng: _Generators) -> Tensor:
    # Standard deviations of the paper's displacements, 0.05, 0.07, 0.12 times 244 after a Gaussian blur of 2.44.
    pixels = (0.3, 0.55, 0.81, 1.14, 1.95)[level] * _scale(x)
    shift = (0.008, 0.014, 0.02, 0.02, 0.02)[level] * min(x.shape[2:])
    noise = gaussian(rng.each(lambda g: g.uniform(-1, 1, (2, *x.shape[2:]))), max(2.44 * _scale(x), 0.3))
    noise = noise / noise.std(dim=(2, 3), keepdim=True).clamp_min(1e-6) * pixels
    corners = rng.each(lambda g: g.uniform(-1, 1, (3, 2))) * shift
    height, width = x.shape[2:]
    y, z = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    third = min(height, width) / 3
    # Affine map defined by displacements of three points around the centre.
    u, v = (y - (height - 1) / 2) / third, (z - (width - 1) / 2) / third
    # Barycentric weights of the points (1, 1), (1, -1) and (-1, -1), in thirds of the side.
    weights = torch.stack([(1 + v) / 2, (u - v) / 2, (1 - u) / 2])
    affine = torch.einsum("bpd,phw->bdhw", corners, weights)
    return move(x, noise[:, 0] + affine[:, 0], noise[:, 1] + affine[:, 1], "reflection")


def _pixelate(x: Tensor, level: int, rng: _Generators) -> Tensor:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    rows, columns = (_overlap(n, max(1, int(n * share))).to(x) for n in x.shape[2:])
    small = rows / rows.sum(1, keepdim=True) @ x @ (columns / columns.sum(1, keepdim=True)).T
    return (rows / rows.sum(0)).T @ small @ (columns / columns.sum(0))


def _overlap(pixels: int, cells: int) -> Tensor:
    """Compute the overlap of pixels with equal cells, shape ``(cells, pixels)``."""
    ends = torch.linspace(0, pixels, cells + 1, dtype=torch.float64)
    j = torch.arange(pixels)
    return (torch.minimum(ends[1:, None], j + 1) - torch.maximum(ends[:-1, None], j)).clamp_min(0)


def _jpeg_compression(x: Tensor, level: int, rng: _Generators) -> Tensor:
    quality = (25, 18, 15, 10, 7)[level]
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8)
    planes = pixels.permute(0, 2, 3, 1) if x.shape[1] == 3 else pixels.flatten(0, 1)
    read = np.stack([_through_jpeg(plane, quality) for plane in planes.numpy()])
    back = torch.from_numpy(read).float() / 255
    return back.permute(0, 3, 1, 2) if x.shape[1] == 3 else back.view(x.shape)


def _through_jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        return np.asarray(image)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
# Sensor noise is independent for each stream; all other corruptions are equal in both streams.
_SENSOR_NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")


def check_corruptions(names: Sequence[str]) -> tuple[str, ...]:
    """Validate names of corruptions; by default all.

    Raises:
        ConfigError: Unknown or repeated name.
    """
    for name in names:
        if name not in CORRUPTIONS:
            raise ConfigError(f"unknown corruption {name!r}{closest(name, CORRUPTIONS)}")
        if list(names).count(name) > 1:
            raise ConfigError(f"the corruption {name!r} is given twice; remove one")
    return tuple(names) or tuple(CORRUPTIONS)


def corrupt(
    images: Tensor, name: str, severity: int, indices: Sequence[int], seed: int = 0, stream: str = "image"
) -> Tensor:
    """Corrupt a batch.

    Args:
        images: Images in 0..1, on the CPU, shape ``(B, C, H, W)``.
        name: Name in :data:`CORRUPTIONS`.
        severity: 1 to 5.
        indices: Index of each image, which seeds its random numbers.
        seed: Seed of all images.
        stream: Name of the stream.

    Returns:
        Corrupted images in 0..1, same shape.

    Raises:
        ConfigError: Unknown name, or severity out of range.
        ShapeError: ``images`` is not ``(B, C, H, W)``, or ``indices`` has another length.
    """
    check_corruptions([name])
    if severity not in SEVERITIES:
        raise ConfigError(f"severity must be 1 to 5, got {severity!r}")
    if images.ndim != 4 or len(indices) != len(images):
        raise ShapeError(f"expected images (B, C, H, W) and B indices, got {tuple(images.shape)} and {len(indices)}")
    code = zlib.crc32(f"{name} {stream if name in _SENSOR_NOISE else ''}".encode())
    rng = _Generators([np.random.default_rng((seed, code, int(i))) for i in indices])
    return CORRUPTIONS[name](images.float(), severity - 1, rng).clamp(0, 1)
