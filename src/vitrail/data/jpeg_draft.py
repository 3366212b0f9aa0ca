"""Decode JPEG images at a half, a quarter or an eighth of their size, and resize them as if decoded in full."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# A JPEG is decoded at least this many times as large as it is wanted, as by Pillow's reducing_gap. Levels (of 255) off
# a full decoding, which other programs do, on average over photographs of 375 x 500 and sizes of 32 and 64: 4.2 to 4.8
# by 1, where the means of the decoder stand in for the resize, .4 to .5 by 2, .1 to .2 by 3. Photographs of 12
# megapixels take as long by 2 and 3, those of less than one as long as in full.
FACTOR = 3
# Values of the orientation tag after which the last column, or the last row, comes first.
_LAST_COLUMN_FIRST, _LAST_ROW_FIRST = (2, 3, 6, 7), (3, 4, 7, 8)
# Values of it for images that lie on their side.
TURNED = (5, 6, 7, 8)


@dataclass(frozen=True)
class Reduction:
    """Relation of a reduced image to its file.

    A side of 375 pixels at a half has 188, of which the last covers half as much. Without regard to that, and to crops
    between two pixels, a resize is off by a part of a pixel.

    Attributes:
        scale: 2, 4 or 8.
        size: Height and width of the image in the file, as displayed.
        top: Distance of its first row from that of the reduced image, in reduced pixels.
        left: The same of its first column.
    """

    scale: int
    size: tuple[int, int]
    top: float = 0.0
    left: float = 0.0

    def turned(self, orientation: int, reduced: tuple[int, int]) -> Reduction:
        """Apply the rotation of an orientation tag.

        Args:
            orientation: Value of the tag.
            reduced: Height and width of the reduced image, as stored.
        """
        height, width = self.size
        over = [own - side / self.scale for own, side in zip(reduced, self.size, strict=True)]
        if orientation in TURNED:
            (height, width), over = (width, height), over[::-1]
        top = over[0] if orientation in _LAST_ROW_FIRST else 0.0
        left = over[1] if orientation in _LAST_COLUMN_FIRST else 0.0
        return Reduction(self.scale, (height, width), top, left)

    def resize(self, planes: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
        """Crop and resize, bicubic and without aliases; torch resizes no box between two pixels.

        Args:
            planes: The reduced image, shape ``(C, h, w)``, uint8.
            box: Top, left, height and width of the part, in pixels of the file.
            size: Height and width wanted.
        """
        top, left, rows, columns = (side / self.scale for side in box)
        top, left = top + self.top, left + self.left
        bottom, right = min(top + rows, planes.shape[1]), min(left + columns, planes.shape[2])
        # Cut off first: the filter sees nothing beyond the crop.
        y, x = floor(top), floor(left)
        part = planes[:, y : ceil(bottom), x : ceil(right)].contiguous().numpy()
        shape, inner = (size[1], size[0]), (left - x, top - y, right - x, bottom - y)
        resized = [Image.fromarray(plane).resize(shape, Image.Resampling.BICUBIC, inner) for plane in part]
        return torch.from_numpy(np.stack([np.array(plane) for plane in resized]))


def draft(image: Image.Image, size: tuple[int, int] | None) -> None:
    """Request decoding at :data:`FACTOR` times a size or more; formats other than JPEG are decoded in full.

    Args:
        image: An image that is not loaded.
        size: Height and width wanted; None for a decoding in full.
    """
    if size is not None:
        image.draft(image.mode, (FACTOR * size[1], FACTOR * size[0]))


def reduction(stored: tuple[int, int], reduced: tuple[int, int]) -> Reduction | None:
    """Describe how an image was reduced; None where it was not.

    Args:
        stored: Height and width in the file.
        reduced: Height and width after the decoding.
    """
    if stored == reduced:
        return None
    scales = [s for s in (2, 4, 8) if all(-(-side // s) == own for side, own in zip(stored, reduced, strict=True))]
    return Reduction(scales[0], stored) if scales else None
