"""Stored form of a run's image files, and the resize of evaluation to the model's size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt
import torch

from vitrail.config.data import DataConfig
from vitrail.data.dataset import ImageData
from vitrail.data.evaluation_crop import size_to_read
from vitrail.data.file_reader import FileReader, file_readers
from vitrail.data.listing import is_tiff
from vitrail.data.sources.base import unwrap_source
from vitrail.data.sources.embedded import EmbeddedSource
from vitrail.data.sources.encoded import EncodedSource, StoredSource
from vitrail.data.sources.files import FileSource
from vitrail.data.value_range import PHYSICAL, ValueRange
from vitrail.deploy.images import files_config, needs_spectral_files
from vitrail.engines.base import Arrays
from vitrail.runs.trained import ModelCard

# Types of stored values that an export takes; all others are given as float32.
_TYPES = {"bool": torch.uint8, "uint8": torch.uint8, "uint16": torch.uint16, "int16": torch.int16}


@dataclass(frozen=True)
class Stored(ABC):
    """Stored values of one stream, and their way to the model's input.

    Attributes:
        bands: Names of the bands, in order.
        dtype: Type of the values; float32 has NaN where there is no data.
        low: Value of each band (or of all) that becomes 0; empty where values have no range.
        high: Value that becomes 1.
    """

    bands: tuple[str, ...]
    dtype: torch.dtype
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    @abstractmethod
    def shape(self) -> tuple[int | None, ...]:
        """Shape of a batch; None where free."""

    def read(self, source: StoredSource, stream: str, index: int) -> npt.NDArray[Any]:
        """Read an input of a source as another program reads it, without the batch."""
        return source.read_stored(stream, index)

    @abstractmethod
    def invert(self, prepared: torch.Tensor, enlarge: tuple[int, int]) -> torch.Tensor:
        """Return stored values that become inputs like these; height and width are enlarged by factors."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe the way to the model's input, for export.json."""


