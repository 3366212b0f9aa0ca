"""Positions: similarity of absolute positions, relative position bias, and their part in the attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.explain.capture.groups import real_tokens
from vitrail.explain.capture.record import CapturedMixing, capture_attention
from vitrail.layers.partition_attention import PartitionAttention
from vitrail.layers.relative_position import expand_table, relative_position_index
from vitrail.layers.window_attention import WindowAttention
from vitrail.models.base import VisionModel

Pair = tuple[int, int]


@dataclass(frozen=True)
class PositionSimilarity:
    """Similarity of the absolute positions of one stream, learned or fixed.

    Attributes:
        name: Name of the parameter or buffer.
        grid: Height and width of the table's grid.
        similarity: Cosine similarity of all pairs of positions, shape ``(h, w, h, w)``.
    """

    name: str
    grid: Pair
    similarity: Tensor


@dataclass(frozen=True)
class RelativeBias:
    """Relative position bias of one layer.

    Attributes:
        name: The layer's name.
        window: Window of the learned table.
        index: Row of the table for each pair of tokens, shape ``(n, n)``.
        table: Learned bias by offset (query minus key), shape ``(heads, 2 wh - 1, 2 ww - 1)``.
        bias: Bias added to the scores, shape ``(heads, n, n)``.
    """

    name: str
    window: Pair
    index: Tensor
    table: Tensor
    bias: Tensor


@dataclass(frozen=True)
class BiasAndContent:
    """Parts of relative position bias and content in the attention of a layer.

    Attributes:
        name: The layer's name.
        bias_share: Share of the bias in the variance of the scores, by image and head, shape ``(B, heads)``; NaN where
            the scores do not vary.
        bias_nats: Divergence of the attention from that of the content alone, shape ``(B, heads)``.
        content_nats: Divergence of the attention from that of the bias alone, shape ``(B, heads)``.
    """

    name: str
    bias_share: Tensor
    bias_nats: Tensor
    content_nats: Tensor


def position_similarities(model: VisionModel) -> list[PositionSimilarity]:
    """Compute cosine similarities of absolute positions, without prefix tokens, for each table of a model.

    Raises:
        ConfigError: The model adds no absolute positions to its tokens.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, figure 7, centre.
    """
    found = []
    for name, table, grid in _position_tables(model):
        positions = F.normalize(table.detach()[0, table.shape[1] - grid[0] * grid[1] :].float(), dim=-1)
        found.append(PositionSimilarity(name, grid, (positions @ positions.t()).view(*grid, *grid)))
    if not found:
        raise ConfigError(f"{type(model).__name__} adds no absolute positions to its tokens; {_remedy(model)}")
    return found


def _position_tables(model: VisionModel) -> Iterator[tuple[str, Tensor, Pair]]:
    """Yield name, values ``(1, P + h * w, C)`` and grid of each table of absolute positions."""
    for name, module in model.named_modules():
        table, grid = getattr(module, "pos_embed", None), getattr(module, "grid", None)
        if isinstance(table, Tensor) and grid is not None:
            yield f"{name}.pos_embed" if name else "pos_embed", table, grid


def position_kinds(model: VisionModel, prefix: str = "") -> list[str]:
    """Return how a model, or its modules whose names begin with a prefix, know the positions of tokens.

    Returns:
        Of "learned" and "fixed" (absolute positions), "relative" (a bias of the scores) and "rotary"; empty without.
    """
    tables = [table for name, table, _ in _position_tables(model) if name.startswith(prefix)]
    biases = (relative_bias(name, module) for name, module in model.named_modules() if name.startswith(prefix))
    there = {
        "learned": any(isinstance(table, nn.Parameter) for table in tables),
        "fixed": any(not isinstance(table, nn.Parameter) for table in tables),
        "relative": any(bias is not None for bias in biases),
        "rotary": getattr(getattr(model, "config", None), "pos_embed", "") == "rope",
    }
    return [kind for kind, found in there.items() if found]


_REMEDIES = {
    "learned": "its absolute ones are part of its tokens: see position_similarities",
    "fixed": "its absolute ones are part of its tokens: see position_similarities",
    "relative": "its positions are relative: see relative_biases",
    "rotary": "its positions are rotations of queries and keys (pos_embed 'rope'), which no table holds",
}


def _remedy(model: VisionModel) -> str:
    return "; ".join(_REMEDIES[kind] for kind in position_kinds(model)) or "it has positions of no other kind either"


def relative_bias(name: str, module: nn.Module) -> RelativeBias | None:
    """Return index, table and bias of a layer with relative positions; None for other layers."""
    if isinstance(module, WindowAttention):
        table = module.relative_position_bias_table.detach()
    elif isinstance(module, PartitionAttention) and module.rel_pos is not None:
        table = module.rel_pos.relative_position_bias_table.detach()
    else:
        return None
    wh, ww = module.window
    by_offset = table.t().reshape(-1, 2 * wh - 1, 2 * ww - 1)
    index = relative_position_index(module.window)
    return RelativeBias(name, module.window, index, by_offset, expand_table(table, module.window)[0])


def relative_biases(model: VisionModel) -> list[RelativeBias]:
    """Return index, table and bias of all layers with relative positions.

    Raises:
        ConfigError: The model has no relative positions.

    Source: Liu et al. 2021, arXiv:2103.14030, equation 4.
    """
    found = [relative_bias(name, module) for name, module in model.named_modules()]
    biases = [bias for bias in found if bias is not None]
    if not biases:
        raise ConfigError(f"{type(model).__name__} has no relative positions; {_remedy(model)}")
    return biases


def bias_and_content(model: VisionModel, *inputs: Tensor) -> list[BiasAndContent]:
    """Compute the parts of relative position bias and content in the attention of each layer.

    The scores of a query are s = c + b, content plus bias. Both measures are over the keys that are not masked,
    averaged over queries. They are definitions of this package.

    - Variance: Var(s) = Cov(b, s) + Cov(c, s). The share of the bias is sum Cov(b, s) / sum Var(s) over all queries: 0
      for a constant bias, 1 for a constant content, negative where a bias opposes a larger content.
    - Divergence, in nats: KL(softmax(c + b) || softmax(c)) for the bias, KL(softmax(c + b) || softmax(b)) for the
      content.

    Scores are the logarithm of the attention: both measures are invariant to a constant for all keys. Weights of zero
    (masked keys) and padded queries are omitted.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``.

    Raises:
        ConfigError: The model has no relative positions; absolute positions are part of the content.
    """
    biases = {bias.name: bias for bias in relative_biases(model)}

    def measure(step: CapturedMixing) -> Tensor | None:
        bias = biases.get(step.name)
        return None if bias is None else _measure(step, _bias_in(bias, step.layout.window or bias.window))

    with torch.no_grad(), capture_attention(model, keep=measure) as record:
        model.forward_features(*inputs)
    return [BiasAndContent(step.name, *step.weights.unbind(-1)) for step in record.steps]


def _bias_in(bias: RelativeBias, window: Pair) -> Tensor:
    """Compute the bias of a window that may be smaller than that of the table, shape ``(heads, n, n)``."""
    table = bias.table.flatten(1).t().float()
    return expand_table(table, window, bias.window)[0]


def _measure(step: CapturedMixing, bias: Tensor) -> Tensor:
    """Compute share and divergences, shape ``(B, heads, 3)``, from weights ``(B * groups, heads, n, n)``."""
    real = real_tokens(step.layout, step.weights.device)
    weights = step.weights.float()
    weights = weights.view(-1, len(real), *weights.shape[1:])
    visible = weights > 0
    # Zero for masked keys, so that sums omit them.
    scores = weights.clamp_min(torch.finfo(torch.float32).tiny).log() * visible
    bias = bias * visible
    count = visible.sum(dim=-1, keepdim=True).clamp_min(1)
    centred = [(x - x.sum(dim=-1, keepdim=True) / count) * visible for x in (bias, scores)]
    counted = real[:, None] * (1.0 / count.squeeze(-1))
    covariance, variance = ((x * centred[1]).sum(dim=-1) * counted for x in centred)
    share = covariance.sum(dim=(1, 3)) / variance.sum(dim=(1, 3))
    nats = [_divergence(weights, scores, other, visible) for other in (scores - bias, bias)]
    means = [(x * real[:, None]).sum(dim=(1, 3)) / real.sum() for x in nats]
    return torch.stack([share, *means], dim=-1)


def _divergence(weights: Tensor, logarithm: Tensor, scores: Tensor, visible: Tensor) -> Tensor:
    """Compute KL(weights || softmax(scores)) of each row, over visible keys."""
    other = scores.masked_fill(~visible, -math.inf).log_softmax(dim=-1)
    return (weights * (logarithm - other.masked_fill(~visible, 0.0))).sum(dim=-1)
