"""An export as a classifier, for ``vitrail predict`` and ``evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.engines.inputs import to_inputs
from vitrail.engines.load import Export, load_export
from vitrail.errors import ConfigError
from vitrail.explain.methods.maps import Explanation, as_streams
from vitrail.models.modality import MODALITIES
from vitrail.runs.trained import ModelCard, card_from_values

# Method of the heatmap.
ROLLOUT = "rollout"
# Data settings by which files are read; the others tell where training images lie, and stay out.
READING = (
    "bands.names", "bands.files", "bands.wavelengths", "bands.use", "spectral.use", "scale", "values.offset",
    "values.range", "values.nodata", "images.max_pixels", "spectral.names", "spectral.wavelengths", "spectral.scale",
    "spectral.offset", "spectral.range", "spectral.nodata", "video.fps", "video.folder_fps", "video.views",
    "video.crops", "up", "points.features", "points.subsample", "points.scale", "points.seed",
)  # fmt: skip


@dataclass(frozen=True)
class ExportedModel:
    """A loaded export, with the model card of its run.

    Attributes:
        export: The export.
        card: Description of inputs and outputs.
        reading: Data settings by which files are read.
    """

    export: Export
    card: ModelCard
    reading: DataConfig

    def classify(self, batch: Mapping[str, Tensor], tta: str = "none") -> tuple[Tensor, Tensor]:
        """Compute logits and embeddings of a batch, as :meth:`vitrail.runs.TrainedModel.classify` does.

        Args:
            batch: Streams as the pipeline prepares them: images in 0..1 at the model's size, ``(B, C, H, W)`` each.
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
        names = tuple(name for name in self.card.streams if heatmap_of(name) in outputs)
        maps = [torch.from_numpy(outputs[heatmap_of(name)]) for name in names]
        explanation = Explanation(as_streams(names, maps), ROLLOUT)
        return torch.from_numpy(outputs["logits"]), {ROLLOUT: explanation}


def heatmap_of(stream: str) -> str:
    """Return the name of the output with a stream's heatmap."""
    return "heatmap" if stream in MODALITIES else f"heatmap_{stream}"


def load_exported(path: str | Path, threads: int | None = None) -> ExportedModel:
    """Load an export as a classifier; arguments and errors as for :func:`vitrail.engines.load_export`."""
    export = load_export(path, threads)
    card = card_from_values(export.record["model"])
    reading = DataConfig().changed({key: _as_tuple(value) for key, value in export.record["reading"].items()})
    return ExportedModel(export, card, card.as_trained(reading))


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
