"""RandAugment and TrivialAugment with separate operations for each image of a batch.

Kornia's classes of these names draw the operations once for a whole batch and know one stream. Here the motions among
an image's operations join the batch's other motions, where all streams go through them, and the rest change the image
stream afterwards, grouped so that each operation runs once on all images that drew it.

Source: Cubuk et al. 2020, arXiv:1909.13719, section 3 and table 6; Müller & Hutter 2021, arXiv:2103.10158, table 1
(the wide space).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.config.augment import AugmentSettings
from vitrail.data.augment.axes import as_rows, expand_like
from vitrail.data.augment.color import GRAY, apply_color_matrices, saturation_matrices
from vitrail.data.augment.geometry import affine_matrices

IDENTITY = "identity"
MOTIONS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
COLORS = ("autocontrast", "equalize", "posterize", "solarize", "color", "contrast", "brightness", "sharpness")
OPERATIONS = (IDENTITY, *MOTIONS, *COLORS)


@dataclass(frozen=True)
class MaxStrength:
    """Effect of the operations at full strength.

    Attributes:
        rotate: Degrees.
        shear: Slope.
        translate: Share of width or height.
        change: Relative change of colour, contrast, brightness and sharpness.
        bits: Bits that posterize removes, of eight.
    """

    rotate: float
    shear: float
    translate: float
    change: float
    bits: int


# The published numbers are for images of 224 (32 pixels) and 331 (150 pixels).
_RANDAUGMENT = MaxStrength(rotate=30.0, shear=0.3, translate=150 / 331, change=0.9, bits=4)
_TRIVIALAUGMENT = MaxStrength(rotate=135.0, shear=0.99, translate=32 / 224, change=0.99, bits=6)


@dataclass(frozen=True)
class SampledOperations:
    """Operations sampled for a batch.

    Attributes:
        operations: Numbers of :data:`OPERATIONS`, shape ``(B, n)``.
        strength: Signed, from -1 to 1, shape ``(B, n)``; operations with one direction use its magnitude.
        strongest: Effect of strength 1.
    """

    operations: Tensor
    strength: Tensor
    strongest: MaxStrength


def sample_operations(settings: AugmentSettings, count: int, colors: bool) -> SampledOperations:
    """Sample the operations of each image.

    Args:
        settings: Kind, number and strength of the operations.
        count: B.
        colors: Whether operations on colours are among them.
    """
    choices = len(OPERATIONS) if colors else 1 + len(MOTIONS)
    trivial = settings.auto == "trivialaugment"
    number = 1 if trivial else settings.auto_operations
    operations = torch.randint(choices, (count, number))
    size = (
        torch.randint(31, (count, number)) / 30
        if trivial
        else torch.full((count, number), settings.auto_magnitude / 30)
    )
    sign = 1.0 - 2.0 * torch.randint(2, (count, number))
    return SampledOperations(operations, size * sign, _TRIVIALAUGMENT if trivial else _RANDAUGMENT)


def operation_matrices(drawn: SampledOperations, size: tuple[int, int]) -> Tensor:
    """Compose the geometric operations of each image, from result to image, shape ``(B, 3, 3)``.

    Args:
        drawn: The operations.
        size: Height and width of the images.
    """
    result = torch.eye(3).repeat(len(drawn.operations), 1, 1)
    for slot in range(drawn.operations.shape[1]):
        amount = {
            name: drawn.strength[:, slot] * (drawn.operations[:, slot] == OPERATIONS.index(name)) for name in MOTIONS
        }
        most = drawn.strongest
        shear = torch.stack([amount["shear_x"], amount["shear_y"]], dim=1) * most.shear
        shift = torch.stack([amount["translate_x"], amount["translate_y"]], dim=1) * most.translate
        step = affine_matrices(
            amount["rotate"] * most.rotate, torch.rad2deg(shear.atan()), shift, torch.ones(len(result)), size
        )
        result = result @ step
    return result


def apply_color_operations(images: Tensor, drawn: SampledOperations) -> Tensor:
    """Apply the colour operations.

    Args:
        images: Images or clips, shape ``(B, 3, H, W)`` or ``(B, 3, T, H, W)``, in 0..1; not changed.
        drawn: The operations.

    Returns:
        The same shape, in 0..1.
    """
    result = images.clone()
    for slot in range(drawn.operations.shape[1]):
        for name in COLORS:
            rows = torch.nonzero(drawn.operations[:, slot] == OPERATIONS.index(name))[:, 0]
            if len(rows):
                there = rows.to(images.device)
                result[there] = _COLOR_OPERATIONS[name](result[there], drawn.strength[rows, slot], drawn.strongest)
    return result


def _autocontrast(x: Tensor, strength: Tensor, most: MaxStrength) -> Tensor:
    axes = tuple(range(2, x.ndim))
    low, high = x.amin(dim=axes, keepdim=True), x.amax(dim=axes, keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(1e-6), x).clamp_(0.0, 1.0)


def _equalize(x: Tensor, strength: Tensor, most: MaxStrength) -> Tensor:
    from kornia.enhance import equalize

    # Kornia counts in whole grays and rounds down; what interpolation left between two grays goes to the nearest.
    equalized: Tensor = equalize((as_rows(x) * 255).round() / 255)
    return equalized.view_as(x)


def _posterize(x: Tensor, strength: Tensor, most: MaxStrength) -> Tensor:
    step = 2.0 ** expand_like((strength.abs() * most.bits).round(), x)
    return ((x * 255).round() / step).floor() * step / 255


def _solarize(x: Tensor, strength: Tensor, most: MaxStrength) -> Tensor:
    return torch.where(x >= 1 - expand_like(strength.abs(), x), 1 - x, x)


def _color(x: Tensor, strength: Tensor, most: MaxStrength) -> Tensor:
    return apply_color_matrices(x, saturation_matrices(1 + strength * most.change), torch.zeros(len(x), 3))


def _contrast(x: Tensor, strength: Tensor, most: MaxStrength) -> Tensor:
    amount = (strength * most.change)[:, None]
    mean = x.flatten(2).mean(dim=2).cpu() @ torch.tensor(GRAY)
    return apply_color_matrices(x, torch.eye(3) * (1 + amount)[:, None], (-amount * mean[:, None]).expand(-1, 3))


def _brightness(x: Tensor, strength: Tensor, most: MaxStrength) -> Tensor:
    return (x * expand_like(1 + strength * most.change, x)).clamp_(0.0, 1.0)


def _sharpness(x: Tensor, strength: Tensor, most: MaxStrength) -> Tensor:
    return sharpen(x, 1 + strength * most.change)


def sharpen(x: Tensor, factor: Tensor) -> Tensor:
    """Interpolate between a smoothed image (0) and the image itself (1); the outermost pixels stay.

    The smoothing is Pillow's: a 3 x 3 kernel of ones with a five in the middle, over thirteen; here as a sum of three
    rows, of three columns of that, and four times the pixel itself.

    Args:
        x: Images or clips, shape ``(B, C, H, W)`` or ``(B, C, T, H, W)``, in 0..1.
        factor: Shape ``(B,)``.
    """
    smooth = x.clone()
    rows = (x[..., :-2, :] + x[..., 1:-1, :]).add_(x[..., 2:, :])
    total = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    smooth[..., 1:-1, 1:-1] = total.add_(x[..., 1:-1, 1:-1], alpha=4).div_(13)
    return torch.lerp(smooth, x, expand_like(factor, x)).clamp_(0.0, 1.0)


_COLOR_OPERATIONS: dict[str, Callable[[Tensor, Tensor, MaxStrength], Tensor]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "solarize": _solarize,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
