"""Augmented views for contrastive learning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitrail.config.augment import AugmentSettings
from vitrail.data.augment.axes import as_rows
from vitrail.data.augment.pipeline import Augmentation
from vitrail.errors import ShapeError


class Views(nn.Module):
    """Random transforms of a batch in 0..1; each call samples one view of each image.

    Args:
        geometry: Moves pixels: maps ``(B, C, H, W)`` to the same shape, each image its own way.
        color: Changes their values; applied to the image stream alone.
    """

    def __init__(self, geometry: nn.Module, color: nn.Module) -> None:
        super().__init__()
        self.geometry, self.color = geometry, color

    def forward(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Transform all streams of each image with the same geometry.

        Args:
            streams: Stream -> shape ``(B, C, H, W)``, all of one height and width.

        Raises:
            ShapeError: Streams of different sizes.
        """
        sizes = {tuple(x.shape[2:]) for x in streams.values()}
        if len(sizes) > 1:
            raise ShapeError(f"views are drawn of all streams together, which must be of one size, got {sorted(sizes)}")
        # Mixed precision is for the model: bfloat16 would round pixels to 8 bits.
        with torch.autocast(next(iter(streams.values())).device.type, enabled=False):
            # Concatenated as bands of one image, all streams move alike.
            moved = self.geometry(torch.cat(list(streams.values()), dim=1))
            parts = dict(zip(streams, moved.split([x.shape[1] for x in streams.values()], dim=1), strict=True))
            return {name: self.color(x) if name == "image" else x for name, x in parts.items()}


def build_views(size: tuple[int, int], num_bands: int, min_scale: float = 0.2, strength: float = 0.5) -> Views:
    """Build the random transforms of augmented views.

    Random crop, resized; horizontal flip; change of brightness and contrast, of three bands also of saturation and
    hue, and loss of colour; blur. The geometry is the same for all streams of a view, colours change in the image
    stream alone.

    Args:
        size: Height and width of the images.
        num_bands: Bands of the image stream.
        min_scale: Smallest share of an image that a view may show.
        strength: Strength of the colour jitter, the s of the source; 0 leaves colours.

    Returns:
        A transform of streams in 0..1.

    Source: Chen et al. 2020, arXiv:2002.05709, appendix A.
    """
    import kornia.augmentation as K

    crop = K.RandomResizedCrop(size, scale=(min_scale, 1.0), ratio=(0.75, 4 / 3))
    color: list[nn.Module] = []
    s = 0.8 * strength
    if strength and num_bands == 3:
        color += [K.ColorJitter(s, s, s, 0.2 * strength, p=0.8), K.RandomGrayscale(p=0.2)]
    elif strength:
        color += _change_of_bands(s)
    kernel = max(3, min(size) // 10 // 2 * 2 + 1)
    if min(size) >= kernel:
        color.append(K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5))
    return Views(nn.Sequential(crop, K.RandomHorizontalFlip()), nn.Sequential(*color))


def _change_of_bands(s: float) -> list[nn.Module]:
    """Build changes of brightness and contrast: bands that are not colours have no saturation or hue."""
    import kornia.augmentation as K

    return [K.RandomBrightness((1 - s, 1 + s), p=0.8), K.RandomContrast((1 - s, 1 + s), p=0.8)]


class _BandsOfClips(nn.Module):
    """Random transforms of images that change each value by itself, applied to all frames of a clip alike."""

    def __init__(self, changes: list[nn.Module]) -> None:
        super().__init__()
        self.changes = nn.Sequential(*changes)

    def forward(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change clips ``(B, C, T, H, W)``."""
        return {name: self.changes(as_rows(x)).view_as(x) for name, x in streams.items()}


def build_clip_views(num_bands: int, min_scale: float = 0.2, strength: float = 0.5, flips: bool = True) -> nn.Module:
    """Build the random transforms of :func:`build_views` for clips, all frames of which change alike.

    Args:
        num_bands: Bands of the clips.
        min_scale: Smallest share of a frame that a view may show.
        strength: Strength of the colour jitter.
        flips: Whether mirrored views are drawn.
    """
    s = 0.8 * strength
    settings = AugmentSettings(
        crop_area=(min_scale, 1.0), flip_horizontal=0.5 if flips else 0.0,
        brightness=s, contrast=s, saturation=s, hue=0.2 * strength,
        color_probability=0.8, grayscale=0.2 if strength else 0.0, blur=0.5,
    )  # fmt: skip
    views = Augmentation(settings, num_bands)
    return views if num_bands == 3 or not s else nn.Sequential(views, _BandsOfClips(_change_of_bands(s)))
