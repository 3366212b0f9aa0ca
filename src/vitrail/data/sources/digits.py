"""scikit-learn's handwritten digits: 1,797 real 8 x 8 images that are part of the library."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.sources.base import ImageSource


@functools.cache  # scikit-learn parses a compressed table of text at each call
def stored_digits() -> Any:
    """Load scikit-learn's table of images and labels."""
    from sklearn.datasets import load_digits

    return load_digits()


class DigitsSource(ImageSource):
    """The digits, resized bilinearly.

    Args:
        size: Height and width wanted.

    Source: Alpaydin & Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", test part.
    """

    in_memory = True
    fixed = True

    def __init__(self, size: tuple[int, int]) -> None:
        digits = stored_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16.0
        if size != (8, 8):
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        self._images, self._stored = images, digits.images
        self.classes = tuple(str(digit) for digit in range(10))
        self.bands = {"image": ("gray",)}
        self.keys = [f"digits/{index:04d}" for index in range(len(images))]
        self.targets = digits.target.astype(np.int64)
        self.given_split = [""] * len(images)

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return images ``(B, 1, H, W)`` in 0..1."""
        return {"image": self._images[torch.as_tensor(indices)]}

    def digest(self, index: int) -> bytes:
        """Hash the stored pixels of an image, independent of the requested size."""
        return hashlib.sha256(self._stored[index].tobytes()).digest()
