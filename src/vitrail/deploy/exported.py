"""An export as a classifier: what ``vitrail predict`` and ``evaluate`` need of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.engines.base import Arrays
from vitrail.engines.load import Export, load_export
from vitrail.errors import ConfigError, DataError
from vitrail.explain.methods.maps import Explanation, as_streams
from vitrail.runs.trained import ModelCard, card_from_values

# Method of the heatmap.
ROLLOUT = "rollout"
# Data settings by which image files are read; the others tell where training images lie, and stay out.
READING = (
    "bands.names", "bands.files", "bands.wavelengths", "bands.use", "spectral.use", "scale", "values.offset",
    "values.range", "values.nodata", "images.max_pixels", "spectral.names", "spectral.wavelengths", "spectral.scale",
    "spectral.offset", "spectral.range", "spectral.nodata",
)  # fmt: skip


@dataclass(frozen=True)
class ExportedModel:
    """A loaded export, with the model card of its run.

    Attributes:
        export: The export.
        card: Description of inputs and outputs.
        reading: Data settings by which image files are read.
    """

    export: Export
    card: ModelCard
    reading: DataConfig

    def classify(self, batch: Mapping[str, Tensor], tta: str = "none") -> tuple[Tensor, Tensor]:
        """Compute logits and embeddings of a batch, as :meth:`vitrail.runs.TrainedModel.classify` does.

        Args:
            batch: Streams in 0..1 at the model's size, shape ``(B, C, H, W)`` each.
            tta: "none".

        Raises:
            ConfigError: Test-time augmentation, which an export does not have.
        """
        if tta != "none":
            raise ConfigError(f"--tta {tta} is not supported for an export; predict with the run folder")
        outputs = self.export.run(to_inputs(self.export.record, batch))
        logits = torch.from_numpy(outputs["logits"])
        embedding = outputs.get("embedding")
        # Without embeddings: no channels.
        return logits, logits.new_empty(len(logits), 0) if embedding is None else torch.from_numpy(embedding)

    def explain(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Explanation]]:
        """Compute the logits and heatmaps of a batch; the heatmaps are those of attention rollout.

        Args:
            batch: As for :meth:`classify`.

        Raises:
            ConfigError: The export has no heatmap.
        """
        if "heatmap" not in self.export.record["outputs"]:
            raise ConfigError(f"{self.export.folder} has no heatmap; export the run with --include heatmap")
        outputs = self.export.run(to_inputs(self.export.record, batch))
        maps = [torch.from_numpy(outputs[heatmap_of(name)]) for name in self.card.streams]
        explanation = Explanation(as_streams(tuple(self.card.streams), maps), ROLLOUT)
        return torch.from_numpy(outputs["logits"]), {ROLLOUT: explanation}


def heatmap_of(stream: str) -> str:
    """Return the name of the output with a stream's heatmap."""
    return "heatmap" if stream == "image" else f"heatmap_{stream}"


def load_exported(path: str | Path, threads: int | None = None) -> ExportedModel:
    """Load an export as a classifier; arguments and errors as for :func:`vitrail.engines.load_export`."""
    export = load_export(path, threads)
    card = card_from_values(export.record["model"])
    reading = DataConfig().changed({key: _as_tuple(value) for key, value in export.record["reading"].items()})
    return ExportedModel(export, card, card.as_trained(reading))


def to_inputs(record: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Arrays:
    """Convert a batch of the data pipeline to the inputs of an export that take pixels at the model's size.

    Args:
        record: Content of export.json.
        batch: Streams in 0..1, shape ``(B, C, H, W)`` each, float32.

    Raises:
        DataError: Pixels between the levels of 8 bits for an input of uint8.
    """
    arrays: Arrays = {}
    for entry in record["inputs"]:
        if entry["entry"] != "resized":
            continue
        unit = batch[entry["stream"]]
        arrays[entry["name"]] = unit.numpy() if entry["dtype"] == "float32" else _to_levels(unit)
    return arrays


def _to_levels(unit: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    levels = unit * 255
    rounded = levels.round()
    if not bool((levels - rounded).abs().max() < 1e-3):
        raise DataError(
            "pixels without data, or values of more than 8 bits, cannot be given to this export, which takes uint8; "
            "predict with the run folder"
        )
    return rounded.to(torch.uint8).numpy()


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
