"""Single-label and multi-label classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.data.augment import Mixing
from vitrail.data.augment.axes import as_channels
from vitrail.data.normalization import NormalizeStreams
from vitrail.models.base import VisionModel
from vitrail.tasks.base import Task
from vitrail.tasks.losses import ClassificationLoss, MultiLabelLoss

# One graph for each image size, in training and evaluation, before and after layers are unfrozen.
_MOST_GRAPHS = 256


class ClassificationTask(Task):
    """Supervised classification.

    Args:
        model: Returns logits ``(B, K)``.
        normalize: Normalises streams in 0..1 to the model's inputs.
        augment: Augmentation of a batch's streams in 0..1, in training only.
        criterion: Loss of logits ``(B, K)`` and classes ``(B,)`` or soft targets ``(B, K)``.
        mix: MixUp or CutMix, applied after ``augment``, in training only.

    Attributes:
        train_size: Height and width that training images are resized to before augmentation; None keeps theirs.
        compiled: Whether the model is compiled, see :meth:`compile_model`.
    """

    def __init__(
        self,
        model: VisionModel,
        normalize: NormalizeStreams,
        augment: nn.Module | None = None,
        criterion: nn.Module | None = None,
        mix: Mixing | None = None,
    ) -> None:
        super().__init__(model, normalize, augment)
        self.criterion = ClassificationLoss() if criterion is None else criterion
        self.mix = mix
        self.train_size: tuple[int, int] | None = None
        self.compiled = False

    @property
    def multi_label(self) -> bool:
        """Whether targets are multi-label."""
        return isinstance(self.criterion, MultiLabelLoss)

    def prepare(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Resize, augment and mix a batch in training; return it unchanged in evaluation.

        Args:
            batch: Streams in 0..1, shape ``(B, C, H, W)`` each, and ``target``.

        Returns:
            The batch; ``target`` is soft, shape ``(B, K)``, where images are mixed.
        """
        if not self.training:
            return dict(batch)
        streams = self.streams(batch)
        if self.train_size is not None:
            streams = _resized(streams, self.train_size)
        if self.augment is not None:
            streams = self.augment(streams)
        changed = {**batch, **streams}
        if self.mix is not None:
            streams, changed["target"] = self.mix(streams, batch["target"])
            changed.update(streams)
        return changed

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Compute logits ``(B, K)`` of the output of :meth:`prepare`, streams in 0..1."""
        images = self.normalize(self.streams(batch))
        if self.compiled:
            for image in images:
                # Training batches have one size; the last batch of an evaluation may be smaller.
                sizes = list(range(2, image.ndim))
                torch._dynamo.mark_static(image, [0, *sizes] if self.training else sizes)
        logits: Tensor = self.model(*images)
        return logits

    def logits(self, output: Any) -> Tensor:
        """Return the logits ``(B, K)`` of an output of :meth:`forward`."""
        logits: Tensor = output
        return logits

    def labelled(self, output: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits ``(N, K)`` and their targets: of the images ``(B, K)`` and ``(B,)``, or soft ones."""
        return self.logits(output), batch["target"]

    def compile_model(self, **settings: Any) -> None:
        """Compile the model with torch.compile, one static graph for each image size.

        After a second size torch.compile switches to dynamic shapes by default. That graph is slower, and it fails for
        training steps of models with convolutions (torch 2.13).

        Args:
            **settings: Arguments of :func:`torch.compile`.
        """
        # Beyond this limit torch.compile falls back to eager mode and only logs it.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)
        self.model.compile(**settings)
        self.compiled = True

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Compute the loss; in evaluation without smoothing or weights, so that runs are comparable."""
        loss: Tensor = self.criterion(*self.labelled(output, batch))
        return loss


def _resized(streams: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Resize all streams by the factor that brings the first one to ``size``."""
    first = next(iter(streams.values()))
    result = {}
    for name, x in streams.items():
        height, width = (max(1, round(x.shape[i - 2] * size[i] / first.shape[i - 2])) for i in range(2))
        if (height, width) != x.shape[-2:]:
            planes = F.interpolate(as_channels(x), size=(height, width), mode="bilinear", antialias=True)
            x = planes.view(*x.shape[:-2], height, width)
        result[name] = x
    return result


class PartsTask(ClassificationTask):
    """Classification of points by the labels "parts" of a batch, ``(B, N)``; -1 is not a label."""

    def labelled(self, output: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits ``(M, K)`` and parts ``(M,)`` of the labelled points; augmentation may have dropped points."""
        parts = batch["parts"]
        known = (parts >= 0) & ~output[..., 0].isnan()
        return output[known], parts[known]
