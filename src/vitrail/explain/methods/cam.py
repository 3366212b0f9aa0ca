"""Class activation maps on the layer and the grid that a family declares; nobody writes a reshape.

All of them read one level of the model's feature pyramid (``model.feature_info``): by default the last one that the
class depends on. That is the last block or stage, but with a class token the block before the last, since after the
last one the patches are no longer read. After a TokenLearner without fuser tokens have no place in the image: there
the levels end before it. A model of two streams gets a map for each. None of these maps is signed: what speaks against
the class is cut off, and where nothing speaks for it a map is zero everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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

Inputs = Sequence[Tensor | None]


@register_method("gradcam", by_class=True, lacks=lacks_levels)
def _gradcam(
    model: VisionModel, inputs: Inputs, target: Tensor | None, layer: int | str | None = None
) -> dict[str, StreamMap]:
    """Features weighted by the mean gradient of each channel (Grad-CAM, Selvaraju et al. 2017).

    Not signed. Source: arXiv:1610.02391, equations 1 and 2.
    """

    def weigh(values: Tensor, gradient: Tensor) -> Tensor:
        return gradient.mean(dim=(2, 3), keepdim=True)

    return _weighted(model, inputs, target, layer, weigh)


@register_method("gradcam++", by_class=True, lacks=lacks_levels)
def _gradcam_plus_plus(
    model: VisionModel, inputs: Inputs, target: Tensor | None, layer: int | str | None = None
) -> dict[str, StreamMap]:
    """Grad-CAM whose channel weights favour places with a positive gradient (Chattopadhay et al. 2018).

    The score is the exponential of the logit, as there, which makes the weights closed forms of the first gradient.
    Negative features, which the authors' networks do not have, count as none in the denominator of these weights: it
    would pass through zero otherwise. Not signed. Source: arXiv:1710.11063, equations 10, 11 and 19.
    """

    def weigh(values: Tensor, gradient: Tensor) -> Tensor:
        square, cube = gradient**2, gradient**3
        below = 2 * square + values.relu().sum(dim=(2, 3), keepdim=True) * cube
        # Only positive gradients count in the end, and there it is above zero.
        alpha = torch.where(gradient > 0, square / below, 0.0)
        return (alpha * gradient.relu()).sum(dim=(2, 3), keepdim=True)

    return _weighted(model, inputs, target, layer, weigh)


@register_method("layercam", by_class=True, lacks=lacks_levels)
def _layercam(
    model: VisionModel, inputs: Inputs, target: Tensor | None, layer: int | str | None = None
) -> dict[str, StreamMap]:
    """Features weighted place by place by their positive gradients (Layer-CAM, Jiang et al. 2021).

    Finer than Grad-CAM at early levels. Not signed. Source: doi:10.1109/TIP.2021.3089943, equations 6 and 7.
    """

    def weigh(values: Tensor, gradient: Tensor) -> Tensor:
        return gradient.relu()

    return _weighted(model, inputs, target, layer, weigh)


@register_method("eigencam", by_class=False, lacks=lacks_levels)
def _eigencam(
    model: VisionModel, inputs: Inputs, target: Tensor | None, layer: int | str | None = None
) -> dict[str, StreamMap]:
    """Features projected on their first principal direction (Eigen-CAM, Muhammad & Yeasin 2020); knows no class.

    The direction is that of the features as they are, not centred, as the authors have it. Its sign, which they leave
    open, is the one that most of the projection has. Not signed. Source: arXiv:2008.00299, section III.
    """
    levels = choose_levels(model, inputs, layer)
    return {
        level.stream: _finish(_first_direction(values), level, inputs, model)
        for level, values in zip(levels, level_values(model, inputs, levels), strict=True)
    }


def _first_direction(values: Tensor) -> Tensor:
    rows = values.flatten(2).transpose(1, 2)
    # In double precision, since the sign is decided by a sum that may nearly cancel.
    _, _, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    projected = (rows.double() @ directions[:, 0, :, None]).squeeze(-1)
    sign = torch.where(projected.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    out: Tensor = (sign * projected).to(values.dtype).reshape(len(values), *values.shape[2:])
    return out


def _weighted(
    model: VisionModel,
    inputs: Inputs,
    target: Tensor | None,
    layer: int | str | None,
    weigh: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, StreamMap]:
    assert target is not None, "the interface gives a class to every method that explains one"
    read: list[LevelGradient] = level_gradients(model, inputs, target, choose_levels(model, inputs, layer))
    return {
        one.level.stream: _finish((weigh(one.values, one.gradient) * one.values).sum(dim=1), one.level, inputs, model)
        for one in read
    }


def _finish(tokens: Tensor, level: Level, inputs: Inputs, model: VisionModel) -> StreamMap:
    image = inputs[[stream.name for stream in model.streams].index(level.stream)]
    assert image is not None, "levels are chosen of streams with an input"
    tokens = tokens.relu()
    return StreamMap(upsample(tokens, (image.shape[2], image.shape[3]), level.stride), tokens)
