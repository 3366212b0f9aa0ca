"""Inputs as another program gives them to an export: decoded in full, at their own size, in their own units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vitrail.data.dataset import ImageData
from vitrail.data.sources.base import unwrap_source
from vitrail.data.sources.encoded import StoredSource
from vitrail.deploy.export.stored import Stored
from vitrail.engines.base import Arrays
from vitrail.engines.load import Export
from vitrail.errors import DataError

# Images of one size that are run at once, and their pixels together: the resize in the graph holds them in float32.
_BATCH, _PIXELS = 32, 1 << 22


def encoded_source(images: ImageData) -> StoredSource | None:
    """Return the source of inputs that other programs can read, in files or in a table; None for arrays."""
    source = unwrap_source(images.source)
    return source if isinstance(source, StoredSource) else None


def read_photographs(source: StoredSource, stored: Mapping[str, Stored], index: int) -> Arrays:
    """Decode an image, a clip or a cloud in full.

    Args:
        source: Source of the image.
        stored: Stored form of each stream.
        index: Index of the image.

    Returns:
        Arrays by stream, a batch of one.

    Raises:
        DataError: Values that the export's input cannot hold.
    """
    return {
        name: _of_type(own.read(source, name, index), own.dtype, source.keys[index])[None]
        for name, own in stored.items()
    }


def _of_type(values: npt.NDArray[Any], dtype: torch.dtype, image: str) -> npt.NDArray[Any]:
    wanted = np.dtype(str(dtype).removeprefix("torch."))
    if values.dtype != wanted and not np.can_cast(values.dtype, wanted, "same_kind" if wanted.kind == "f" else "safe"):
        raise DataError(
            f"{image} holds {values.dtype.name} values or pixels without data, and the export takes {wanted.name}; "
            "leave it out"
        )
    return values.astype(wanted)


def run_photographs(
    export: Export, source: StoredSource, stored: Mapping[str, Stored], indices: Sequence[int]
) -> list[Arrays]:
    """Run an export on images that are decoded in full; those of one size are run together.

    Returns:
        Outputs of each image, by name, in the order of the indices.
    """
    sizes = [source.stored_size(index) for index in indices]
    found: list[Arrays] = [{}] * len(indices)
    batch: list[Arrays] = []
    rows: list[int] = []

    def run() -> None:
        outputs = export.run({name: np.concatenate([image[name] for image in batch]) for name in batch[0]})
        for i, row in enumerate(rows):
            found[row] = {name: values[i : i + 1] for name, values in outputs.items()}
        batch.clear()
        rows.clear()

    for row in sorted(range(len(indices)), key=sizes.__getitem__):
        image = read_photographs(source, stored, indices[row])
        if batch and not _fits(image, batch):
            run()
        batch.append(image)
        rows.append(row)
    if batch:
        run()
    return found


def _fits(image: Arrays, batch: Sequence[Arrays]) -> bool:
    same = all(x.shape == batch[0][name].shape for name, x in image.items())
    pixels = max(math.prod(x.shape[2:]) for x in image.values())
    return same and len(batch) < _BATCH and (len(batch) + 1) * pixels <= _PIXELS
