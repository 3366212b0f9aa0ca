"""Interface of sources whose images are encoded: in files, or as bytes in a table."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt

from vitrail.data.file_reader import FileReader
from vitrail.data.sources.base import ImageSource


class EncodedSource(ImageSource):
    """Images that are decoded when they are read, as any other program can.

    Attributes:
        readers: Reader of each stream.
    """

    readers: dict[str, FileReader]

    @abstractmethod
    def read_stored(self, stream: str, index: int) -> npt.NDArray[Any]:
        """Read an image in full and in its own units, as other programs do.

        Args:
            stream: Key of ``readers``.
            index: Which image.

        Returns:
            Shape ``(C, H, W)``; float32 with NaN where there is no data, else of the stored type.

        Raises:
            DataError: An image that cannot be read.
        """

    @contextmanager
    def in_full(self) -> Iterator[None]:
        """Decode images in full, whatever the size wanted of them."""
        readers = self.readers
        self.readers = {name: dataclasses.replace(reader, in_full=True) for name, reader in readers.items()}
        try:
            yield
        finally:
            self.readers = readers
