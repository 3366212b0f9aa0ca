"""Features of a layer, as one vector for each image or as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.models.base import VisionModel

# Input of the classifier.
EMBEDDING = "embedding"


def layers_of(model: VisionModel) -> list[str]:
    """List the layers with features: the levels of the feature pyramid, and the embedding (input of the classifier)."""
    return [*(info.name for info in model.feature_info), EMBEDDING]


def layer_features(model: VisionModel, inputs: Sequence[Tensor], layer: str = EMBEDDING) -> Tensor:
    """Compute one vector for each image: the embedding, or the mean of a level over its positions.

    Args:
        model: The model, in evaluation mode.
        inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.
        layer: One of :func:`layers_of`.

    Returns:
        Shape ``(B, C)``, float32.

    Raises:
        ConfigError: No such layer.
    """
    known = layers_of(model)
    if layer not in known:
        raise ConfigError(f"no layer {layer!r}; layers: {', '.join(known)}")
    with torch.no_grad():
        if layer == EMBEDDING:
            return model.forward_head(model.forward_features(*inputs), pre_logits=True).float()
        (level,) = model.forward_intermediates(inputs, indices=[known.index(layer)], intermediates_only=True)
        return nn.functional.adaptive_avg_pool2d(level.float(), 1).flatten(1)


def principal_colors(features: Tensor) -> Tensor:
    """Map the first three principal components of a feature map to red, green and blue.

    Args:
        features: Shape ``(C, h, w)``.

    Returns:
        Shape ``(h, w, 3)`` in 0..1; gray where the map does not vary.
    """
    C, h, w = features.shape
    rows = features.reshape(C, h * w).t().double()
    rows = rows - rows.mean(dim=0)
    _, _, directions = torch.linalg.svd(rows, full_matrices=False)
    # The sign of a component is arbitrary; that of its largest weight is fixed, for reproducible pictures.
    directions = directions[:3]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    components = rows @ (directions * largest.sign()).t()
    colors = rows.new_full((h * w, 3), 0.5)
    scale = components.abs().quantile(0.98, dim=0).clamp_min(1e-12)
    colors[:, : components.shape[1]] = (components / scale).clamp(-1, 1) / 2 + 0.5
    return colors.view(h, w, 3).float()
