"""Class activation maps of a level of the feature pyramid.

All methods read one level of ``model.feature_info``, by default the last one that the class depends on: the last block
or stage, with a class token the block before the last, since the logits do not depend on the patches after the last.
Learned tokens have no position in the image: levels end before a TokenLearner without fuser. A model of two streams has
a map for each. Maps are not signed: negative values are clamped, and a map without positive evidence is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitrail.explain.capture.forwarding import Inputs, input_sizes
from vitrail.explain.methods.levels import (
    Level,
    LevelGradient,
    choose_levels,
    lacks_levels,
    level_gradients,
    level_values,
)
from vitrail.explain.methods.maps import StreamMap, upsample
from vitrail.explain.methods.registry import register_method
from vitrail.models.base import VisionModel


@register_method("gradcam", by_class=True, lacks=lacks_levels, any_grid=True)
def _gradcam(
    model: VisionModel, inputs: Inputs, target: Tensor | None, layer: int | str | None = None
) -> dict[str, StreamMap]:
    """Features weighted by the mean gradient of each channel (Grad-CAM, Selvaraju et al. 2017).

    Not signed. Source: arXiv:1610.02391, equations 1 and 2.
    """

    def weigh(values: Tensor, gradient: Tensor) -> Tensor:
        return gradient.mean(dim=_grid(gradient), keepdim=True)

    return _class_activation(model, inputs, target, layer, weigh)


@register_method("gradcam++", by_class=True, lacks=lacks_levels, any_grid=True)
def _gradcam_plus_plus(
    model: VisionModel, inputs: Inputs, target: Tensor | None, layer: int | str | None = None
) -> dict[str, StreamMap]:
    """Grad-CAM whose channel weights favour positions with a positive gradient (Chattopadhay et al. 2018).

    As in the paper, the score is the exponential of the logit, so that the weights depend on the first gradient only.
    Negative features, which the networks of the paper do not have, are clamped in the denominator, which would pass
    through zero otherwise. Not signed. Source: arXiv:1710.11063, equations 10, 11 and 19.
    """

    def weigh(values: Tensor, gradient: Tensor) -> Tensor:
        square, cube = gradient**2, gradient**3
        denominator = 2 * square + values.relu().sum(dim=_grid(values), keepdim=True) * cube
        # Only positive gradients contribute, and there the denominator is positive.
        alpha = torch.where(gradient > 0, square / denominator, 0.0)
        return (alpha * gradient.relu()).sum(dim=_grid(values), keepdim=True)

    return _class_activation(model, inputs, target, layer, weigh)


@register_method("layercam", by_class=True, lacks=lacks_levels, any_grid=True)
def _layercam(
    model: VisionModel, inputs: Inputs, target: Tensor | None, layer: int | str | None = None
) -> dict[str, StreamMap]:
    """Features weighted at each position by their positive gradients (Layer-CAM, Jiang et al. 2021).

    Finer than Grad-CAM at early levels. Not signed. Source: doi:10.1109/TIP.2021.3089943, equations 6 and 7.
    """

    def weigh(values: Tensor, gradient: Tensor) -> Tensor:
        return gradient.relu()

    return _class_activation(model, inputs, target, layer, weigh)


@register_method("eigencam", by_class=False, lacks=lacks_levels, any_grid=True)
def _eigencam(
    model: VisionModel, inputs: Inputs, target: Tensor | None, layer: int | str | None = None
) -> dict[str, StreamMap]:
    """Features projected on their first principal direction (Eigen-CAM, Muhammad & Yeasin 2020); no class.

    As in the paper, features are not centred. The sign, which the paper leaves open, is that of the sum of the
    projection. Not signed. Source: arXiv:2008.00299, section III.
    """
    levels = choose_levels(model, inputs, layer)
    return {
        level.stream: _finish(_first_direction(values), level, inputs, model)
        for level, values in zip(levels, level_values(model, inputs, levels), strict=True)
    }


def _first_direction(values: Tensor) -> Tensor:
    rows = values.flatten(2).transpose(1, 2)
    # Double precision, since the sum that determines the sign may nearly cancel.
    _, _, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    projected = (rows.double() @ directions[:, 0, :, None]).squeeze(-1)
    sign = torch.where(projected.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    out: Tensor = (sign * projected).to(values.dtype).reshape(len(values), *values.shape[2:])
    return out


def _class_activation(
    model: VisionModel,
    inputs: Inputs,
    target: Tensor | None,
    layer: int | str | None,
    weigh: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, StreamMap]:
    assert target is not None, "explain() passes a target to methods by class"
    gradients: list[LevelGradient] = level_gradients(model, inputs, target, choose_levels(model, inputs, layer))
    return {
        one.level.stream: _finish((weigh(one.values, one.gradient) * one.values).sum(dim=1), one.level, inputs, model)
        for one in gradients
    }


def _finish(tokens: Tensor, level: Level, inputs: Inputs, model: VisionModel) -> StreamMap:
    tokens = tokens.relu()
    return StreamMap(upsample(tokens, input_sizes(model, inputs)[level.stream], level.tiles), tokens)


def _grid(values: Tensor) -> tuple[int, ...]:
    """Return the dimensions of the grid in values ``(B, C, *grid)``."""
    return tuple(range(2, values.ndim))