@dataclass(frozen=True)
class StoredPixels(Stored):
    """Stored pixels of one stream, and their way to the model's size.

    Attributes:
        filter: "levels", the bicubic resize of 8-bit pictures with whole levels; "bicubic" or "bilinear" in float32.
        how: "crop" or "squash".
        size: Height and width after the resize, before evaluation cuts off a margin.
    """

    filter: Literal["levels", "bicubic", "bilinear"]
    how: Literal["crop", "squash"]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of a batch; None where free."""
        return (None, len(self.bands), None, None)

    def read(self, source: StoredSource, stream: str, index: int) -> npt.NDArray[Any]:
        """Decode an image in full, its bands in this order."""
        if not isinstance(source, EncodedSource):
            return super().read(source, stream, index)
        origin = origin_of(self.bands, stream, source.readers)
        assert origin is not None, "the stream is stored in files"
        bands = source.readers[origin].bands
        return source.read_stored(origin, index)[[bands.index(band) for band in self.bands]]

    def invert(self, prepared: torch.Tensor, enlarge: tuple[int, int]) -> torch.Tensor:
        """Convert pixels in 0..1 to stored values, each repeated along height and width."""
        low, high = (torch.tensor(side).view(-1, *[1] * (prepared.ndim - 2)) for side in (self.low, self.high))
        down, across = enlarge
        values = prepared.repeat_interleave(down, dim=-2).repeat_interleave(across, dim=-1) * (high - low) + low
        return values.round() if self.dtype != torch.float32 else values

    def describe(self) -> dict[str, Any]:
        """Describe the resize, for export.json."""
        return {"filter": self.filter, "how": self.how, "size": list(self.size)}


def stored_pixels(card: ModelCard, data: DataConfig, images: ImageData) -> tuple[dict[str, Stored], str]:
    """Describe the stored pixels of each input stream.

    Args:
        card: Model card of the run.
        data: Data settings of the run.
        images: Images of the run.

    Returns:
        The description by stream, and the reason why there is none; one of the two is empty.
    """
    names = card.input_streams
    needs_files = needs_spectral_files(card, data)
    if needs_files and data.spectral.names is None:
        return {}, f"image files do not bring the bands {', '.join(card.streams['spectral'].bands)}"
    config = files_config(card, data, "second files" if needs_files else None)
    readers = file_readers(config, size_to_read(card.img_size, card.crop_pct))
    found: dict[str, Stored] = {}
    for name in names:
        wanted = card.streams[name].bands
        origin = origin_of(wanted, name, readers)
        if origin is None:
            return {}, f"no single file holds the bands {', '.join(wanted)}"
        own = _of_reader(card, images, name, readers[origin], origin)
        if isinstance(own, str):
            return {}, own
        found[name] = own
    return found, ""


def origin_of(wanted: Sequence[str], stream: str, readers: Mapping[str, FileReader]) -> str | None:
    """Find the files that hold the bands of a stream: its own, or those of another stream."""
    names = [name for name in (stream, *readers) if name in readers]
    return next((name for name in names if set(wanted) <= set(readers[name].bands)), None)


def _of_reader(card: ModelCard, images: ImageData, name: str, reader: FileReader, origin: str) -> StoredPixels | str:
    """Describe one stream's pixels in the files of a reader, or return the reason why they cannot be described."""
    stream, bands = card.streams[name], card.streams[name].bands
    source = unwrap_source(images.source)
    files = source.files.get(origin, []) if isinstance(source, FileSource) else []
    # Images in tables are pictures.
    pictures = isinstance(source, EmbeddedSource)
    rasters = {reader.named and is_tiff(file) for file in files} or {reader.named and not pictures}
    if len(rasters) > 1:
        return "some images are rasters and others pictures"
    has_no_data = images.source.has_no_data or bool(reader.rule.no_data)
    stated = reader.rule.stated(len(reader.bands))
    if not rasters.pop():
        if has_no_data:
            return "the run's pictures have pixels without data, which 8-bit pixels cannot mark"
        stated = None if reader.named else stated
        limits = _of_bands(stated or ValueRange((0.0,), (255.0,)), reader.bands, bands)
        filter: Literal["levels", "bicubic"] = "levels" if stated is None else "bicubic"
        return StoredPixels(bands, torch.uint8, limits.low, limits.high, filter, card.resize, reader.size)
    kind = stream.value_type
    if stated is None and kind is None:
        return "the range of the stored values is not known"
    if stated is None:
        stated = reader.rule.range_of(kind or "", kind == PHYSICAL, len(reader.bands))
        assert stated is not None, "the type decided the range in training"
    elif files and kind is None:
        kind = reader.stored_type(files[0])  # type: ignore[assignment]
    dtype = torch.float32 if has_no_data else _TYPES.get(kind or "", torch.float32)
    limits = _of_bands(stated, reader.bands, bands)
    return StoredPixels(bands, dtype, limits.low, limits.high, "bilinear", card.resize, reader.size)


def _of_bands(limits: ValueRange, bands: tuple[str, ...], wanted: tuple[str, ...]) -> ValueRange:
    """Select the range of some bands."""
    own = [bands.index(name) for name in wanted]
    low, high = (side if len(side) == 1 else tuple(side[i] for i in own) for side in (limits.low, limits.high))
    return ValueRange(low, high, limits.kind)


def as_stored(
    stored: Mapping[str, Stored], batch: Mapping[str, torch.Tensor], enlarge: tuple[int, int] = (2, 3)
) -> Arrays:
    """Convert prepared inputs to stored values: photographs of a shape that is cropped and resized, shifted clouds.

    Args:
        stored: Stored form of each stream.
        batch: Streams as the pipeline prepares them, images in 0..1, shape ``(B, C, H, W)`` each.
        enlarge: Factors of height and width.
    """
    return {
        name: own.invert(batch[name], enlarge).numpy().astype(str(own.dtype).removeprefix("torch."))
        for name, own in stored.items()
    }
