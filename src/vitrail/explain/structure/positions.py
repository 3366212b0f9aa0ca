"""What a model learned about places: likeness of its positions, tables of relative positions, and what they decide."""

from __future__ import annotations

import math
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
    """How alike the learned positions of one stream are.

    Attributes:
        name: Their parameter's name.
        grid: Height and width of the grid that they were learned for.
        similarity: Cosine of each position (first two dimensions) and each other (last two), shape ``(h, w, h, w)``.
    """

    name: str
    grid: Pair
    similarity: Tensor


@dataclass(frozen=True)
class RelativeBias:
    """Relative positions of one layer.

    Attributes:
        name: The layer's name.
        window: Window that the layer was built for.
        index: Row of the table for each pair of tokens, shape ``(n, n)``.
        table: The learned numbers by offset (query minus key), shape ``(heads, 2 wh - 1, 2 ww - 1)``.
        bias: What is added to the scores, shape ``(heads, n, n)``.
    """

    name: str
    window: Pair
    index: Tensor
    table: Tensor
    bias: Tensor


@dataclass(frozen=True)
class BiasAndContent:
    """How much of a layer's attention its relative positions decided, and how much the tokens themselves.

    Attributes:
        name: The layer's name.
        bias_share: Part of the variance of the scores that is the bias's, by image and head, shape ``(B, heads)``;
            the rest is the content's. NaN where the scores do not vary.
        bias_nats: What the bias changed: divergence of the attention from that of the content alone.
        content_nats: What the content changed: divergence of the attention from that of the bias alone.
    """

    name: str
    bias_share: Tensor
    bias_nats: Tensor
    content_nats: Tensor


def position_similarities(model: VisionModel) -> list[PositionSimilarity]:
    """Cosine similarities of learned positions, for each table that the model has; class tokens are left out.

    Raises:
        ConfigError: The model has no absolute positions.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, figure 7, centre.
    """
    found = []
    for name, module in model.named_modules():
        table, grid = getattr(module, "pos_embed", None), getattr(module, "grid", None)
        if isinstance(table, nn.Parameter) and grid is not None:
            places = F.normalize(table.detach()[0, table.shape[1] - grid[0] * grid[1] :].float(), dim=-1)
            similarity = (places @ places.t()).view(*grid, *grid)
            found.append(PositionSimilarity(f"{name}.pos_embed" if name else "pos_embed", grid, similarity))
    if not found:
        raise ConfigError(
            f"{type(model).__name__} learns no absolute positions; its positions are relative: see relative_biases"
        )
    return found


def relative_bias(name: str, module: nn.Module) -> RelativeBias | None:
    """Index, table and bias of a layer with relative positions; None for any other."""
    if isinstance(module, WindowAttention):
        table = module.relative_position_bias_table.detach()
    elif isinstance(module, PartitionAttention):
        table = module.rel_pos.relative_position_bias_table.detach()
    else:
        return None
    wh, ww = module.window
    by_offset = table.t().reshape(-1, 2 * wh - 1, 2 * ww - 1)
    index = relative_position_index(module.window)
    return RelativeBias(name, module.window, index, by_offset, expand_table(table, module.window)[0])


def relative_biases(model: VisionModel) -> list[RelativeBias]:
    """Index, table and bias of all layers with relative positions.

    Raises:
        ConfigError: The model has none.

    Source: Liu et al. 2021, arXiv:2103.14030, equation 4.
    """
    found = [relative_bias(name, module) for name, module in model.named_modules()]
    biases = [bias for bias in found if bias is not None]
    if not biases:
        raise ConfigError(
            f"{type(model).__name__} has no relative positions; its absolute ones are part of its tokens: see "
            "position_similarities"
        )
    return biases


def bias_and_content(model: VisionModel, *inputs: Tensor) -> list[BiasAndContent]:
    """What of each layer's attention its relative positions decided, and what its tokens did.

    The scores of a query are s = c + b: products with the keys, and the bias of the keys' offsets. Both are measured
    over the keys that the query may attend to, and the queries are averaged.

    - The variance of the scores falls into two parts, Var(s) = Cov(b, s) + Cov(c, s). The bias's share is
      sum Cov(b, s) / sum Var(s) over all queries: 0 where it is the same for all keys, 1 where the content is; below 0
      where it works against the content, which is then the greater.
    - What one of them changed is the divergence of the attention softmax(c + b) from what the other alone would have
      given: KL(softmax(c + b) || softmax(c)) for the bias, KL(softmax(c + b) || softmax(b)) for the content, in nats.

    These are definitions of this package. Scores are read off the attention, as its logarithm: both measures are the
    same for scores that differ by a constant for all keys. Weights that are zero, as masked ones are, are left out,
    and so are queries in the padding.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``.

    Raises:
        ConfigError: The model has no relative positions: absolute ones are part of the content.
    """
    biases = {bias.name: bias for bias in relative_biases(model)}

    def measure(step: CapturedMixing) -> Tensor | None:
        known = biases.get(step.name)
        return None if known is None else _measure(step, _bias_in(known, step.layout.window or known.window))

    with torch.no_grad(), capture_attention(model, keep=measure) as record:
        model.forward_features(*inputs)
    return [BiasAndContent(step.name, *step.weights.unbind(-1)) for step in record.steps]


def _bias_in(known: RelativeBias, window: Pair) -> Tensor:
    """The bias in a window that may be smaller than the layer's own, ``(heads, n, n)``."""
    table = known.table.flatten(1).t().float()
    return expand_table(table, window, known.window)[0]


def _measure(step: CapturedMixing, bias: Tensor) -> Tensor:
    """Share and divergences, shape ``(B, heads, 3)``, from weights ``(B * groups, heads, n, n)``."""
    real = real_tokens(step.layout, step.weights.device)
    weights = step.weights.float()
    weights = weights.view(-1, len(real), *weights.shape[1:])
    seen = weights > 0
    # Zero where nothing is seen, so that sums leave it out.
    scores = weights.clamp_min(torch.finfo(torch.float32).tiny).log() * seen
    bias = bias * seen
    count = seen.sum(dim=-1, keepdim=True).clamp_min(1)
    centred = [(x - x.sum(dim=-1, keepdim=True) / count) * seen for x in (bias, scores)]
    counted = real[:, None] * (1.0 / count.squeeze(-1))
    covariance, variance = ((x * centred[1]).sum(dim=-1) * counted for x in centred)
    share = covariance.sum(dim=(1, 3)) / variance.sum(dim=(1, 3))
    nats = [_divergence(weights, scores, other, seen) for other in (scores - bias, bias)]
    means = [(x * real[:, None]).sum(dim=(1, 3)) / real.sum() for x in nats]
    return torch.stack([share, *means], dim=-1)


def _divergence(weights: Tensor, logarithm: Tensor, scores: Tensor, seen: Tensor) -> Tensor:
    """KL(weights || softmax(scores)) of each row, over the keys that are seen."""
    other = scores.masked_fill(~seen, -math.inf).log_softmax(dim=-1)
    return (weights * (logarithm - other.masked_fill(~seen, 0.0))).sum(dim=-1)
