"""Random augmentation of training batches, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.config.augment import AugmentSettings, augment_settings
from vitrail.data.augment import auto
from vitrail.data.augment.color import color_jitter
from vitrail.data.augment.erasing import drop_bands, drop_streams, random_blur, random_erasing
from vitrail.data.augment.geometry import random_transforms, warp

# Streams whose colours are changed.
_COLORED = ("image", "video")


class Augmentation(nn.Module):
    """Random augmentation of a batch in 0..1, from torch's generator.

    Motion first (crop, flip, turn, shift, zoom, shear: one resampling in all), then colour, blur, erasing, bands and
    streams. All streams of an image move alike, each at its own size; colour is changed on the image stream alone. All
    frames of a clip change alike.

    Args:
        settings: Settings of the augmentation.
        num_bands: Bands of the image stream; colour is changed only where there are three.
        means: Stream -> the mean of each band, with which what is erased is filled, so that it is 0 once normalised;
            0 where not given.
    """

    def __init__(
        self, settings: AugmentSettings, num_bands: int, means: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        self.colored = num_bands == 3
        self._means = nn.Module()
        for name, values in (means or {}).items():
            fill = torch.tensor(values, dtype=torch.float32)
            self._means.register_buffer(name, fill, persistent=False)

    def forward(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Augment all streams of each image.

        Args:
            streams: Stream -> images or clips, shape ``(B, C, H, W)`` or ``(B, C, T, H, W)``; each may have its own
                height and width.
        """
        # Mixed precision is for the model: bfloat16 would round pixels to 8 bits, and some operations return it and
        # others do not.
        with torch.autocast(next(iter(streams.values())).device.type, enabled=False):
            return self._change(streams)

    def _change(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        settings = self.settings
        result = dict(streams)
        first = next(iter(result.values()))
        count, size = len(first), (first.shape[-2], first.shape[-1])
        drawn = auto.sample_operations(settings, count, self.colored) if settings.auto != "none" else None
        if settings.moves:
            motions = random_transforms(settings, count, size)
            if drawn is not None:
                # The operations see the image as the crop left it.
                motions = motions @ auto.operation_matrices(drawn, size)
            result = {name: warp(x, motions, settings.padding) for name, x in result.items()}
        colors = next((name for name in _COLORED if name in result), None)
        if self.colored and colors is not None:
            if settings.brightness or settings.contrast or settings.saturation or settings.hue or settings.grayscale:
                result[colors] = color_jitter(result[colors], settings)
            if drawn is not None:
                result[colors] = auto.apply_color_operations(result[colors], drawn)
        if settings.blur:
            result = random_blur(result, settings)
        fill = {
            name: getattr(self._means, name, x.new_zeros(1)).view(-1, *[1] * (x.ndim - 2)) for name, x in result.items()
        }
        if settings.erase:
            result = random_erasing(result, settings, fill)
        if settings.band_dropout:
            result = drop_bands(result, settings.band_dropout, fill)
        if settings.stream_dropout:
            result = drop_streams(result, settings.stream_dropout, fill)
        return result


def build_augmentation(
    preset: str,
    num_bands: int,
    changes: Mapping[str, Any] | None = None,
    means: Mapping[str, Sequence[float]] | None = None,
) -> Augmentation | None:
    """Build the augmentation of training.

    Args:
        preset: A name of :data:`vitrail.config.augment.PRESETS`.
        num_bands: Bands of the image stream.
        changes: Settings that replace the preset's.
        means: As for :class:`Augmentation`.

    Returns:
        None where nothing is changed.

    Raises:
        ConfigError: An unknown preset or setting, or a value out of range.
    """
    settings = augment_settings(preset, changes)
    return None if settings == AugmentSettings() else Augmentation(settings, num_bands, means)
