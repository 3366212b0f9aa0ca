"""A model as an encoder for segmentation and detection: images in, a list of feature maps out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from vitrail.errors import ShapeError
from vitrail.layers.symbolic import is_symbolic, resolve_annotations
from vitrail.models.base import VisionModel
from vitrail.models.facts import FeatureInfo, describe
from vitrail.models.scripting import as_traced


class FeatureLevels(list[FeatureInfo]):
    """All levels of a model, and those that an encoder returns.

    Args:
        levels: All levels of the model.
        out_indices: Indices of those that are returned.
    """

    def __init__(self, levels: Sequence[FeatureInfo], out_indices: Sequence[int]) -> None:
        super().__init__(levels)
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return the value of a key at the returned levels, or at the levels ``idx`` of the model."""
        if isinstance(idx, int):
            return self[idx][key]
        return [self[index][key] for index in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the channels of the returned levels, or of the levels ``idx`` of the model."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the input pixels per position of the returned levels, or of the levels ``idx`` of the model."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Name the modules that produce the returned levels, or the levels ``idx`` of the model."""
        return self.get("module", idx)


class FeatureEncoder(nn.Module):
    """A model without its classifier that returns the levels of its feature pyramid.

    Args:
        model: The model; its classifier is removed.
        out_indices: Levels to return, as for :meth:`VisionModel.forward_intermediates`; all when not given.

    Attributes:
        feature_info: The levels; ``feature_info.channels()`` are the channels of the returned maps.
        headless: True: loading leaves the classifier of a checkpoint out.

    Raises:
        ConfigError: A level that the model does not have.
    """

    headless: ClassVar[bool] = True

    def __init__(self, model: VisionModel, out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        model.reset_classifier(0)
        self.model = model
        self.feature_info = FeatureLevels(model.feature_info, sorted(model.level_indices(out_indices)))

    def __prepare_scriptable__(self) -> nn.Module:
        """Trace the encoder for ``torch.jit.script``, in its mode and for images of the model's own size."""
        return as_traced(self, [stream.shape for stream in self.model.streams], encoder=True)

    @resolve_annotations
    def forward(self, x: Tensor, spectral: Tensor | None = None) -> list[Tensor]:
        """Map images to the returned levels.

        Args:
            x: Images, shape ``(B, C, H, W)``.
            spectral: Input of the second stream of a model that has two, as the model takes it.

        Returns:
            Maps, shape ``(B, C, H / stride, W / stride)``, of the levels ``feature_info.out_indices``.

        Raises:
            ShapeError: Images that the model does not take, or a second input for a model of one stream.
        """
        if len(self.model.streams) > 1:
            inputs: list[Tensor | None] = [x, spectral]
        elif spectral is None or is_symbolic(spectral):
            inputs = [x]  # a symbolic graph has a place for every argument
        else:
            raise ShapeError(f"expected one input, got {describe((x, spectral))}; the model has one stream")
        indices = self.feature_info.out_indices
        maps: list[Tensor] = self.model.forward_intermediates(inputs, indices=indices, intermediates_only=True)
        return maps
