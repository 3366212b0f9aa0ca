"""Images of any number of bands as pictures for display."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from vitrail.figures.film_strip import film_strip

_COLORS = ("red", "green", "blue")
# Share of the pixels that stretched contrast cuts off at either end.
_CUT = 0.01


def as_pictures(
    images: Tensor, bands: Sequence[str] = (), *, alike: bool = False, stretch: bool = False
) -> npt.NDArray[Any]:
    """Show red, green and blue bands in true colour, other three bands as they come, one in gray, else the mean.

    The contrast of pictures made from more bands than they show is stretched.

    Args:
        images: Shape ``(n, C, H, W)``, in 0..1; NaN where nothing was measured. Of clips, ``(n, C, T, H, W)``, frames
            are shown side by side.
        bands: Names of the C bands, where they are known.
        alike: Stretch all as the first one, where they show the same thing.
        stretch: Stretch also pictures of one or three bands.

    Returns:
        Shape ``(n, H, W)`` or ``(n, H, W, 3)``, in 0..1.
    """
    if images.ndim == 5:
        images = film_strip(images)
    names = [name.lower() for name in bands]
    many = images.shape[1] not in (1, 3)
    if set(_COLORS) <= set(names):
        shown = images[:, [names.index(name) for name in _COLORS]]
    else:
        shown = images.nanmean(1, keepdim=True) if many else images
    if many or stretch:
        shown = _stretched(shown, alike)
    array: npt.NDArray[Any] = shown.nan_to_num(0).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return array[..., 0] if array.shape[-1] == 1 else array


def as_frames(clips: Tensor, bands: Sequence[str] = ()) -> npt.NDArray[Any]:
    """Make pictures of all frames of clips, as :func:`as_pictures`, with one contrast for each clip.

    Args:
        clips: Shape ``(n, C, T, H, W)``, in 0..1.
        bands: Names of the C bands, where they are known.

    Returns:
        Shape ``(n, T, H, W)`` or ``(n, T, H, W, 3)``, in 0..1.
    """
    length, height = clips.shape[2:4]
    # All frames one below the other are one picture.
    pictures = as_pictures(clips.flatten(2, 3), bands)
    return pictures.reshape(len(clips), length, height, *pictures.shape[2:])


def _stretched(images: Tensor, alike: bool) -> Tensor:
    """Stretch each image from its 1st to its 99th percentile to 0..1, all bands alike."""
    flat = (images[:1] if alike else images).flatten(1).float()
    # Sorting instead of quantile, which refuses more than 16 million values; NaN come last.
    ordered = flat.sort(1).values
    last = (~ordered.isnan()).sum(1, keepdim=True).sub(1).clamp_min(0)
    low, high = (
        ordered.gather(1, (share * last).round().long()).nan_to_num(0).view(-1, 1, 1, 1) for share in (_CUT, 1 - _CUT)
    )
    return (images - low) / (high - low).clamp_min(1e-3)


def jpeg_uri(picture: npt.NDArray[Any], size: tuple[int, int], quality: int = 85) -> str:
    """Encode a picture as a JPEG data URI.

    Args:
        picture: Shape ``(H, W)`` or ``(H, W, 3)``, in 0..1.
        size: Width and height in pixels that it is brought to.
        quality: JPEG quality, 1 to 95.
    """
    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    how = Image.Resampling.NEAREST if size[0] > image.width else Image.Resampling.LANCZOS
    buffer = io.BytesIO()
    image.resize(size, how).save(buffer, "JPEG", quality=quality)
    return data_uri("image/jpeg", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Embed a file of a media type, such as "image/png", in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def enlarge(picture: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Enlarge a picture ``(H, W)`` or ``(H, W, 3)`` by a whole factor."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def in_color(picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Repeat a gray picture ``(H, W)`` in three bands; a coloured one remains."""
    return picture if picture.ndim == 3 else picture[..., None].repeat(3, axis=2)


def gray(picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert a picture ``(H, W)`` or ``(H, W, 3)`` to gray, so that overlaid colour has one meaning.

    Source: ITU-R BT.601, luma.
    """
    if picture.ndim == 2:
        return picture
    light: npt.NDArray[Any] = picture @ [0.299, 0.587, 0.114]
    return light
