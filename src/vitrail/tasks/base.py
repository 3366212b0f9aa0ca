"""Base class of all tasks, supervised and pre-training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from vitrail.data.normalization import NormalizeStreams
from vitrail.models.base import VisionModel
from vitrail.tasks.optim import parameter_groups


class Task(nn.Module, ABC):
    """A model with its input normalisation, augmentation and loss.

    A training step computes ``loss(task(batch), batch)`` on the output of :meth:`prepare`.

    Args:
        model: Model to train.
        normalize: Normalises streams in 0..1 to the model's inputs.
        augment: Augmentation of a batch's streams in 0..1, in training only.

    Attributes:
        betas: Betas of AdamW.
        unused: Whether some parameters of the model get no gradient from the loss.
    """

    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    unused: ClassVar[bool] = False

    def __init__(self, model: VisionModel, normalize: NormalizeStreams, augment: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.normalize = normalize
        self.augment = augment

    def streams(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Select the streams of a batch."""
        return {name: batch[name] for name in self.normalize if name in batch}

    def prepare(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Augment a batch in training; return it unchanged in evaluation.

        Args:
            batch: Streams in 0..1, shape ``(B, C, H, W)`` each; other keys are passed through.
        """
        if not self.training or self.augment is None:
            return dict(batch)
        return {**batch, **self.augment(self.streams(batch))}

    @abstractmethod
    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Compute the loss from the task's output."""

    def parameter_groups(
        self, weight_decay: float, learning_rate: float, layer_decay: float = 1.0
    ) -> list[dict[str, Any]]:
        """Build the optimiser's parameter groups: the model's, and those of the task's own modules.

        Args:
            weight_decay: Weight decay of parameters with more than one dimension.
            learning_rate: Learning rate of the task's own modules; layer decay lowers that of the model's layers.
            layer_decay: See :func:`~vitrail.tasks.optim.parameter_groups`.
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
