"""Convolutional stems before the patch embedding of a transformer (hybrid models)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, first_line
from vitrail.layers.checks import check_named
from vitrail.layers.modes import evaluation_mode

Pair = tuple[int, int]


class ResNetStem(nn.Module):
    """Convolve an image to a feature map of stride 4: a strided convolution, then a residual block of stride 2.

    Norms are GroupNorms, so that an image does not depend on the others of its batch.

    Args:
        in_chans: Bands of the image.
        width: Channels of the feature map.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2 (the block); hybrid models: Dosovitskiy et al. 2021,
    arXiv:2010.11929, section 3.1.
    """

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        groups = math.gcd(32, width)
        self.conv1 = nn.Conv2d(in_chans, width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm3 = nn.GroupNorm(groups, width)
        self.shortcut = nn.Conv2d(width, width, 1, stride=2, bias=False)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_chans, H, W)`` to ``(B, width, ceil(H / 4), ceil(W / 4))``."""
        x = self.act(self.norm1(self.conv1(x)))
        branch = self.norm3(self.conv3(self.act(self.norm2(self.conv2(x)))))
        out: Tensor = self.act(self.shortcut(x) + branch)
        return out


STEMS: Mapping[str, Callable[[int, int], nn.Module]] = {"resnet": ResNetStem}


def make_stem(stem: str | nn.Module, in_chans: int, width: int) -> nn.Module:
    """Make a stem by its name in :data:`STEMS`; "" is the identity, a module is itself.

    Raises:
        ConfigError: An unknown name.
    """
    if isinstance(stem, nn.Module):
        return stem
    if not stem:
        return nn.Identity()
    check_named("stem", stem, STEMS)
    return STEMS[stem](in_chans, width)


def measure_stem(stem: nn.Module, in_chans: int, size: Pair) -> tuple[int, Pair]:
    """Run a stem on zeros to find the shape of its feature map.

    Args:
        stem: Any module from images to feature maps.
        in_chans: Bands of the image.
        size: Height and width of the image.

    Returns:
        Channels, and pixels per position (rounded; height and width).

    Raises:
        ConfigError: The stem does not accept such images, or gives no feature map.
    """
    name = type(stem).__name__
    parameter = next(stem.parameters(), torch.empty(0))
    x = torch.zeros(1, in_chans, *size, device=parameter.device, dtype=parameter.dtype)
    try:
        with evaluation_mode(stem), torch.no_grad():
            out: object = stem(x)
    except (RuntimeError, TypeError, ValueError) as error:  # layers of torch raise one of these
        raise ConfigError(f"stem {name} cannot run on images of shape {tuple(x.shape)}: {first_line(error)}") from error
    if not isinstance(out, Tensor) or out.ndim != 4 or 0 in out.shape or len(out) != 1:
        found = str(tuple(out.shape)) if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(f"stem must give a feature map (B, C, h, w), and {name} gives {found} for {tuple(x.shape)}")
    rows, columns = (max(1, round(length / made)) for length, made in zip(size, out.shape[2:], strict=True))
    return out.shape[1], (rows, columns)


def check_multiples(pixels: Pair, **lengths: Pair) -> None:
    """Refuse patch lengths that are not multiples of the stem's stride.

    Args:
        pixels: Pixels per position, height and width, as of :func:`measure_stem`.
        **lengths: Height and width in pixels, by setting.

    Raises:
        ConfigError: A length that is not a multiple.
    """
    for name, values in lengths.items():
        if any(value % step for value, step in zip(values, pixels, strict=True)):
            raise ConfigError(
                f"{name} {values[0]} x {values[1]} is not a multiple of the stem's stride {pixels[0]} x {pixels[1]}; "
                "choose a multiple"
            )


def first_convolution(stem: nn.Module) -> nn.Module:
    """Find the first module of a stem with a weight, whose type the images must have; the stem without one."""
    return next((part for part in stem.modules() if isinstance(getattr(part, "weight", None), Tensor)), stem)
