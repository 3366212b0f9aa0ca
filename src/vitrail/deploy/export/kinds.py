"""Inputs of an export by modality: their stored form, their preparation and their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vitrail.config.data import DataConfig
from vitrail.data.dataset import ImageData
from vitrail.data.normalization import CHANNELS_LAST
from vitrail.deploy.export.clips import stored_clips
from vitrail.deploy.export.clouds import PrepareClouds, stored_clouds
from vitrail.deploy.export.pixels import Prepare, PreparePixels
from vitrail.deploy.export.stored import Stored, stored_pixels
from vitrail.engines.openvino import INT8
from vitrail.models.modality import IMAGE, POINTS, VIDEO
from vitrail.runs.trained import ModelCard, StreamCard


@dataclass(frozen=True)
class InputKind:
    """Inputs of the exports of one modality.

    An export has two entries: inputs as they are stored, and inputs as the pipeline prepares them.

    Attributes:
        stored: Name of the first entry.
        prepared: Name of the second entry, also the suffix of its inputs.
        axes: Names of the axes of an input; "bands" are those that have names.
        describe: Describes how the inputs of a run are stored; gives the reason where they cannot be described.
        prepare: Builds the module from both entries to the inputs of the model.
        ranged: Whether values have a range, as pixels do.
        lacks: Precision -> reason why no export has it.
    """

    stored: str
    prepared: str
    axes: tuple[str, ...]
    describe: Callable[[ModelCard, DataConfig, ImageData], tuple[dict[str, Stored], str]]
    prepare: Callable[[ModelCard, Mapping[str, Stored]], Prepare]
    ranged: bool = True
    lacks: Mapping[str, str] = field(default_factory=dict)

    def range_of(self, dtype: torch.dtype) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the values of prepared inputs of a type that mean 0 and 1; empty without a range."""
        return ((0.0,), (255.0 if dtype == torch.uint8 else 1.0,)) if self.ranged else ((), ())

    def prepared_shape(self, name: str, stream: StreamCard) -> tuple[Any, ...]:
        """Return the shape of a batch of prepared inputs, None for the batch.

        Args:
            name: Name of the stream.
            stream: Its card.
        """
        bands = (len(stream.bands),)
        return (None, *stream.img_size, *bands) if name in CHANNELS_LAST else (None, *bands, *stream.img_size)


_KINDS = {
    IMAGE: InputKind(
        "photographs", "resized", ("batch", "bands", "height", "width"), stored_pixels, PreparePixels
    ),
    VIDEO: InputKind(
        "frames", "resized", ("batch", "bands", "time", "height", "width"), stored_clips, PreparePixels
    ),
    POINTS: InputKind(
        "clouds", "scaled", ("batch", "points", "bands"), stored_clouds, PrepareClouds, False,
        {INT8: "rounded coordinates have other nearest points, and rotations would change the logits"},
    ),
}  # fmt: skip


_EQUAL_PARTS = "labels of points are shown to be equal, in fp32 alone: points of a cloud give no bound of an agreement"
_PARTS = dataclasses.replace(_KINDS[POINTS], lacks={"bf16": _EQUAL_PARTS, INT8: _EQUAL_PARTS})


def kind_of(card: ModelCard) -> InputKind:
    """Return the inputs of the exports of a run."""
    return _PARTS if card.per_point else _KINDS[card.modality]
