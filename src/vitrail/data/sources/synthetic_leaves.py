"""Synthetic leaves as a source, in RGB and five spectral bands, with masks of damage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitrail.data.leaf_renderer import BANDS, CLASSES, IMAGE_BANDS, SPECTRAL_BANDS, draw_leaf, leaf_class
from vitrail.data.sources.base import ImageSource


class SyntheticLeavesSource(ImageSource):
    """Synthetic leaves: healthy, with four kinds of lesions, or with stress visible in spectral bands only.

    Image ``i`` depends on the seed and ``i`` alone: more images change none. They are for trying things out, and no
    result on them says anything about plants.

    Args:
        size: Height and width.
        number: Number of images.
        seed: Seed of the data set.
    """

    def __init__(self, size: tuple[int, int], number: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.classes = CLASSES
        self.bands = {"image": tuple(IMAGE_BANDS), "spectral": tuple(SPECTRAL_BANDS)}
        self.wavelengths = {"image": tuple(IMAGE_BANDS.values()), "spectral": tuple(SPECTRAL_BANDS.values())}
        self.keys = [f"synthetic/{seed}/{i:06d}" for i in range(number)]
        self.targets = np.array([leaf_class(seed, i) for i in range(number)], dtype=np.int64)
        self.given_split = [""] * number

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Render images ``(B, 3, H, W)`` and spectral bands ``(B, 5, H, W)``, uint8."""
        drawn = np.stack([draw_leaf(self.seed, int(i), self.size).bands for i in indices])
        bands = torch.from_numpy(np.round(drawn * 255).astype(np.uint8))
        return {"image": bands[:, : len(IMAGE_BANDS)], "spectral": bands[:, len(IMAGE_BANDS) :]}

    def digest(self, index: int) -> bytes:
        """Identify a leaf by seed and number, independent of the requested size."""
        return hashlib.sha256(self.keys[index].encode()).digest()

    def masks(self, indices: Sequence[int], bands: Sequence[str] = BANDS) -> Tensor:
        """Return the masks of lesions or stress that the given bands show.

        Args:
            indices: Numbers of images.
            bands: Names of bands; early stress changes nothing in red, green and blue.

        Returns:
            Shape ``(B, H, W)``, bool; all False for healthy leaves.
        """
        masks = np.stack([draw_leaf(self.seed, int(i), self.size).mask for i in indices])
        if not set(bands) & set(SPECTRAL_BANDS):
            masks[self.targets[list(indices)] == CLASSES.index("early_stress")] = False
        return torch.from_numpy(masks)
