"""What a layer makes of an image, as one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.models.base import VisionModel

# What the classifier sees.
EMBEDDING = "embedding"


def layers_of(model: VisionModel) -> list[str]:
    """The layers whose features can be had: the levels of the model's pyramid, and what its classifier sees."""
    return [*(info.name for info in model.feature_info), EMBEDDING]


def layer_features(model: VisionModel, inputs: Sequence[Tensor], layer: str = EMBEDDING) -> Tensor:
    """A vector for each image: what the classifier sees, or a level's mean over its positions.

    Args:
        model: The model, in evaluation mode.
        inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.
        layer: One of :func:`layers_of`.

    Returns:
        Shape ``(B, C)``, float32.

    Raises:
        ConfigError: No such layer; the message names those that there are.
    """
    known = layers_of(model)
    if layer not in known:
        raise ConfigError(f"no layer {layer!r}; layers: {', '.join(known)}")
    with torch.no_grad():
        if layer == EMBEDDING:
            return model.forward_head(model.forward_features(*inputs), pre_logits=True).float()
        (level,) = model.forward_intermediates(inputs, indices=[known.index(layer)], intermediates_only=True)
        return nn.functional.adaptive_avg_pool2d(level.float(), 1).flatten(1)
