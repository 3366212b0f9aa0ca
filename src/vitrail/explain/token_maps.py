"""What each learned token looks at."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture import capture_attention
from vitrail.explain.carrier import normalize_rows
from vitrail.models.base import VisionModel


def token_maps(model: VisionModel, *inputs: Tensor) -> Tensor:
    """The selection maps of a model's first TokenLearner.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``.

    Returns:
        Shape ``(B, num_tokens, h, w)``; each map sums to one.

    Raises:
        ConfigError: The model learns no tokens.

    Source: Ryoo et al. 2021, arXiv:2106.11297, figure 5.
    """
    if not getattr(model, "token_learners", None):
        raise ConfigError(f"this {type(model).__name__} learns no tokens; build it with token_learner settings")
    with torch.no_grad(), capture_attention(model, "token_learners.0") as record:
        model.forward_features(*inputs)
    (step,) = record.steps
    assert step.layout.key_grid is not None, "a TokenLearner works on the patch grid"
    weights = normalize_rows(step.weights.float())
    return weights.reshape(*weights.shape[:2], *step.layout.key_grid)
