"""Image files as another program gives them to an export: decoded in full, at their own size, in their own units."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vitrail.data.dataset import ImageData
from vitrail.data.sources.base import unwrap_source
from vitrail.data.sources.files import FileSource
from vitrail.deploy.export.stored import StoredPixels, origin_of
from vitrail.engines.base import Arrays
from vitrail.engines.load import Export
from vitrail.errors import DataError

# Images of one size that are run at once, and their pixels together: the resize in the graph holds them in float32.
_BATCH, _PIXELS = 32, 1 << 22


def file_source(images: ImageData) -> FileSource | None:
    """Return the source of images that lie in files; None for arrays."""
    source = unwrap_source(images.source)
    return source if isinstance(source, FileSource) else None


@contextmanager
def decoded_in_full(source: FileSource) -> Iterator[None]:
    """Let a source decode its files in full, whatever the size wanted of them."""
    readers = source.readers
    source.readers = {name: dataclasses.replace(reader, in_full=True) for name, reader in readers.items()}
    try:
        yield
    finally:
        source.readers = readers


def read_photographs(source: FileSource, stored: Mapping[str, StoredPixels], index: int) -> Arrays:
    """Read the files of an image in full.

    Args:
        source: Source of the image.
        stored: How the pixels of each stream are stored.
        index: Index of the image.

    Returns:
        Arrays by stream, shape ``(1, C, H, W)``.

    Raises:
        DataError: Values that the export's input cannot hold.
    """
    found: Arrays = {}
    for name, own in stored.items():
        origin = origin_of(own.bands, name, source.readers)
        assert origin is not None, "the stream is stored in files"
        reader, file = source.readers[origin], source.files[origin][index]
        values = reader.read_stored(file)[[reader.bands.index(band) for band in own.bands]]
        found[name] = _of_type(values, own.dtype, file)[None]
    return found


def _of_type(values: npt.NDArray[np.generic], dtype: torch.dtype, file: Path) -> npt.NDArray[np.generic]:
    wanted = np.dtype(str(dtype).removeprefix("torch."))
    if values.dtype != wanted and not np.can_cast(values.dtype, wanted, "same_kind" if wanted.kind == "f" else "safe"):
        raise DataError(
            f"{file} holds {values.dtype.name} values or pixels without data, and the export takes {wanted.name}; "
            "leave it out"
        )
    return values.astype(wanted)


def run_photographs(
    export: Export, source: FileSource, stored: Mapping[str, StoredPixels], indices: Sequence[int]
) -> Iterator[Arrays]:
    """Run an export on image files, decoded in full; neighbours of one size are a batch.

    Yields:
        Outputs of each batch, by name.
    """
    batch: list[Arrays] = []
    for index in indices:
        image = read_photographs(source, stored, index)
        if batch and not _fits(image, batch):
            yield export.run(_stack(batch))
            batch = []
        batch.append(image)
    if batch:
        yield export.run(_stack(batch))


def _fits(image: Arrays, batch: Sequence[Arrays]) -> bool:
    same = all(x.shape == batch[0][name].shape for name, x in image.items())
    pixels = max(x.shape[2] * x.shape[3] for x in image.values())
    return same and len(batch) < _BATCH and (len(batch) + 1) * pixels <= _PIXELS


def _stack(batch: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([image[name] for image in batch]) for name in batch[0]}
