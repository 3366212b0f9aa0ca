"""Trained models of run folders: the network, and the meaning of its inputs and outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.config.typed import as_tuples
from vitrail.data.augment.test_time import TURNED, tta_views
from vitrail.data.normalization import NormalizeStreams
from vitrail.data.points.rotations import rotate_clouds
from vitrail.data.sources.edges import edges
from vitrail.errors import ConfigError, DataError, RunError, WeightsError, few, first_line
from vitrail.models.base import VisionModel
from vitrail.models.modality import MODALITIES, Modality, is_per_point
from vitrail.models.registry import complete_settings, create_model
from vitrail.runs.folder import RunFolder
from vitrail.weights.load import load_weights
from vitrail.weights.remedies import RUN
from vitrail.weights.write import write_weights


@dataclass(frozen=True)
class StreamCard:
    """Description of one input stream.

    Attributes:
        bands: Names of the bands, in the order of the channels.
        mean: Mean of each band over the training images, values in 0..1.
        std: Standard deviation of each band over the training images.
        img_size: Height and width in training, or the number of points of a cloud.
        value_type: Type that determined the range of the stored values, or "physical"; see ``data.values.value_type``.
    """

    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    img_size: tuple[Any, ...]
    value_type: Literal["bool", "uint8", "uint16", "int16", "physical"] | None = None


@dataclass(frozen=True)
class ModelCard:
    """Content of model.json.

    Attributes:
        name: Variant or family of the model.
        settings: Settings of the model, including ``num_classes``, ``in_chans`` and ``img_size``.
        classes: Class names, in the order of the logits.
        streams: Input streams in order: "image", and "spectral" if there are two; "video" for clips.
        resize: Resizing of images, "crop" or "squash".
        crop_pct: Share of each side of the resized image that the model sees; see ``data.images.crop_pct``.
        color: "rgb" or "gray".
        spectral: Origin of a derived spectral stream: "none", or "edges" of the image.
        epoch: Epoch of the weights, from 0.
        label_separator: Separator of multi-label targets; None for single-label targets.
    """

    name: str
    settings: dict[str, Any]
    classes: tuple[str, ...]
    streams: dict[str, StreamCard]
    resize: Literal["crop", "squash"] = "crop"
    color: Literal["rgb", "gray"] = "rgb"
    spectral: Literal["none", "edges"] = "none"
    epoch: int = 0
    label_separator: str | None = None
    crop_pct: float = 1.0

    @property
    def multi_label(self) -> bool:
        """Whether targets are multi-label."""
        return self.label_separator is not None

    @property
    def per_point(self) -> bool:
        """Whether the model labels points instead of whole clouds: classes are parts."""
        return is_per_point(self.settings)

    def part_numbers(self, parts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Map the parts of a source to the model's classes, shape ``(len(parts) + 1,)``; the last, -1, is unlabelled.

        Args:
            parts: Their names.

        Raises:
            DataError: Parts that the run does not know.
        """
        unknown = [part for part in parts if part not in self.classes]
        if unknown:
            raise DataError(f"the data has the parts {few(unknown)}, and the run knows {few(list(self.classes))} alone")
        return np.array([*map(self.classes.index, parts), -1])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Convert logits ``(B, K)``, or of points ``(B, N, K)``, to probabilities."""
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)

    @property
    def modality(self) -> Modality:
        """Kind of the inputs."""
        return MODALITIES[next(iter(self.streams))]

    @property
    def input_streams(self) -> tuple[str, ...]:
        """Streams that are not derived from the image."""
        derived = ("spectral",) if self.spectral == "edges" else ()
        return tuple(name for name in self.streams if name not in derived)

    @property
    def img_size(self) -> tuple[Any, ...]:
        """Height and width of the first stream, or the number of points of a cloud."""
        return next(iter(self.streams.values())).img_size

    def as_trained(self, config: DataConfig) -> DataConfig:
        """Override data settings so that images are read as in training.

        Args:
            config: Data settings.
        """
        kinds = {name: stream.value_type for name, stream in self.streams.items()}
        return config.changed(
            {
                "images.resize": self.resize,
                "images.crop_pct": self.crop_pct,
                "color": self.color,
                "spectral.derive": self.spectral,
                "values.value_type": kinds.get("image"),
                "spectral.value_type": kinds.get("spectral"),
            }
        )

    def filling(self) -> dict[str, tuple[float, ...]]:
        """Fill values of pixels without data: the mean of each band, by stream."""
        return {name: stream.mean for name, stream in self.streams.items()}

    def normalization(self) -> NormalizeStreams:
        """Build the normalisation of the inputs."""
        return NormalizeStreams({name: (stream.mean, stream.std) for name, stream in self.streams.items()})


class Classifier(Protocol):
    """A trained run or an export."""

    @property
    def card(self) -> ModelCard:
        """Description of inputs and outputs."""
        ...

    def classify(self, batch: Mapping[str, Tensor], tta: str = "none") -> tuple[Tensor, Tensor]:
        """Compute logits and embeddings of a batch."""
        ...


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, with its card.

    Attributes:
        model: The network.
        normalize: Normalisation applied to the inputs.
        card: Description of inputs and outputs.
    """

    model: VisionModel
    normalize: NormalizeStreams
    card: ModelCard

    def inputs(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Normalise a batch and move it to the model's device: one tensor ``(B, C, H, W)`` for each stream at hand."""
        found: tuple[Tensor, ...] = self.normalize(
            {name: batch[name].to(self.device) for name in self.normalize if name in batch}
        )
        return found

    @torch.inference_mode()
    def classify(self, batch: Tensor | Mapping[str, Tensor], tta: str = "none") -> tuple[Tensor, Tensor]:
        """Compute logits and embeddings of a batch.

        Args:
            batch: Streams in 0..1, shape ``(B, C, H, W)`` each, on any device; other keys are ignored.
                Of one stream the tensor alone will do.
            tta: Test-time augmentation: a key of :data:`vitrail.data.augment.test_time.VIEWS`, over whose views
                probabilities are averaged, or of :data:`vitrail.data.augment.test_time.TURNED`.

        Returns:
            Logits ``(B, K)`` (of the mean probabilities) and pre-logit features ``(B, C)`` (their mean), float32.

        Raises:
            ConfigError: Unknown test-time augmentation.
            ShapeError: A tensor alone for a model of several streams.
        """
        views = tta_views(tta)
        batch = self.normalize.by_name(batch)
        if tta in TURNED:
            numbers = batch.get("index", torch.arange(len(batch["points"])))
            batch = {**batch, "points": rotate_clouds(batch["points"], numbers.tolist(), tta)}
        inputs = self.inputs(batch)
        outputs = [self._forward(*(view(x) for x in inputs)) for view in views]
        embedding = torch.stack([embedding for _, embedding in outputs]).mean(dim=0)
        if len(outputs) == 1:
            return outputs[0][0], embedding
        logits = torch.stack([logits for logits, _ in outputs]).double()
        if self.card.multi_label:
            # Means of p and 1 - p are computed in log space, so that 1 - p does not round to 0.
            positive, negative = (torch.logsumexp(F.logsigmoid(v), dim=0) for v in (logits, -logits))
            return (positive - negative).float(), embedding
        mean = torch.logsumexp(logits.log_softmax(dim=2), dim=0) - math.log(len(outputs))
        return mean.float(), embedding

    def _forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.forward_features(*inputs)
        embedding = self.model.forward_head(features, pre_logits=True)
        return self.model.forward_head(features).float(), embedding.float()

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> TrainedModel:
        """Move to another device."""
        return TrainedModel(self.model.to(device), self.normalize.to(device), self.card)


def with_derived_streams(card: ModelCard, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Recompute the streams that are derived from the image.

    Args:
        card: The model's card.
        streams: Inputs in 0..1, shape ``(B, C, H, W)`` each.
    """
    return {**streams, "spectral": edges(streams["image"])} if card.spectral == "edges" else dict(streams)


def write_trained(run: RunFolder, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write model.safetensors and model.json."""
    write_weights(run.weights, state, card.name, complete_settings(card.name, card.settings))
    run.write_json(run.card, dataclasses.asdict(card))


def card_from_values(content: Mapping[str, Any]) -> ModelCard:
    """Build a card from the plain values of JSON."""
    streams = {name: StreamCard(**as_tuples(stream)) for name, stream in content["streams"].items()}
    return ModelCard(**{**as_tuples(content), "streams": streams})


def load_trained(path: str | Path | RunFolder) -> TrainedModel:
    """Load a run's best model.

    Args:
        path: The run folder.

    Raises:
        RunError: A file is missing or damaged, or the weights do not match model.json.
    """
    run = path if isinstance(path, RunFolder) else RunFolder.open(path)
    unfinished = f"train it first (`vitrail train {run.recipe} --resume` goes on with an interrupted run)"
    content = run.read_json(run.card, unfinished)
    run.require(run.weights, unfinished)
    try:
        card = card_from_values(content)
        model = create_model(card.name, **as_tuples(card.settings))
    except (TypeError, AttributeError, KeyError, ConfigError) as error:
        raise RunError(f"{run.card} does not describe a model of this version: {error}") from error
    try:
        load_weights(model, run.weights, source="vitrail", spelling=RUN)
    except WeightsError as error:
        raise RunError(f"the weights of {run.path} do not fit its model.json: {error}") from error
    return TrainedModel(model.eval(), card.normalization(), card)


def load_classifier(path: str | Path | RunFolder) -> TrainedModel:
    """Load a run's best model, and check that it has classes.

    Args:
        path: The run folder.

    Raises:
        RunError: As for :func:`load_trained`, or the run is a pre-training.
    """
    trained = load_trained(path)
    if not trained.card.classes:
        raise RunError(
            f"{path} was pre-trained without labels and knows no classes; fine-tune from it "
            f"(`vitrail train --model.weights {path} ...`) and take that run"
        )
    return trained


def choose_device(name: str) -> torch.device:
    """Select a device; "auto" prefers a GPU.

    Raises:
        ConfigError: The device is unavailable.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {first_line(error)}") from error
    return device
