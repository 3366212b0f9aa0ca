"""What every task has in common, with labels or without."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from vitrail.data.transforms import NormalizeStreams
from vitrail.models.base import VisionModel
from vitrail.tasks.optim import parameter_groups


class Task(nn.Module, ABC):
    """A model between its normalisation and its loss.

    A step of training is ``loss(task(batch), batch)`` of the batch that :meth:`prepare` gives.

    Args:
        model: Is trained.
        normalize: Makes its inputs from a batch whose streams are in 0..1.
        augment: Changes a batch's streams before that, in training only.

    Attributes:
        betas: Of AdamW.
        unused: Whether parts of the model take no part in the loss.
    """

    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    unused: ClassVar[bool] = False

    def __init__(self, model: VisionModel, normalize: NormalizeStreams, augment: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.normalize = normalize
        self.augment = augment

    def streams(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch's streams, without what else is in it."""
        return {name: batch[name] for name in self.normalize if name in batch}

    def prepare(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch as a step is to take it: augmented in training, as it is in evaluation.

        Args:
            batch: Streams in 0..1; other keys stay as they are.
        """
        if not self.training or self.augment is None:
            return dict(batch)
        return {**batch, **self.augment(self.streams(batch))}

    @abstractmethod
    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of what the task made of a batch."""

    def parameter_groups(
        self, weight_decay: float, learning_rate: float, layer_decay: float = 1.0
    ) -> list[dict[str, Any]]:
        """The model's groups, and those of what stands around it: one dimension or a token does not decay.

        Args:
            weight_decay: Of the others.
            learning_rate: Of what stands around the model; with a layer decay the model's layers have less.
            layer_decay: As for :func:`~vitrail.tasks.optim.parameter_groups`.
        """
        own = [p for name, p in self.named_parameters() if not name.startswith("model.") and p.requires_grad]
        groups = parameter_groups(self.model, weight_decay, learning_rate, layer_decay)
        for chosen, decay in (
            ([p for p in own if p.ndim > 1], weight_decay),
            ([p for p in own if p.ndim <= 1], 0.0),
        ):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "lr": learning_rate})
        return groups
