"""One graph from pixels to a decision: what an export computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.deploy.export.pixels import PreparePixels, resized_streams
from vitrail.runs.trained import TrainedModel

# Suffix of the inputs that take pixels at the model's size; a stream's own name takes photographs of any size.
RESIZED = "_resized"


@dataclass(frozen=True)
class GraphInput:
    """Input of the exported graph.

    Attributes:
        name: Its name.
        stream: Stream that it belongs to.
        dtype: Type of the values; uint8 of which 255 means 1, or float32 in 0..1 with NaN where there is no data.
        shape: Batch, bands, height and width; None where free.
        bands: Names of the bands, in order.
    """

    name: str
    stream: str
    dtype: torch.dtype
    shape: tuple[int | None, int, int | None, int | None]
    bands: tuple[str, ...]

    def example(self, batch: int) -> Tensor:
        """Return pixels of this type and shape."""
        _, bands, height, width = self.shape
        shape = (batch, bands, height or 8, width or 8)
        return torch.zeros(shape, dtype=self.dtype) if self.dtype == torch.uint8 else torch.full(shape, 0.5)

    def describe(self) -> dict[str, Any]:
        """Describe the input for export.json."""
        values = "0 to 255" if self.dtype == torch.uint8 else "0 to 1, NaN where there is no data"
        return {
            "name": self.name,
            "stream": self.stream,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": list(self.shape),
            "bands": list(self.bands),
            "values": values,
        }


class ExportGraph(nn.Module):
    """Preprocessing, model and outputs of a trained run.

    Args:
        trained: The model, on the CPU.
        dtypes: Type of the resized pixels of each input stream, uint8 or float32; see :class:`GraphInput`.

    Attributes:
        inputs: Inputs in order: the resized pixels of each stream of :func:`resized_streams`.
        outputs: Names of the outputs in order.
    """

    def __init__(self, trained: TrainedModel, dtypes: Mapping[str, torch.dtype]) -> None:
        super().__init__()
        self.card = trained.card
        self.model = trained.model
        self.prepare = PreparePixels(trained.card)
        streams = {name: self.card.streams[name] for name in resized_streams(self.card)}
        self.inputs = [
            GraphInput(name + RESIZED, name, dtypes[name], (None, len(stream.bands), *stream.img_size), stream.bands)
            for name, stream in streams.items()
        ]
        self.outputs = ["logits", "probabilities", "embedding"]

    def forward(self, *pixels: Tensor) -> dict[str, Tensor]:
        """Classify a batch.

        Args:
            *pixels: One tensor for each of :attr:`inputs`, in order.

        Returns:
            The tensors of :attr:`outputs` by name: logits and probabilities ``(B, K)``, embedding ``(B, C)``.
        """
        features = self.model.forward_features(*self.prepare(*pixels))
        logits = self.model.forward_head(features).float()
        return {
            "logits": logits,
            "probabilities": self.card.probabilities(logits),
            "embedding": self.model.forward_head(features, pre_logits=True).float(),
        }
