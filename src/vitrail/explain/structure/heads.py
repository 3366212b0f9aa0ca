"""Heads: entropy of their attention, and the tokens that they attend to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.groups import coordinates, layer_members, real_tokens
from vitrail.explain.capture.record import CapturedMixing, layer_tiles, measure_layers
from vitrail.explain.structure.token_groups import uniform_attention
from vitrail.layers.tap import Grid
from vitrail.models.base import VisionModel

# Kinds of layouts with attention among the tokens of one stream.
_SELF = ("global", "window", "grid")
# Targets of the attention of a token, in the order of HeadFocus.shares.
TARGETS = ("prefix", "itself", "neighbours", "others")
# A head with at least this share of the largest entropy attends to everything.
_EVERYTHING = 0.95
# A head with at least this share on one target attends to it.
_MOST = 0.5


@dataclass(frozen=True)
class AttentionEntropy:
    """Entropy of the attention of one layer.

    Attributes:
        layer: The layer's name.
        kind: Kind of its layout: "global", "window", "grid" or "cross".
        entropy: Mean entropy of a query's attention in nats, by image and head, shape ``(B, heads)``.
        uniform: Entropy of uniform attention over the same keys, the largest possible.
    """

    layer: str
    kind: str
    entropy: Tensor
    uniform: float


@dataclass(frozen=True)
class HeadFocus:
    """Targets of the attention of one layer, averaged over the tokens of the grid.

    Attributes:
        layer: The layer's name.
        kind: Kind of its layout.
        stride: Pixels per token.
        shares: Attention to prefix tokens (class token, registers), to the token itself, to its neighbours (up to
            eight, of a clip 26), and to all other tokens, shape ``(B, heads, 4)``; sums to one without padded keys.
        uniform: The same of uniform attention, shape ``(4,)``.
        entropy: Entropy as a share of the largest possible, shape ``(B, heads)``.
    """

    layer: str
    kind: str
    stride: Grid
    shares: Tensor
    uniform: Tensor
    entropy: Tensor

    def names(self) -> list[str]:
        """Name the target of each head, from means over the images.

        - "everything": the entropy is at least 95 % of that of uniform attention;
        - "class token", "itself", "neighbours": at least half of the attention, and more than uniform attention has
          there; "neighbours" includes the token itself;
        - "selected tokens": none of these.

        The limits are definitions of this package.
        """
        return [
            _target(shares, self.uniform, float(entropy))
            for shares, entropy in zip(self.shares.mean(dim=0), self.entropy.mean(dim=0), strict=True)
        ]


def _target(shares: Tensor, uniform: Tensor, entropy: float) -> str:
    if entropy >= _EVERYTHING:
        return "everything"
    near, near_uniform = float(shares[1] + shares[2]), float(uniform[1] + uniform[2])
    for name, share, expected in (
        ("class token", float(shares[0]), float(uniform[0])),
        ("itself", float(shares[1]), float(uniform[1])),
        ("neighbours", near, near_uniform),
    ):
        if share >= _MOST and share > expected:
            return name
    return "selected tokens"


def attention_entropy(model: VisionModel, *inputs: Tensor | None) -> list[AttentionEntropy]:
    """Compute the entropy of the attention of each layer and head, averaged over queries.

    Padded queries and masked keys are omitted. Learned tokens and attention between streams have an entropy, too.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.

    Raises:
        ConfigError: A layer that does not report its attention.
    """

    def measure(step: CapturedMixing) -> AttentionEntropy | None:
        if step.weights.ndim != 4:
            return None
        even = replace(step, weights=uniform_attention(model, step))
        return AttentionEntropy(step.name, step.layout.kind, _entropy(step), float(_entropy(even)))

    return measure_layers(model, inputs, measure)


def head_focus(model: VisionModel, *inputs: Tensor | None) -> list[HeadFocus]:
    """Compute how much each head attends to prefix tokens, to the token itself, to its neighbours and to the others.

    Positions are those on the feature map, so that no two tokens of a grid layer are neighbours. Queries are the tokens
    of the grid; layers of learned tokens and attention between streams are omitted.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.

    Raises:
        ConfigError: No layer attends among tokens with positions.
    """

    def measure(step: CapturedMixing) -> HeadFocus | None:
        if step.layout.kind not in _SELF or step.layout.query_grid is None:
            return None
        even = replace(step, weights=uniform_attention(model, step))
        entropy = _entropy(step) / _entropy(even)
        stride = layer_tiles(model, step.name).stride
        return HeadFocus(step.name, step.layout.kind, stride, _shares(step), _shares(even)[0, 0], entropy)

    found = measure_layers(model, inputs, measure)
    if not found:
        raise ConfigError("every layer attends among learned tokens, which have no neighbours")
    return found


def _entropy(step: CapturedMixing) -> Tensor:
    """Compute the mean entropy of the queries without padding, ``(B, heads)``."""
    weights = step.weights.float()
    by_query = -torch.xlogy(weights, weights).sum(dim=-1)
    if step.layout.kind not in ("window", "grid"):
        return by_query.mean(dim=-1)
    real = real_tokens(step.layout, weights.device)
    grouped = by_query.view(-1, len(real), *by_query.shape[1:])
    return (grouped * real[:, None]).sum(dim=(1, 3)) / real.sum()


def _shares(step: CapturedMixing) -> Tensor:
    """Compute the attention to each of ``TARGETS``, ``(B, heads, 4)``."""
    layout, weights = step.layout, step.weights.float()
    assert layout.query_grid is not None
    members = layer_members(layout, layout.query_grid, weights.device)
    weights = weights.reshape(-1, len(members), *weights.shape[1:])
    prefix, real = weights[..., : layout.num_prefix].sum(dim=-1), members >= 0
    both = real[:, :, None] & real[:, None, :]
    steps = [(x[:, :, None] - x[:, None, :]).abs() for x in coordinates(members, layout.query_grid)]
    apart = torch.stack(steps).amax(dim=0)
    masks = [both & (apart == 0), both & (apart == 1), both & (apart > 1)]
    parts = [prefix, *((weights * mask[:, None]).sum(dim=-1) for mask in masks)]
    return torch.stack([(part * real[:, None]).sum(dim=(1, 3)) / real.sum() for part in parts], dim=-1)
