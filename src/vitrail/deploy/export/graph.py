"""The graph of an export, from pixels to a decision."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.deploy.export.decisions import DecisionOutputs, Decisions
from vitrail.deploy.export.kinds import kind_of
from vitrail.deploy.export.pixels import prepared_streams
from vitrail.deploy.export.stored import Stored
from vitrail.deploy.exported import heatmap_of
from vitrail.engines.load import fill_shape
from vitrail.errors import ConfigError
from vitrail.explain.methods.relevance import lacks_rollout, relevance_streams
from vitrail.explain.methods.rollout import features_and_rollout
from vitrail.runs.trained import TrainedModel

# Outputs that are included on demand, besides logits and probabilities.
INCLUDE = ("embedding", "heatmap", "sets", "ood")
# Outputs of each of those that come from fitted decisions.
_DECIDED = {"sets": ("set",), "ood": ("ood_score", "ood_p_value")}


@dataclass(frozen=True)
class GraphInput:
    """Input of the exported graph.

    Attributes:
        name: Its name.
        entry: Entry of :class:`vitrail.deploy.export.kinds.InputKind`: inputs as they are stored, such as
            photographs of any size, or prepared ones, such as pixels at the model's size.
        prepared: Whether it is the latter, which takes the batches of the pipeline.
        stream: Stream that it belongs to.
        dtype: Type of the values; float32 has NaN where there is no data, or no point.
        axes: Names of the axes.
        shape: Length of each axis; None where free.
        bands: Names of the bands, in order.
        low: Value of each band (or of all) that means 0; empty where values have no range.
        high: Value that means 1.
        least: Smallest height and width.
    """

    name: str
    entry: str
    prepared: bool
    stream: str
    dtype: torch.dtype
    axes: tuple[str, ...]
    shape: tuple[int | None, ...]
    bands: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    least: tuple[int, int] = (1, 1)

    def example(self, batch: int) -> Tensor:
        """Return values of this type and shape."""
        # Of different lengths: torch.export takes equal ones for one symbol.
        sides = (37 + self.least[0], 53 + 2 * self.least[1])
        return torch.zeros(fill_shape(self.shape, batch, sides), dtype=self.dtype)

    def describe(self) -> dict[str, Any]:
        """Describe the input for export.json."""
        described = {**dataclasses.asdict(self), "dtype": str(self.dtype).removeprefix("torch.")}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in described.items()}


class ExportGraph(nn.Module):
    """Preprocessing, model and outputs of a trained run.

    An input of each entry is always there; a batch of one entry leaves the other empty (0 images). The model runs once,
    on the stored inputs and the prepared ones one after the other.

    Args:
        trained: The model, on the CPU.
        dtypes: Type of the prepared inputs of each stream: uint8, or float32, of pixels in 0..1.
        stored: Stored form of each input stream; empty for a graph without that entry.
        include: Outputs besides logits and probabilities, of :data:`INCLUDE`.
        decisions: Fitted values of "sets" and "ood", which need them; probabilities then have their temperature.
        least: Smallest height and width of each stream of a graph for pixels of any size; None for the card's size.

    Raises:
        ConfigError: An output that the model does not have.

    Attributes:
        inputs: Inputs in order.
        outputs: Names of the outputs in order.
        heatmaps: Stream -> name of the output with its heatmap; empty without heatmaps.
    """

    def __init__(
        self,
        trained: TrainedModel,
        dtypes: Mapping[str, torch.dtype],
        stored: Mapping[str, Stored] | None = None,
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
        kind = kind_of(card)
        self.prepare = kind.prepare(card, self.stored)
        self.inputs = [
            GraphInput(name, kind.stored, False, name, own.dtype, kind.axes, own.shape, own.bands, own.low, own.high)
            for name, own in self.stored.items()
        ]
        for name in prepared_streams(card):
            stream, dtype = card.streams[name], dtypes[name]
            shape, (low, high) = kind.prepared_shape(name, stream), kind.range_of(dtype)
            smallest = (1, 1) if least is None else least[name]
            if least is not None:
                shape = (*shape[:-2], None, None)
            self.inputs.append(
                GraphInput(
                    f"{name}_{kind.prepared}", kind.prepared, True, name, dtype, kind.axes, shape, stream.bands, low,
                    high, smallest,
                )
            )  # fmt: skip
        self.include = frozenset(include)
        self.outputs = ["logits", "probabilities"]
        if "embedding" in include:
            self.outputs.append("embedding")
        self.heatmaps: dict[str, str] = {}
        if "heatmap" in include:
            reason = lacks_rollout(self.model)
            if reason is not None:
                raise ConfigError(f"--include heatmap is not possible: {reason}")
            self.heatmaps = {name: heatmap_of(name) for name in relevance_streams(self.model)}
            self.outputs += self.heatmaps.values()
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
            ``(B, H, W)`` at the model's size (of clips ``(B, T, H, W)``, of clouds ``(B, N)``), sets ``(B, K)``,
            out-of-distribution scores and p-values ``(B,)``. Of a model that labels points logits and probabilities are
            ``(B, N, K)`` and the embedding ``(B, N, C)``; logits and embedding are 0 where there is no point.
        """
        inputs = self.prepare(*pixels)
        heatmaps: dict[str, Tensor] = {}
        if self.heatmaps:
            features, rollout = features_and_rollout(self.model, *inputs)
            heatmaps = {self.heatmaps[name]: own.map for name, own in rollout.by_stream(self.model).items()}
        else:
            features = self.model.forward_features(*inputs)
        logits = self.model.forward_head(features).float()
        embedding = self.model.forward_head(features, pre_logits=True).float()
        if self.card.per_point:
            real = inputs[0].isfinite().all(dim=-1, keepdim=True)
            logits, embedding = (torch.where(real, x, 0.0) for x in (logits, embedding))
        if self.decide is None:
            decided = {"probabilities": self.card.probabilities(logits)}
        else:
            decided = self.decide(logits, embedding)
        outputs = {"logits": logits, "embedding": embedding, **heatmaps, **decided}
        return {name: outputs[name] for name in self.outputs}
