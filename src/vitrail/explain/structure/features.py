"""Features of a layer, as one vector for each image or as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.models.base import VisionModel

# Input of the classifier.
EMBEDDING = "embedding"


def layers_of(model: VisionModel) -> list[str]:
    """List the layers with features: the levels of the feature pyramid, and the embedding (input of the classifier)."""
    return [*(info.name for info in model.feature_info), EMBEDDING]


def layer_features(model: VisionModel, inputs: Sequence[Tensor], layer: str = EMBEDDING) -> Tensor:
    """Compute one vector for each image: the embedding, or the mean of a level over its positions.

    Of a model that labels points the embedding is the mean over the points of a cloud.

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
            return embed(model, model.forward_features(*inputs))
        (level,) = model.forward_intermediates(inputs, indices=[known.index(layer)], intermediates_only=True)
        return mean_over_positions(level, inputs)


def embed(model: VisionModel, features: Tensor) -> Tensor:
    """Compute the embedding of each image, ``(B, C)``, from the output of ``forward_features``."""
    found: Tensor = model.forward_head(features, pre_logits=True).float()
    # A model that labels points embeds each of them; NaN where a cloud has none.
    return found if found.ndim == 2 else found.nanmean(dim=1)


def mean_over_positions(level: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Average a level over its positions; of clouds over the points that they have.

    Args:
        level: Shape ``(B, C, ...)``.
        inputs: Inputs that it was computed from.

    Returns:
        Shape ``(B, C)``, float32.
    """
    values = level.float().flatten(2)
    if level.ndim > 3:
        return values.mean(dim=-1)
    real = inputs[0].isfinite().all(dim=-1)
    return torch.where(real[:, None], values, 0.0).sum(dim=-1) / real.sum(dim=-1, keepdim=True)


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
