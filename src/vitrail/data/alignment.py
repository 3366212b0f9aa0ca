"""Align pairs of small images that may be crops of one another, and measure how well they then agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

# Limits of the search: a side may shrink or grow by 18 %, and the centre may move by 9 % of a side.
_MAX_SCALE, _MAX_SHIFT = 1.18, 0.18
# Share of the pixels that must overlap.
_MIN_OVERLAP = 0.6
# Blocks a side that are compared one by one, and the mean square of differences from which a block has contrast.
_BLOCKS = 4
_BLOCK_ENERGY = (2 / 255) ** 2
# Detail: waves a side that are compared, and the exponent by which each frequency's amplitude is divided. At 1 all
# frequencies count alike, and interpolation decides; at 0 the rows of a field decide.
_DETAIL_WAVES, _WHITENING = 11, 0.75
# Pixels, of 32 a side, by which an image is moved against itself.
_NEAR, _FAR = 4, 12


@dataclass(frozen=True)
class Alignment:
    """Alignment and agreement of pairs of images.

    Attributes:
        pixels: Correlation of the overlapping pixels, shape ``(P,)``.
        gradients: Correlation of their horizontal and vertical differences, shape ``(P,)``.
        blocks: The lower quartile of that correlation over 4 x 4 blocks with contrast, shape ``(P,)``: a frame or an
            outline alone makes the whole agree, not the blocks.
        scale: Height and width of the second image's field of view, in those of the first, shape ``(P, 2)``.
        shift: Offset of its centre, in half sides of the first, shape ``(P, 2)``.
        gain: Factor of contrast from the first image to the second, shape ``(P,)``.
        offset: Brightness added after the gain, shape ``(P,)``.
        detail: Correlation after strong frequencies are attenuated (whitened), shape ``(P,)``: two pictures of one
            regular pattern agree in the pattern, not in what lies between.
    """

    pixels: Tensor
    gradients: Tensor
    blocks: Tensor
    scale: Tensor
    shift: Tensor
    gain: Tensor
    offset: Tensor
    detail: Tensor


def align(first: Tensor, second: Tensor, zoom: Tensor) -> Alignment:
    """Estimate crop, contrast and brightness between the images of each pair.

    The second image is modelled as ``gain * first(scale * u + shift) + offset``, with a scale and a shift for each
    axis. Each Gauss-Newton step is one linear least-squares problem of six unknowns over the overlapping pixels; steps
    run from coarse to fine.

    Args:
        first: Gray images, shape ``(P, N, N)``, 0..1, N even.
        second: The same.
        zoom: Scale to start from, shape ``(P,)``; 1 for the same field of view.

    Source: Lucas & Kanade 1981; the photometric part as in Evangelidis & Psarakis 2008 (ECC), IEEE TPAMI 30(10).
    """
    scale, shift = zoom[:, None].expand(-1, 2), first.new_zeros(len(first), 2)
    halves = _halve(first), _halve(second)
    coarse = _blur(halves[0]), _blur(halves[1])
    for images, steps in ((coarse, 4), (halves, 3), ((first, second), 3)):
        for _ in range(steps):
            scale, shift = _step(*images, scale, shift)
    return _measure(first, second, scale, shift)


def _measure(first: Tensor, second: Tensor, scale: Tensor, shift: Tensor) -> Alignment:
    rows, _, row_mask = _sampling(first.shape[1], scale[:, 0], shift[:, 0])
    columns, _, column_mask = _sampling(first.shape[1], scale[:, 1], shift[:, 1])
    mask = row_mask[:, :, None] * column_mask[:, None, :]
    warped = rows @ first @ columns.mT
    pixels, gain, offset = _correlation(warped, second, mask)
    # Interpolation blurs the first image; a blur of both makes their differences comparable.
    gradients, blocks = _compare_gradients(_blur(warped), _blur(second), mask)
    enough = mask.mean((1, 2)) >= _MIN_OVERLAP
    detail = _compare_detail(_blur(warped), _blur(second), mask)
    return Alignment(pixels * enough, gradients * enough, blocks * enough, scale, shift, gain, offset, detail * enough)


def _compare_detail(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Compute the correlation of the whitened spectra, shape ``(P,)``."""
    side = x.shape[1]
    window = torch.hann_window(side, periodic=False).sqrt()
    weight = window[:, None] * window[None] * mask
    frequency = np.fft.fftfreq(side, 1 / side)
    radius = np.hypot(frequency[:, None], frequency[None])
    kept = (radius > 0) & (radius <= _DETAIL_WAVES)

    def spectrum(image: Tensor) -> npt.NDArray[np.complex128]:
        mean = (image * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-9)
        waves: npt.NDArray[np.complex128] = np.fft.fft2(((image - mean[:, None, None]) * weight).numpy())[:, kept]
        return waves

    p, q = spectrum(x), spectrum(y)
    whitening = np.maximum(np.abs(p) * np.abs(q), 1e-12) ** -_WHITENING
    product = ((p * q.conj()).real * whitening).sum(1)
    own, other = ((np.abs(z) ** 2 * whitening).sum(1) for z in (p, q))
    return torch.from_numpy(product / np.maximum(np.sqrt(own * other), 1e-9)).float()


