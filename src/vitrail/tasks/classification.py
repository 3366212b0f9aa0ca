"""Classification, with one label an image or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.data.augment import Mixing
from vitrail.data.transforms import NormalizeStreams
from vitrail.models.base import VisionModel
from vitrail.tasks.base import Task
from vitrail.tasks.losses import ClassificationLoss, MultiLabelLoss

# Sizes, in training and in evaluation, each before and after layers are unfrozen.
_MOST_GRAPHS = 256


class ClassificationTask(Task):
    """A model between its normalisation and its loss.

    Args:
        model: Gives logits ``(B, K)``.
        normalize: Makes the model's inputs from a batch whose streams are in 0..1, always.
        augment: Changes a batch's streams before that, in training only.
        criterion: The loss of logits ``(B, K)`` and classes ``(B,)`` or shares of classes ``(B, K)``.
        mix: Mixes the images of a batch after augmentation, in training only.

    Attributes:
        train_size: Height and width that training images are brought to before anything else; their own when None.
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
        """Whether an image may have any number of the classes."""
        return isinstance(self.criterion, MultiLabelLoss)

    def prepare(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch as the model is to see it: changed at random in training, as it is in evaluation.

        Args:
            batch: Streams in 0..1, and their ``target``.

        Returns:
            The batch with other streams and, where images are mixed, with a target of shares ``(B, K)``.
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
        """Logits ``(B, K)`` of a batch whose streams are in 0..1, as :meth:`prepare` gives it."""
        images = self.normalize(self.streams(batch))
        if self.compiled:
            for image in images:
                # Batches have one size in training; the last one of an evaluation may be smaller.
                torch._dynamo.mark_static(image, [0, 2, 3] if self.training else [2, 3])
        logits: Tensor = self.model(*images)
        return logits

    def compile_model(self, **settings: Any) -> None:
        """Compile the model with torch.compile: a graph for each size of images, of which training knows few.

        The compiler would by itself make a graph for changing sizes after the second one: a slower graph, and one that
        it cannot make of the step of a model with convolutions (torch 2.13).

        Args:
            **settings: Of :func:`torch.compile`.
        """
        # After this many graphs the compiler would go on without compiling, and only log it.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)
        self.model.compile(**settings)
        self.compiled = True

    def loss(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The criterion's value of logits; the plain loss in evaluation, so that runs can be compared."""
        loss: Tensor = self.criterion(output, batch["target"])
        return loss


def _resized(streams: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """All streams in the proportion in which the image changes; nothing is invented between bands or streams."""
    first = next(iter(streams.values()))
    result = {}
    for name, x in streams.items():
        height, width = (max(1, round(x.shape[i + 2] * size[i] / first.shape[i + 2])) for i in range(2))
        same = (height, width) == x.shape[2:]
        result[name] = x if same else F.interpolate(x, size=(height, width), mode="bilinear", antialias=True)
    return result
