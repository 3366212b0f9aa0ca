"""Preprocessing as tensor operations, in the exported graph: from stored pixels to the normalised inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitrail.data.evaluation_crop import crop_centre
from vitrail.data.rasters import LEAST_KNOWN
from vitrail.data.sources.edges import edges
from vitrail.deploy.export.resize import resize_by, resize_levels, resize_matrices
from vitrail.deploy.export.stored import Stored, StoredPixels
from vitrail.runs.trained import ModelCard


class ResizeStored(nn.Module):
    """Bring stored pixels of any height and width to 0..1 at the size that evaluation reads.

    Args:
        stored: Stored form of the pixels, and their resize.
    """

    def __init__(self, stored: StoredPixels) -> None:
        super().__init__()
        self.stored = stored
        low, high = (torch.tensor(side, dtype=torch.float64).view(-1, 1, 1) for side in (stored.low, stored.high))
        self.register_buffer("low", low.float(), persistent=False)
        self.register_buffer("width", (high - low).float(), persistent=False)
        self.low: Tensor
        self.width: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Crop and resize.

        Args:
            x: Stored values, shape ``(B, C, H, W)``, of clips ``(B, C, T, H, W)``.

        Returns:
            Shape ``(B, C, *size)``, of clips ``(B, C, T, *size)``, float32 in 0..1; NaN where there is no data.
        """
        filter = self.stored.filter
        rows, columns = resize_matrices(
            x.shape[-2],
            x.shape[-1],
            self.stored.size,
            self.stored.how,
            "bilinear" if filter == "bilinear" else "bicubic",
        )
        if filter == "levels":
            return resize_levels(x.float(), rows, columns) / 255.0
        unit = ((x.float() - self.low) / self.width).clamp(0.0, 1.0)
        if x.dtype == torch.float32:
            return resize_known(unit, rows, columns)
        small = resize_by(unit, rows, columns)
        return small.clamp(0.0, 1.0) if filter == "bicubic" else small


def resize_known(unit: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resize pixels of which some are NaN, as :func:`vitrail.data.rasters.resize_tensor` does."""
    lost = unit.isnan()
    known = resize_by(1.0 - lost.float(), rows, columns)
    small = resize_by(torch.where(lost, 0.0, unit), rows, columns) / known.clamp(min=LEAST_KNOWN)
    return torch.where(known < LEAST_KNOWN, float("nan"), small.clamp(0.0, 1.0))


class Prepare(nn.Module):
    """Prepare the model's inputs from stored inputs and from prepared ones, one batch after the other.

    Args:
        card: Model card of the run.
        stored: Brings the stored inputs of each stream to the pipeline's; empty where there is no such entry.
    """

    def __init__(self, card: ModelCard, stored: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.streams = tuple(card.streams)
        self.prepared = prepared_streams(card)
        self.stored = nn.ModuleDict(stored)
        self.normalize = card.normalization()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the model's inputs, those of the stored entry before the others.

        Args:
            *inputs: Stored inputs of each stream, then the prepared ones of each of :func:`prepared_streams`.
        """
        count = len(self.stored)
        read = {name: bring(x) for (name, bring), x in zip(self.stored.items(), inputs[:count], strict=True)}
        given = {name: to_unit(x) for name, x in zip(self.prepared, inputs[count:], strict=True)}
        parts = [self.finish(given)]
        if read:
            parts.insert(0, self.finish_stored(read))
        streams = {
            name: torch.cat([part[name] for part in parts]) if len(parts) > 1 else parts[0][name]
            for name in self.streams
        }
        found: tuple[Tensor, ...] = self.normalize({name: self.fill(name, x) for name, x in streams.items()})
        return found

    def finish(self, streams: dict[str, Tensor]) -> dict[str, Tensor]:
        """Derive the streams that are not given."""
        return streams

    def finish_stored(self, streams: dict[str, Tensor]) -> dict[str, Tensor]:
        """Derive the streams that are not stored, and crop as in evaluation."""
        return self.finish(streams)

    def fill(self, name: str, x: Tensor) -> Tensor:
        """Fill the values of a stream that are not known."""
        return x


class PreparePixels(Prepare):
    """Prepare the model's inputs from photographs, or frames, and from pixels at the model's size.

    Args:
        card: Model card of the run.
        stored: Stored form of the photographs of each input stream; empty where there is no such entry.
    """

    def __init__(self, card: ModelCard, stored: Mapping[str, Stored]) -> None:
        super().__init__(
            card, {name: ResizeStored(own) for name, own in stored.items() if isinstance(own, StoredPixels)}
        )
        self.size = card.img_size[-2:]
        for name, stream in card.streams.items():
            mean = torch.tensor(stream.mean).view(-1, *[1] * len(stream.img_size))
            self.register_buffer(f"fill_{name}", mean, persistent=False)

    def finish(self, streams: dict[str, Tensor]) -> dict[str, Tensor]:
        """Derive edges."""
        lacks_edges = "spectral" in self.streams and "spectral" not in streams
        return {**streams, "spectral": edges(streams["image"])} if lacks_edges else streams

    def finish_stored(self, streams: dict[str, Tensor]) -> dict[str, Tensor]:
        """Derive edges before the margin is cut off: those at the border see their neighbours."""
        return {name: crop_centre(x, self.size) for name, x in self.finish(streams).items()}

    def fill(self, name: str, x: Tensor) -> Tensor:
        """Fill pixels without data by the training mean."""
        return torch.where(x.isnan(), getattr(self, f"fill_{name}"), x)


def to_unit(x: Tensor) -> Tensor:
    """Convert pixels to 0..1: uint8 of which 255 means 1, or float32 already."""
    return x.float() / 255.0 if x.dtype == torch.uint8 else x


def prepared_streams(card: ModelCard) -> tuple[str, ...]:
    """Return the streams that prepared inputs must bring.

    Edges are derived from the image in the graph, unless evaluation cuts off a margin: edges at the border then see
    pixels that are not there.
    """
    return card.input_streams if card.crop_pct == 1 else tuple(card.streams)
