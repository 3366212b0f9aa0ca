"""Interface of a source of labelled images."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.data.classes import Numbering
from vitrail.data.stored_values import StreamValues
from vitrail.data.threads import map_in_threads
from vitrail.data.thumbnails import Thumbnails, thumbnails
from vitrail.errors import DataError


@dataclass(frozen=True)
class Scene:
    """Positions of patches in their scene.

    Attributes:
        corners: Top and left pixel of each patch, shape ``(N, 2)``.
        patch: Side of a patch.
        block: Side of the blocks that the scene is split by.
    """

    corners: npt.NDArray[np.int64]
    patch: int
    block: int


class ImageSource(ABC):
    """Labelled images in a fixed order.

    Attributes:
        classes: Names of the classes; a target is an index into them.
        bands: Names of the bands of each stream, "image" first and "spectral" where there is a second; "video" for
            clips.
        wavelengths: Wavelengths of a stream's bands in nm, where they are known.
        keys: Identifier of each image: a path relative to the source, or a number.
        named: Whether keys are paths of files, whose names may say what an image is.
        targets: Class of each image, shape ``(N,)``; for multi-label data 1 for each label of the image and 0
            for the others, shape ``(N, K)``.
        given_split: Split of each image where the source says so ("train", "val", "test"), "" where not.
        groups: Group of each image where the source says so.
        scene: Position of each image, for the patches of a scene.
        in_memory: Whether images are at hand without decoding.
        fixed: Whether the collection never grows.
        copies_grouped: Whether the code makes the images, those of one origin as a group: there are no other copies.
        parts: Names of the labels of points, where :meth:`read` returns "parts": indices into them, shape ``(B, N)``,
            -1 where there is no point.
        is_image: Whether the streams are images, which can be drawn, compared as thumbnails and measured band by band.
        views: Views of an input that evaluation averages over.
        draws: Whether training reads a random part of an input in each epoch.
        numbering: Mapping from labels to class names, where a run must remember it.
        left_out: Images that cannot be read and that the source goes on without: their names, with the reason.
        notes: Facts to print where the source is opened, for example ignored files, one line each.
        values: The stored values of each stream, where they are not 8 bits throughout.
        value_notes: Facts about these for training and statistics: a range that their type decided, no data.
    """

    classes: tuple[str, ...]
    bands: dict[str, tuple[str, ...]]
    wavelengths: Mapping[str, tuple[float, ...]] = MappingProxyType({})
    keys: list[str]
    named: bool = False
    targets: npt.NDArray[np.int64]
    given_split: list[str]
    groups: Sequence[str] | None = None
    scene: Scene | None = None
    in_memory: bool = False
    fixed: bool = False
    copies_grouped: bool = False
    parts: tuple[str, ...] = ()
    is_image: bool = True
    views: int = 1
    draws: bool = False
    numbering: Numbering | None = None
    left_out: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    values: Mapping[str, StreamValues] = MappingProxyType({})
    value_notes: Sequence[str] = ()
    _digests: list[bytes] | None = None

    @property
    def has_no_data(self) -> bool:
        """Whether there are pixels without data, which :meth:`read` returns as NaN."""
        return any(own.tally is not None and own.tally.no_data.any() for own in self.values.values())

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def first(self) -> str:
        """Name of the first stream: "image", or "video" for clips."""
        return next(iter(self.bands))

    @abstractmethod
    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Read images at the model's size, as stored.

        Args:
            indices: Indices of the images, B in all.

        Returns:
            For each stream of ``bands``, shape ``(len(indices), C, H, W)``, of clips ``(len(indices), C, T, H, W)``,
            uint8 of which 255 means 1, or float32 in 0..1, NaN where there is no data.

        Raises:
            DataError: A file that cannot be read or has other bands; the message names it.
        """

    def read_clips(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Read inputs as training or evaluation sees them; :meth:`read` where an input has one view alone.

        Args:
            indices: Indices of the images.
            seeds: Seed of the random part of each that training reads; the views of evaluation when not given.

        Returns:
            Streams as of :meth:`read`; of evaluation ``views`` rows an input, one after the other.
        """
        return self.read(indices)

    def load(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Read images as float32 in 0..1."""
        return {name: to_unit(x) for name, x in self.read(indices).items()}

    def normalization(self, indices: Sequence[int]) -> dict[str, tuple[list[float], list[float]]]:
        """Return mean and deviation of each number of a stream, of a source that is not an image source.

        Args:
            indices: Training inputs to measure.
        """
        raise NotImplementedError(f"{type(self).__name__} is measured band by band")

    def label(self, index: int) -> str:
        """Return the class name of an image; several are joined by "+", none is empty."""
        if not self.classes:
            return ""
        own = self.targets[index]
        return self.classes[int(own)] if own.ndim == 0 else "+".join(self.classes[i] for i in np.flatnonzero(own))

    def indices_of(self, keys: Sequence[str]) -> list[int]:
        """Find images of an evaluation by their keys: indices change where images were added or deleted since.

        Raises:
            DataError: A key is missing.
        """
        known = {key: i for i, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in known]
        if missing:
            raise DataError(f"{missing[0]} was evaluated and is not among the images any more")
        return [known[key] for key in keys]

    def has_class(self, target: int) -> npt.NDArray[np.bool_]:
        """Return whether each image has a class (or has it among its labels), shape ``(N,)``."""
        mask: npt.NDArray[np.bool_] = self.targets == target if self.targets.ndim == 1 else self.targets[:, target] > 0
        return mask

    def thumbnails(self) -> Thumbnails:
        """Return gray images for the search of copies, shape ``(N, 32, 32)``."""
        parts = (self.read(range(i, min(i + 256, len(self))))["image"] for i in range(0, len(self), 256))
        return np.concatenate([thumbnails(to_unit(part), stretch=part.dtype != torch.uint8) for part in parts])

    def original_size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image before resizing."""
        shape = self.read([index])["image"].shape
        return shape[2], shape[3]

    def digest(self, index: int) -> bytes:
        """Hash the file or the pixels of an image; equal for identical images."""
        content = hashlib.sha256()
        streams = self.read([index])
        for name in self.bands:
            x = streams[name]
            content.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
            content.update(x.contiguous().numpy().tobytes())
        return content.digest()

    def digests(self) -> list[bytes]:
        """Return the digest of each image, computed once, independent of names."""
        if self._digests is None:
            self._digests = list(map_in_threads(self.digest, range(len(self))))
        return self._digests


class WrappedSource(ImageSource):
    """Source that changes the images of another one by :meth:`change`; everything else is inherited from it.

    Args:
        source: The other.
    """

    def __init__(self, source: ImageSource) -> None:
        self.inner = source
        self.classes, self.keys, self.targets = source.classes, source.keys, source.targets
        self.given_split, self.groups, self.scene = source.given_split, source.groups, source.scene
        self.named = source.named
        self.bands, self.wavelengths, self.numbering = source.bands, source.wavelengths, source.numbering
        self.in_memory, self.fixed, self.is_image = source.in_memory, source.fixed, source.is_image
        self.parts, self.views, self.draws = source.parts, source.views, source.draws
        self.copies_grouped = source.copies_grouped
        self.left_out, self.notes = source.left_out, source.notes
        self.values, self.value_notes = source.values, source.value_notes

    def change(self, streams: dict[str, Tensor]) -> dict[str, Tensor]:
        """Change the streams of a batch."""
        return streams

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Read images at the model's size; see :meth:`ImageSource.read`."""
        return self.change(self.inner.read(indices))

    def read_clips(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Read inputs as training or evaluation sees them; see :meth:`ImageSource.read_clips`."""
        return self.change(self.inner.read_clips(indices, seeds))

    def normalization(self, indices: Sequence[int]) -> dict[str, tuple[list[float], list[float]]]:
        """Return mean and deviation of each number of a stream."""
        return self.inner.normalization(indices)

    def original_size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image before resizing."""
        return self.inner.original_size(index)

    def thumbnails(self) -> Thumbnails:
        """Return gray images for the search of copies."""
        return self.inner.thumbnails()

    def digest(self, index: int) -> bytes:
        """Return the digest of an image."""
        return self.inner.digest(index)

    def digests(self) -> list[bytes]:
        """Return the digest of each image."""
        return self.inner.digests()


def unwrap_source(source: ImageSource) -> ImageSource:
    """Return the source inside of all wrappers."""
    while isinstance(source, WrappedSource):
        source = source.inner
    return source


def to_unit(x: Tensor) -> Tensor:
    """Convert images to float32 in 0..1.

    Args:
        x: uint8 of which 255 means 1, or float32 already.
    """
    return x.float().div_(255.0) if x.dtype == torch.uint8 else x
