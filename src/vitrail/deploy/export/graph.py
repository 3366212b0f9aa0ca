"""One graph from pixels to a decision: what an export computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.deploy.export.decisions import DecisionOutputs, Decisions
from vitrail.deploy.export.pixels import Prepare, resized_streams
from vitrail.deploy.export.stored import StoredPixels
from vitrail.deploy.exported import heatmap_of
from vitrail.errors import ConfigError
from vitrail.explain.methods.relevance import lacks_rollout
from vitrail.explain.methods.rollout import features_and_rollout
from vitrail.runs.trained import TrainedModel

# Suffix of the inputs that take pixels at the model's size; those of photographs have the stream's own name.
RESIZED = "_resized"
# Outputs that are included on demand, besides logits and probabilities.
INCLUDE = ("embedding", "heatmap", "sets", "ood")
# Outputs of each of those that come from fitted decisions.
_DECIDED = {"sets": ("set",), "ood": ("ood_score", "ood_p_value")}


@dataclass(frozen=True)
class GraphInput:
    """Input of the exported graph.

    Attributes:
        name: Its name.
        entry: "photographs", of any height and width, or "resized", which is not resized: at the model's size, or any.
        stream: Stream that it belongs to.
        dtype: Type of the values; float32 has NaN where there is no data.
        shape: Batch, bands, height and width; None where free.
        bands: Names of the bands, in order.
        low: Value of each band (or of all) that means 0.
        high: Value that means 1.
        least: Smallest height and width.
    """

    name: str
    entry: str
    stream: str
    dtype: torch.dtype
    shape: tuple[int | None, int, int | None, int | None]
    bands: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    least: tuple[int, int] = (1, 1)

    def example(self, batch: int) -> Tensor:
        """Return pixels of this type and shape."""
        _, bands, height, width = self.shape
        # Of different lengths: torch.export takes equal ones for one symbol.
        return torch.zeros(
            (batch, bands, height or 37 + self.least[0], width or 53 + 2 * self.least[1]), dtype=self.dtype
        )

    def describe(self) -> dict[str, Any]:
        """Describe the input for export.json."""
        described = {**dataclasses.asdict(self), "dtype": str(self.dtype).removeprefix("torch.")}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in described.items()}


class ExportGraph(nn.Module):
    """Preprocessing, model and outputs of a trained run.

    An input of each entry is always there; a batch of one entry leaves the other empty (0 images). The model runs once,
    on the photographs and the resized images one after the other.

    Args:
        trained: The model, on the CPU.
        dtypes: Type of the resized pixels of each stream: uint8, or float32 in 0..1.
        stored: How photographs of each input stream are stored; empty for a graph without that entry.
        include: Outputs besides logits and probabilities, of :data:`INCLUDE`.
        decisions: Fitted values of "sets" and "ood", which need them; probabilities then have their temperature.
        least: Smallest height and width of each stream of a graph for pixels of any size; None for the card's size.

    Raises:
        ConfigError: An output that the model does not have.

    Attributes:
        inputs: Inputs in order.
        outputs: Names of the outputs in order.
    """

    def __init__(
        self,
        trained: TrainedModel,
        dtypes: Mapping[str, torch.dtype],
        stored: Mapping[str, StoredPixels] | None = None,
        include: Collection[str] = ("embedding",),
        decisions: Decisions | None = None,
        least: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self.card = card = trained.card
        self.model = trained.model
        self.stored = dict(stored or {})
        self.any_size = least is not None
        assert not (self.stored and self.any_size), "photographs are resized to one size"
        self.prepare = Prepare(card, self.stored)
        self.inputs = [
            GraphInput(name, "photographs", name, own.dtype, (None, len(own.bands), None, None), own.bands, own.low,
                       own.high)
            for name, own in self.stored.items()
        ]  # fmt: skip
        for name in resized_streams(card):
            stream, dtype = card.streams[name], dtypes[name]
            shape = (None, len(stream.bands), *((None, None) if least is not None else stream.img_size))
            high = (255.0,) if dtype == torch.uint8 else (1.0,)
            smallest = stream.img_size if least is None else least[name]
            self.inputs.append(
                GraphInput(name + RESIZED, "resized", name, dtype, shape, stream.bands, (0.0,), high, smallest)
            )
        self.include = frozenset(include)
        self.outputs = ["logits", "probabilities"]
        if "embedding" in include:
            self.outputs.append("embedding")
        if "heatmap" in include:
            reason = lacks_rollout(self.model)
            if reason is not None:
                raise ConfigError(f"--include heatmap is not possible: {reason}")
            self.outputs += [heatmap_of(name) for name in card.streams]
        self.outputs += [output for name, own in _DECIDED.items() if name in include for output in own]
        self.decisions = decisions
        self.decide = None if decisions is None else DecisionOutputs(decisions)

    @torch.no_grad()
    def compute(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph in eager mode on the inputs of one entry, by name."""
        pixels = [arrays[own.name] if own.name in arrays else own.example(0).numpy() for own in self.inputs]
        return {name: x.numpy() for name, x in self.eval()(*map(torch.from_numpy, pixels)).items()}

    def forward(self, *pixels: Tensor) -> dict[str, Tensor]:
        """Classify a batch.

        Args:
            *pixels: One tensor for each of :attr:`inputs`, in order.

        Returns:
            The tensors of :attr:`outputs` by name: logits and probabilities ``(B, K)``, embedding ``(B, C)``, heatmaps
            ``(B, H, W)`` at the model's size, sets ``(B, K)``, out-of-distribution scores and p-values ``(B,)``.
        """
        inputs = self.prepare(*pixels)
        heatmaps: dict[str, Tensor] = {}
        if "heatmap" in self.include:
            features, rollout = features_and_rollout(self.model, *inputs)
            heatmaps = {heatmap_of(name): own.map for name, own in rollout.by_stream(self.model).items()}
        else:
            features = self.model.forward_features(*inputs)
        logits = self.model.forward_head(features).float()
        embedding = self.model.forward_head(features, pre_logits=True).float()
        if self.decide is None:
            decided = {"probabilities": self.card.probabilities(logits)}
        else:
            decided = self.decide(logits, embedding)
        outputs = {"logits": logits, "embedding": embedding, **heatmaps, **decided}
        return {name: outputs[name] for name in self.outputs}
