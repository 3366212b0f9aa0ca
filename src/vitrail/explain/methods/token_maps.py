"""What each learned token looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.groups import normalize_rows
from vitrail.explain.capture.record import capture_attention, first_stride
from vitrail.explain.methods.maps import StreamMap, upsample
from vitrail.explain.methods.registry import register_method
from vitrail.layers.token_learner import TokenLearner
from vitrail.models.base import VisionModel


def token_maps(model: VisionModel, *inputs: Tensor | None, learner: int = 0) -> Tensor:
    """The selection maps of one of a model's TokenLearners.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``.
        learner: Its number; with a TokenFuser there is one before each of the last blocks.

    Returns:
        Shape ``(B, num_tokens, h, w)``; each map sums to one.

    Raises:
        ConfigError: The model learns no tokens, or has no TokenLearner of that number.

    Source: Ryoo et al. 2021, arXiv:2106.11297, figure 5.
    """
    lack = lacks_learned_tokens(model)
    if lack is not None:
        raise ConfigError(lack)
    learners = token_learners(model)
    count = len(learners)
    if not 0 <= learner < count:
        raise ConfigError(f"the model has {count} TokenLearner{'s' * (count > 1)}, numbered from 0; got {learner}")
    with torch.no_grad(), capture_attention(model, learners[learner]) as record:
        model.forward_features(*inputs)
    (step,) = record.steps
    assert step.layout.key_grid is not None, "a TokenLearner works on the patch grid"
    weights = normalize_rows(step.weights.float())
    return weights.reshape(*weights.shape[:2], *step.layout.key_grid)


def token_learners(model: VisionModel) -> list[str]:
    """Names of a model's TokenLearners, in order."""
    return [name for name, module in model.named_modules() if isinstance(module, TokenLearner)]


def lacks_learned_tokens(model: VisionModel) -> str | None:
    """That a model learns no tokens, in words; None where it does."""
    if token_learners(model):
        return None
    remedy = "; build it with token_learner settings" if hasattr(model.config, "token_learner") else ""
    return f"this {type(model).__name__} learns no tokens{remedy}"


@register_method("tokens", by_class=False, lacks=lacks_learned_tokens)
def _tokens(
    model: VisionModel,
    inputs: Sequence[Tensor | None],
    target: Tensor | None,
    token: int | None = None,
    learner: int = 0,
) -> dict[str, StreamMap]:
    """Where learned tokens were taken from: one of them, or the mean over all and each as a part."""
    maps = token_maps(model, *inputs, learner=learner)
    if token is not None and not 0 <= token < maps.shape[1]:
        raise ConfigError(f"the model learns {maps.shape[1]} tokens, numbered from 0; got {token}")
    tokens = maps.mean(dim=1) if token is None else maps[:, token]
    assert inputs[0] is not None, "the first stream is never left out"
    size = (inputs[0].shape[2], inputs[0].shape[3])
    stream = model.streams[0].name
    map_ = upsample(tokens, size, first_stride(model, stream))
    return {stream: StreamMap(map_, tokens, None, maps if token is None else None)}
