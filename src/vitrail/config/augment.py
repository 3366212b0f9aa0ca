"""Augmentation of training images: single settings, and presets of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vitrail.config.typed import field_hints
from vitrail.errors import ConfigError, closest, did_you_mean

Padding = Literal["zeros", "border", "reflection"]
Auto = Literal["none", "randaugment", "trivialaugment"]


@dataclass(frozen=True)
class AugmentSettings:
    """Random changes of a batch of training images. The defaults change nothing.

    All streams of an image move together and are blurred and erased together; colour is changed on the image stream
    alone, and only where it has three bands. All frames of a clip change alike; flips and rotations above 45
    degrees of a preset are off for clips whose classes say a direction (left, right, up, down, clockwise).

    Attributes:
        crop_area: Share of the image's area that a random crop keeps, least and most; the crop fills the image again.
        crop_ratio: Width over height of the crop, beside that of the image, least and most.
        flip_horizontal: Probability of a mirror image, left to right.
        flip_vertical: Probability of one upside down.
        quarter_turns: Probability of a turn by 90, 180 or 270 degrees; square images only.
        rotate: Largest turn in degrees, either way.
        translate: Largest shift, as a share of height and width, either way.
        zoom: Magnification, least and most.
        shear: Largest shear in degrees, either way, along both axes.
        affine_probability: Probability of rotate, translate, zoom and shear, all of them together.
        padding: Values outside the image: "zeros", "border" (its outermost pixels) or "reflection".
        brightness: Largest relative change, either way; likewise contrast and saturation.
        contrast: Change of the distance from the image's mean gray.
        saturation: Change of the distance from each pixel's gray.
        hue: Largest turn of the hue, as a share of the whole circle, either way, at most 0.5.
        color_probability: Probability of brightness, contrast, saturation and hue, all of them together.
        grayscale: Probability of an image without colours.
        auto: "randaugment" (auto_operations operations of one strength) or "trivialaugment" (one operation of a random
            strength), drawn for each image from fourteen.
        auto_operations: Number of operations of RandAugment.
        auto_magnitude: Strength of RandAugment, 0 to 30.
        blur: Probability of a Gaussian blur.
        blur_sigma: Its standard deviation in hundredths of the image's shorter side, least and most.
        erase: Probability that a rectangle is erased.
        erase_area: Its share of the image's area, least and most.
        band_dropout: Probability of each band of each image that it is erased; one of a stream always stays.
        stream_dropout: Probability that one of an image's streams, any of them, is erased; one always stays.
        mixup: Parameter of the Beta distribution from which shares of two images are drawn; 0 for no mixup.
        cutmix: The same for pasting a rectangle of another image; with mixup, each image gets one of the two.
        mix_probability: Probability that an image is mixed with another, where mixup or cutmix is on.

    Source: crops: Szegedy et al. 2015, arXiv:1409.4842, section 6; RandAugment: Cubuk et al. 2020, arXiv:1909.13719;
    TrivialAugment: Müller & Hutter 2021, arXiv:2103.10158; erasing: Zhong et al. 2020, arXiv:1708.04896; mixup: Zhang
    et al. 2018, arXiv:1710.09412; CutMix: Yun et al. 2019, arXiv:1905.04899.
    """

    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip_horizontal: float = 0.0
    flip_vertical: float = 0.0
    quarter_turns: float = 0.0
    rotate: float = 0.0
    translate: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    affine_probability: float = 1.0
    padding: Padding = "zeros"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    color_probability: float = 1.0
    grayscale: float = 0.0
    auto: Auto = "none"
    auto_operations: int = 2
    auto_magnitude: float = 9.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 0.9)
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.33)
    band_dropout: float = 0.0
    stream_dropout: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0

    def __post_init__(self) -> None:
        """Check types and ranges.

        Raises:
            ConfigError: A value of another type, or out of range.
        """
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name)))

    @property
    def moves(self) -> bool:
        """Whether pixels change their place."""
        moving = ("flip_horizontal", "flip_vertical", "quarter_turns", "rotate", "translate", "shear")
        zooms = self.zoom != (1.0, 1.0) or self.crop_area != (1.0, 1.0)
        return zooms or self.auto != "none" or any(getattr(self, name) > 0 for name in moving)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with each other, which makes their targets shares of classes."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


# Least and most that a number, or each of a pair, may be.
_RANGES: dict[str, tuple[float, float]] = {
    "crop_area": (1e-3, 1), "crop_ratio": (0.1, 10), "rotate": (0, 180), "translate": (0, 1), "zoom": (0.1, 10),
    "shear": (0, 60), "hue": (0, 0.5), "auto_operations": (1, 14), "auto_magnitude": (0, 30), "blur_sigma": (1e-3, 25),
    "erase_area": (1e-3, 1), "mixup": (0, 100), "cutmix": (0, 100),
}  # fmt: skip


def _checked(name: str, value: Any) -> Any:
    """Validate a value and convert it to the setting's type."""
    default = AugmentSettings.__dataclass_fields__[name].default
    place = f"data.augmentation.{name}"
    low, high = _RANGES.get(name, (0, 1))
    if isinstance(default, str):
        choices = get_args(field_hints(AugmentSettings)[name])
        if value not in choices:
            raise ConfigError(
                f"{place} must be one of {', '.join(choices)}, got {value!r}{did_you_mean(str(value), choices)}"
            )
        return value
    if isinstance(default, tuple):
        pair = value if isinstance(value, (tuple, list)) else ()
        if len(pair) != 2 or not all(_number(v) and low <= v <= high for v in pair) or pair[0] > pair[1]:
            raise ConfigError(f"{place} must be two numbers from {low:g} to {high:g}, the smaller first, got {value!r}")
        return (float(pair[0]), float(pair[1]))
    if not _number(value) or not low <= value <= high or (isinstance(default, int) and value != int(value)):
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ConfigError(f"{place} must be {kind} from {low:g} to {high:g}, got {value!r}")
    return int(value) if isinstance(default, int) else float(value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


PRESETS: dict[str, AugmentSettings] = {
    "none": AugmentSettings(),
    "light": AugmentSettings(rotate=10.0, translate=0.1, zoom=(0.9, 1.1), affine_probability=0.9),
    "standard": AugmentSettings(
        crop_area=(0.35, 1.0), flip_horizontal=0.5,
        brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05, color_probability=0.8,
    ),
    # As DeiT is trained (Touvron et al. 2021, arXiv:2012.12877, table 9), with larger crops.
    "strong": AugmentSettings(
        crop_area=(0.2, 1.0), flip_horizontal=0.5, padding="reflection", auto="randaugment", erase=0.25, mixup=0.8,
        cutmix=1.0,
    ),
    # A leaf lies any way round, and its colour is what tells: much geometry, little colour, no erasing of lesions.
    "leaf": AugmentSettings(
        crop_area=(0.5, 1.0), flip_horizontal=0.5, flip_vertical=0.5, rotate=180.0, padding="reflection",
        brightness=0.2, contrast=0.2, saturation=0.15, hue=0.02, color_probability=0.8, blur=0.1,
    ),
}  # fmt: skip


def augment_settings(preset: str, changes: Mapping[str, Any] | None = None) -> AugmentSettings:
    """Return the settings of a preset, some of them changed.

    Args:
        preset: Its name.
        changes: Settings that take the place of the preset's.

    Raises:
        ConfigError: An unknown preset or setting (the closest is named), or a value of another type or out of range.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown data.augment {preset!r}{closest(preset, PRESETS)}")
    known = [field.name for field in dataclasses.fields(AugmentSettings)]
    for name in changes or {}:
        if name not in known:
            raise ConfigError(f"unknown setting data.augmentation.{name}{closest(str(name), known)}")
    return dataclasses.replace(PRESETS[preset], **(changes or {}))
