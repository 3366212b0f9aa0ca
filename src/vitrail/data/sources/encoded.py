"""Interfaces of sources that other programs can read too: images in files or in a table, clips, point clouds."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt

from vitrail.data.file_reader import FileReader
from vitrail.data.sources.base import ImageSource


class StoredSource(ImageSource):
    """Inputs that are stored in their own size and units, in which any other program reads them."""

    @abstractmethod
    def read_stored(self, stream: str, index: int) -> npt.NDArray[Any]:
        """Read an image in full and in its own units, as other programs do.

        Args:
            stream: Name of the stream, or of another one whose files hold its bands.
            index: Index of the image.

        Returns:
            Shape ``(C, H, W)``, of a clip ``(C, T, H, W)``, of a cloud ``(N, C)``; float32 with NaN where there is no
            data, else of the stored type.

        Raises:
            DataError: An image that cannot be read.
        """

    def stored_size(self, index: int) -> tuple[int, ...]:
        """Return the size of an image as it is stored; those of one size fit in a batch."""
        return self.original_size(index)

    @contextmanager
    def in_full(self) -> Iterator[None]:
        """Decode images in full, whatever the size wanted of them."""
        yield


class EncodedSource(StoredSource):
    """Images that are decoded when they are read.

    Attributes:
        readers: Reader of each stream.
    """

    readers: dict[str, FileReader]

    @contextmanager
    def in_full(self) -> Iterator[None]:
        """Decode images in full, whatever the size wanted of them."""
        readers = self.readers
        self.readers = {name: dataclasses.replace(reader, in_full=True) for name, reader in readers.items()}
        try:
            yield
        finally:
            self.readers = readers
