"""TokenLearner in a model: the settings of which layer learns tokens, how many and how, and the modules of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vitrail.errors import ConfigError, closest, plural
from vitrail.layers.token_learner import TokenFuser, TokenLearner
from vitrail.models.checks import check_at_least, check_rates


@dataclass(frozen=True)
class TokenLearnerConfig:
    """Settings of a model's TokenLearner.

    Attributes:
        num_tokens: Tokens to learn.
        layer: Blocks before it, 0 to the depth; the middle when not given.
        version: "1.1" (softmax, weighted mean) or "1.0" (sigmoid, weighted sum).
        bottleneck_dim: Hidden width of the MLPs of version 1.1 and of the fuser.
        dropout_rate: Dropout rate inside of these MLPs in training.
        fuse: Whether every later block learns its own tokens and a TokenFuser spreads them back over all
            positions (the paper's section 2.2), instead of going on with the learned tokens alone.
    """

    num_tokens: int = 8
    layer: int | None = None
    version: str = "1.1"
    bottleneck_dim: int = 64
    fuse: bool = False
    dropout_rate: float = 0.0


def complete_token_learner(value: TokenLearnerConfig | Mapping[str, Any], depth: int) -> TokenLearnerConfig:
    """Check the settings of TokenLearner and fill in the layer.

    Args:
        value: The settings, as a mapping too.
        depth: Blocks of the model.

    Raises:
        ConfigError: An unknown setting, or a value out of range.
    """
    if isinstance(value, Mapping):
        known = [f.name for f in dataclasses.fields(TokenLearnerConfig)]
        for key in value:
            if key not in known:
                raise ConfigError(f"token_learner has no setting {key!r}{closest(key, known)}")
        value = TokenLearnerConfig(**value)
    if not isinstance(value, TokenLearnerConfig):
        raise ConfigError(f"token_learner must hold settings (num_tokens: 8, ...), got {value!r}")
    check_at_least(value, 1, "num_tokens", "bottleneck_dim")
    check_rates(value, "dropout_rate")
    layer = depth // 2 if value.layer is None else value.layer
    last = depth - 1 if value.fuse else depth
    if not 0 <= layer <= last:
        raise ConfigError(
            f"token_learner layer counts the blocks before it: 0 to {last} for {plural(depth, 'block')}"
            f"{' with a fuser' if value.fuse else ''}, got {layer}"
        )
    return dataclasses.replace(value, layer=layer)


def build_token_learners(
    settings: TokenLearnerConfig | None, dim: int, depth: int
) -> tuple[int, nn.ModuleList, nn.ModuleList]:
    """Build the TokenLearners and TokenFusers of a model.

    Args:
        settings: As of :func:`complete_token_learner`; None for a model without.
        dim: Width of a token.
        depth: Blocks of the model.

    Returns:
        Blocks before the first TokenLearner, more than there are where there is none; one TokenLearner, or with a
        fuser one for each later block; the TokenFusers.
    """
    learners, fusers = nn.ModuleList(), nn.ModuleList()
    if settings is None or settings.layer is None:
        return depth + 1, learners, fusers
    sizes = settings.bottleneck_dim, settings.dropout_rate
    for _ in range(depth - settings.layer if settings.fuse else 1):
        learners.append(TokenLearner(dim, settings.num_tokens, settings.version, *sizes))
        if settings.fuse:
            fusers.append(TokenFuser(dim, settings.num_tokens, *sizes))
    return settings.layer, learners, fusers
