"""Preprocessing as tensor operations: from pixels to the model's normalised inputs, inside the exported graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.data.sources.edges import edges
from vitrail.runs.trained import ModelCard


class UnitRange(nn.Module):
    """Bring pixels of the model's size to 0..1, and fill those without data.

    Args:
        fill: Value of each band for pixels without data, in units of 0..1: the training mean.
    """

    def __init__(self, fill: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("fill", torch.tensor(fill, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.fill: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Convert uint8, or float32 in 0..1 with NaN where there is no data; shape ``(B, C, H, W)`` in and out."""
        if x.dtype == torch.uint8:
            return x.float() / 255.0
        return torch.where(x.isnan(), self.fill, x)


class PreparePixels(nn.Module):
    """Prepare pixels of the model's size: 0..1, derived streams, normalisation.

    Args:
        card: Model card of the run.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.names = resized_streams(card)
        self.derives_edges = len(self.names) < len(card.streams)
        self.unit = nn.ModuleDict({name: UnitRange(card.streams[name].mean) for name in self.names})
        self.normalize = card.normalization()

    def forward(self, *pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the model's inputs.

        Args:
            *pixels: One tensor for each of :func:`resized_streams`, shape ``(B, C, H, W)``.
        """
        streams = {name: self.unit[name](x) for name, x in zip(self.names, pixels, strict=True)}
        if self.derives_edges:
            streams["spectral"] = edges(streams["image"])
        inputs: tuple[Tensor, ...] = self.normalize(streams)
        return inputs


def resized_streams(card: ModelCard) -> tuple[str, ...]:
    """Return the streams that pixels of the model's size must bring.

    Edges are derived from the image in the graph, unless evaluation cuts off a margin: edges at the border then see
    pixels that are not there.
    """
    return card.input_streams if card.crop_pct == 1 else tuple(card.streams)