def self_similarity(images: Tensor) -> Tensor:
    """Compute the largest gradient correlation of an image with itself, shifted by 1/8 to 3/8 of a side.

    Rows, weaves and gratings come near 1: two pictures of them agree wherever they were taken.

    Args:
        images: Gray, shape ``(P, N, N)``.

    Returns:
        Shape ``(P,)``.
    """
    side = images.shape[1]
    smooth = _blur(images)
    down = F.pad(smooth.diff(dim=1), (0, 0, 0, 1)).numpy()
    across = F.pad(smooth.diff(dim=2), (0, 1)).numpy()
    # NumPy's transform: MKL's, which torch calls, changes the last bits of what the process computes afterwards.
    size = (2 * side, 2 * side)
    product = np.fft.irfft2(np.abs(np.fft.rfft2(down, size)) ** 2 + np.abs(np.fft.rfft2(across, size)) ** 2, size)
    # Energy of the part that overlaps, for the image and for the image moved.
    energy = np.fft.rfft2(down**2 + across**2, size)
    inside = np.fft.rfft2(np.ones((side, side)), size)
    own, other = (np.fft.irfft2(z, size).clip(min=0) for z in (energy * inside.conj(), energy.conj() * inside))
    offset = np.abs(np.fft.fftfreq(2 * side, 1 / (2 * side)))
    reach = np.maximum(offset[:, None], offset[None]) * 32 / side
    chosen = (reach >= _NEAR) & (reach <= _FAR)
    correlation = (product / np.maximum(np.sqrt(own * other), 1e-9))[:, chosen]
    return torch.from_numpy(correlation.max(1, initial=-1.0)).float()


