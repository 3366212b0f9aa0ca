"""The interface of a source of labelled images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor


class ImageSource(ABC):
    """Labelled images, in a fixed order.

    Attributes:
        classes: Names of the classes; a target is an index into them.
        bands: Names of the bands of each stream, "image" first and "spectral" where there is a second.
        keys: What identifies each image: a path relative to the source, or a number.
        targets: Class of each image, shape ``(N,)``; where images have several labels 1 for those that each has and 0
            for the others, shape ``(N, K)``.
        given_split: Split of each image where the source says so ("train", "val", "test"), "" where not.
        in_memory: Whether images are at hand without decoding.
    """

    classes: tuple[str, ...]
    bands: dict[str, tuple[str, ...]]
    keys: list[str]
    targets: npt.NDArray[np.int64]
    given_split: list[str]
    in_memory: bool = False

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def load(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Images at the size for the model.

        Args:
            indices: Which.

        Returns:
            For each stream of ``bands``, shape ``(len(indices), C, H, W)``, float32 in 0..1.

        Raises:
            DataError: A file that cannot be read or has other bands; the message names it.
        """
