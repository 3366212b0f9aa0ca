"""Selection maps of learned tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.forwarding import input_sizes
from vitrail.explain.capture.groups import normalize_rows
from vitrail.explain.capture.record import capture_attention, first_tiles
from vitrail.explain.methods.maps import StreamMap, upsample
from vitrail.explain.methods.registry import register_method
from vitrail.layers.token_learner import TokenLearner
from vitrail.models.base import VisionModel


def token_maps(model: VisionModel, *inputs: Tensor | None, learner: int = 0) -> Tensor:
    """Compute the selection maps of a TokenLearner.

    In a clip each slice of time learns tokens of its own: the maps of one token in all slices are one map.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, or clips.
        learner: Index of the TokenLearner; with a TokenFuser there is one before each of the last blocks.

    Returns:
        Shape ``(B, num_tokens, h, w)``, of clips ``(B, num_tokens, t, h, w)``; each map sums to one.

    Raises:
        ConfigError: The model has no such TokenLearner.

    Source: Ryoo et al. 2021, arXiv:2106.11297, figure 5.
    """
    lack = lacks_learned_tokens(model)
    if lack is not None:
        raise ConfigError(lack)
    learners = token_learners(model)
    count = len(learners)
    if not 0 <= learner < count:
        raise ConfigError(f"learner must be from 0 to {count - 1}, got {learner}")
    with torch.no_grad(), capture_attention(model, learners[learner]) as record:
        model.forward_features(*inputs)
    (step,) = record.steps
    assert step.layout.key_grid is not None, "a TokenLearner works on the patch grid"
    grid = step.layout.key_grid
    weights = normalize_rows(step.weights.float())
    count = weights.shape[0]
    if len(grid) == 2:
        return weights.reshape(count, -1, *grid)
    # Tokens of the first slice first; each selects from its own slice alone.
    return weights.reshape(count, grid[0], -1, *grid).mean(dim=1)


def token_learners(model: VisionModel) -> list[str]:
    """List the names of a model's TokenLearners, in order."""
    return [name for name, module in model.named_modules() if isinstance(module, TokenLearner)]


def lacks_learned_tokens(model: VisionModel) -> str | None:
    """Return the reason why a model has no learned tokens; None where it has."""
    if token_learners(model):
        return None
    remedy = "; build it with token_learner settings" if hasattr(model.config, "token_learner") else ""
    return f"this {type(model).__name__} learns no tokens{remedy}"


@register_method("tokens", by_class=False, lacks=lacks_learned_tokens, any_grid=True)
def _tokens(
    model: VisionModel,
    inputs: Sequence[Tensor | None],
    target: Tensor | None,
    token: int | None = None,
    learner: int = 0,
) -> dict[str, StreamMap]:
    """Token selection maps of a TokenLearner: of one token, or the mean over all with each as a part."""
    maps = token_maps(model, *inputs, learner=learner)
    if token is not None and not 0 <= token < maps.shape[1]:
        raise ConfigError(f"token must be from 0 to {maps.shape[1] - 1}, got {token}")
    tokens = maps.mean(dim=1) if token is None else maps[:, token]
    stream = model.streams[0].name
    map_ = upsample(tokens, input_sizes(model, inputs)[stream], first_tiles(model, stream))
    return {stream: StreamMap(map_, tokens, None, maps if token is None else None)}