def _compare_gradients(x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Correlate the differences of neighbouring pixels; also return the lower quartile over blocks."""
    inside = F.pad(mask[:, 1:, 1:] * mask[:, :-1, :-1], (0, 1, 0, 1))
    products = []
    for p, q in ((x, y), (x, x), (y, y)):
        down = F.pad((p.diff(dim=1) * q.diff(dim=1))[:, :, 1:], (0, 1, 0, 1))
        across = F.pad((p.diff(dim=2) * q.diff(dim=2))[:, 1:, :], (0, 1, 0, 1))
        products.append(F.avg_pool2d(((down + across) * inside)[:, None], x.shape[1] // _BLOCKS).flatten(1))
    product, own, other = products
    whole = product.sum(1) / (own.sum(1) * other.sum(1)).sqrt().clamp(min=1e-9)
    local = product / (own * other).sqrt().clamp(min=1e-9)
    # Blocks without contrast in both images hold noise alone.
    local = torch.where(torch.maximum(own, other) > _BLOCK_ENERGY, local, torch.nan)
    quartile = torch.nanquantile(local, 0.25, dim=1)
    return whole, quartile.nan_to_num(0.0)


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x[:, None], 2)[:, 0]


def _blur(x: Tensor) -> Tensor:
    kernel = x.new_tensor([1.0, 2.0, 1.0]) / 4
    padded = F.pad(x[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, (kernel[:, None] * kernel[None])[None, None])[:, 0]


def _sampling(side: int, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Build matrices of linear interpolation along one axis, their derivative by position, and the mask.

    Returns:
        Shapes ``(P, side, side)``, ``(P, side, side)`` and ``(P, side)``; the mask is 0 outside of the image.
    """
    u = _grid(side, scale)
    position = ((scale[:, None] * u + shift[:, None]) + 1) * side / 2 - 0.5
    mask = ((position > -0.5) & (position < side - 0.5)).to(scale.dtype)
    position = position.clamp(0, side - 1)
    low = position.floor().clamp(max=side - 2)
    part = position - low
    index = low.long()[..., None]
    matrix = scale.new_zeros(len(scale), side, side)
    matrix.scatter_(2, index, (1 - part)[..., None]).scatter_(2, index + 1, part[..., None])
    slope = scale.new_zeros(len(scale), side, side)
    slope.scatter_(2, index, -1.0).scatter_(2, index + 1, 1.0)
    return matrix, slope, mask


def _grid(side: int, like: Tensor) -> Tensor:
    """Return the centres of pixels, from -1 to 1."""
    return (torch.arange(side, dtype=like.dtype) + 0.5) * 2 / side - 1


def _step(first: Tensor, second: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    side = first.shape[1]
    rows, row_slope, row_mask = _sampling(side, scale[:, 0], shift[:, 0])
    columns, column_slope, column_mask = _sampling(side, scale[:, 1], shift[:, 1])
    mask = row_mask[:, :, None] * column_mask[:, None, :]
    half = rows @ first
    warped = half @ columns.mT
    down = (row_slope @ first) @ columns.mT * (side / 2)
    across = half @ column_slope.mT * (side / 2)
    u = _grid(side, scale)
    terms = [down * u[:, None], across * u, down, across, warped, torch.ones_like(warped)]
    design = torch.stack([(term * mask).flatten(1) for term in terms], 1)
    normal = design @ design.mT
    right = (design @ (second * mask).flatten(1)[..., None])[..., 0]
    # A ridge keeps directions in which an image has no gradient (stripes, flat images) where they are.
    weight = normal.diagonal(dim1=1, dim2=2)
    ridge = torch.cat([weight[:, :4] * 1e-3 + 0.05, weight[:, 4:] * 1e-6 + 1e-6], 1)
    solution = torch.linalg.solve(normal + torch.diag_embed(ridge), right)
    gain = solution[:, 4:5]
    delta = (solution[:, :4] / torch.where(gain.abs() > 0.1, gain, torch.full_like(gain, torch.inf))).clamp(-0.1, 0.1)
    scale = (scale + delta[:, :2]).clamp(1 / _MAX_SCALE, _MAX_SCALE)
    shift = (shift + delta[:, 2:]).clamp(-_MAX_SHIFT, _MAX_SHIFT)
    return scale, shift


def _correlation(x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Correlate masked images; also return gain and offset of the regression of the second on the first."""
    number = mask.sum((1, 2)).clamp(min=1)
    mean_x = (x * mask).sum((1, 2)) / number
    mean_y = (y * mask).sum((1, 2)) / number
    x, y = (x - mean_x[:, None, None]) * mask, (y - mean_y[:, None, None]) * mask
    product, own, other = (x * y).sum((1, 2)), x.square().sum((1, 2)), y.square().sum((1, 2))
    gain = product / own.clamp(min=1e-9)
    return product / (own * other).sqrt().clamp(min=1e-9), gain, mean_y - gain * mean_x
