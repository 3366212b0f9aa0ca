"""Vector-matrix products that propagate relevance from the output back to the input, layer by layer.

Shared by attention rollout, gradient rollout and attribution. They differ in the matrix of a layer, and in the sum of
a branch and its residual connection. Only a row vector is propagated: the N x N product is never built, and one matrix
for each layer is stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.forwarding import input_sizes
from vitrail.explain.capture.groups import from_groups, group_members, normalize_rows, real_tokens, to_groups
from vitrail.explain.capture.record import CapturedMixing, first_tiles, lacks_taps
from vitrail.explain.methods.maps import StreamMap, upsample
from vitrail.layers.patch_merging import PARENTS
from vitrail.layers.shapes import product
from vitrail.layers.tap import Grid, TokenLayout
from vitrail.models.base import VisionModel
from vitrail.models.facts import Tiles

HeadFusion = Literal["mean", "max", "min"]
# Where the smallest weights are discarded: in each row, or in the whole matrix of an image.
DiscardFrom = Literal["row", "matrix"]


@dataclass(frozen=True)
class Rollout:
    """Relevance of each position of an input.

    Attributes:
        map: Shape ``(B, H, W)``, of a clip ``(B, T, H, W)``, at the input's resolution, interpolated from the tokens.
        tokens: Shape ``(B, h, w)``, of a clip ``(B, t, h, w)``, on the grid of the first tokens; sums to one for each
            image, or to zero where no attention has a positive gradient for the class.
        share: Share of this input in the total relevance, shape ``(B,)``; one for a model of one stream.
        others: Relevance of the model's other streams, by name.
    """

    map: Tensor
    tokens: Tensor
    share: Tensor
    others: dict[str, Rollout]

    def by_stream(self, model: VisionModel) -> dict[str, StreamMap]:
        """Convert to the streams of an explanation."""
        results = {model.streams[0].name: self, **self.others}
        return {name: StreamMap(result.map, result.tokens, result.share) for name, result in results.items()}


def propagate(
    model: VisionModel,
    row: Tensor,
    steps: Sequence[CapturedMixing],
    inputs: Sequence[Tensor | None],
    averaged: bool = True,
) -> Rollout:
    """Propagate a row from the last tokens to the first tokens of every stream.

    Args:
        model: The model.
        row: Weight of each of the last tokens in the output, shape ``(B, N)``.
        steps: All layers in order; their weights are one matrix for each image or group, ``(B, queries, keys)``, zero
            at padded keys.
        inputs: Inputs of the model; a stream without input gets no map.
        averaged: Whether a branch and its residual connection are averaged (rollout) or added (attribution). The sum
            omits the identity: the part that only residual connections propagate.
    """
    propagation = Propagation(averaged)
    streams = relevance_streams(model)
    first = next(iter(streams))
    if not averaged:
        # The relevance is small beside the identity, which is subtracted in the end.
        row = row.double()
    grids: dict[str, Grid] = {}
    rows = {first: row}
    for step in reversed(steps):
        if step.layout.kind == "cross":
            (second,) = (name for name in streams if name != first)
            rows[first], rows[second] = propagation.split(rows[first], step.weights)
            grids[second] = _grid(step)
        else:
            stream = next(name for name, prefix in streams.items() if step.name.startswith(prefix))
            rows[stream], grids[stream] = propagation.back(rows[stream], step), _grid(step)
    if not averaged:
        own = [step for step in steps if step.layout.kind != "cross" and step.name.startswith(streams[first])]
        rows[first] = (rows[first] - _identity_part(row, own)).clamp_min(0)
    tokens = {name: row[:, row.shape[1] - product(grids[name]) :].float() for name, row in rows.items()}
    total = torch.stack([row.sum(dim=1) for row in tokens.values()]).sum(dim=0)
    results = {
        name: _result(tokens[name], grids[name], total, size, first_tiles(model, name))
        for name, size in input_sizes(model, inputs).items()
        if name in streams
    }
    return dataclasses.replace(results.pop(first), others=results)


def relevance_streams(model: VisionModel) -> Mapping[str, str]:
    """Return the streams whose inputs get relevance, with the prefix of their layers.

    Attributes of points are mixed as the points themselves, and get none of their own. A family names the prefixes of
    all streams that its models can have.
    """
    own = {stream.name for stream in model.streams}
    prefixes = {name: prefix for name, prefix in model.stream_prefixes.items() if name in own}
    return prefixes or {model.streams[0].name: ""}


def _identity_part(row: Tensor, steps: Sequence[CapturedMixing]) -> Tensor:
    """Propagate a row through residual connections and merging alone."""
    fused = 0
    for step in reversed(steps):
        kind = step.layout.kind
        if kind in _REGROUPINGS:
            row = _REGROUPINGS[kind](row, step)
        elif kind == "mix":
            fused += 1
        elif kind == "pool" and fused:
            fused -= 1  # a residual connection bypasses the TokenLearner of a fused block
        elif kind == "pool":
            prefix, _ = _split(row, step.weights.shape[1])
            row = torch.cat([prefix, row.new_zeros(row.shape[0], step.weights.shape[-1])], dim=1)
    return row


def lacks_mean(model: VisionModel) -> str | None:
    """Return the reason why the pooling is not a fixed mean of the last tokens; None where it is."""
    if model.global_pool in ("token", "avg"):
        return None
    return (
        f"global_pool={model.global_pool!r} does not read the class token or the mean of the last tokens, where the "
        "method starts; build the model with global_pool='avg', or use 'gradcam', which follows the gradient"
    )


def lacks_rollout(model: VisionModel) -> str | None:
    """Return the reason why no rollout of a model is possible; None where one is."""
    return lacks_taps(model) or (None if model.weighs_tokens else lacks_mean(model))


def pooling_row(model: VisionModel, features: Tensor, last: TokenLayout) -> Tensor:
    """Compute the weights of the last tokens in the pooling: class tokens, the mean of the others, or an attention.

    Args:
        model: The model.
        features: Output of :meth:`~vitrail.models.base.VisionModel.forward_features`.
        last: Layout of the last layer with a tap.

    Returns:
        Shape ``(B, N)``; sums to one.

    Raises:
        ConfigError: Another pooling, see :func:`lacks_mean`.
    """
    weights = model.pooling_weights(features)
    if weights is not None:
        return weights.float()
    lack = lacks_mean(model)
    if lack is not None:
        raise ConfigError(f"this model cannot be explained: {lack}")
    grid = last.query_grid
    count = features.shape[1] if features.ndim == 3 or grid is None else product(grid)
    row = torch.zeros(features.shape[0], count, dtype=torch.float32, device=features.device)
    if model.reads_class_token:
        row[:, : model.num_class_tokens] = 1.0
    else:
        row[:, model.num_prefix :] = 1.0
    # The count is a symbol in a graph for any size, which engines cannot divide by.
    return row / row.sum(dim=1, keepdim=True)


def _grid(step: CapturedMixing) -> Grid:
    """Return the grid of a layer's input tokens; (0, 0) for learned tokens, which have none."""
    return step.layout.key_grid or step.layout.query_grid or (0, 0)


def _result(tokens: Tensor, grid: Grid, total: Tensor, size: Grid, tiles: Tiles) -> Rollout:
    tiny = torch.finfo(tokens.dtype).tiny
    share = tokens.sum(dim=1)
    scaled = (tokens / share[:, None].clamp_min(tiny)).reshape(tokens.shape[0], *grid)
    return Rollout(upsample(scaled, size, tiles), scaled, share / total.clamp_min(tiny), {})


class Propagation:
    """Multiply a row vector by the matrices of layers, last layer first.

    Args:
        averaged: Whether a branch and its residual connection are averaged, rows scaled to sum to one, or added.
    """

    def __init__(self, averaged: bool = True) -> None:
        self.averaged = averaged
        self._bypassing: list[Tensor] = []
        self._spread: Tensor | None = None

    def split(self, row: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Split a row into the parts of the residual connection, ``(B, queries)``, and of the branch, ``(B, keys)``.

        Args:
            row: Relevance at a layer's output, shape ``(B, queries)``.
            matrix: Matrix of the branch, shape ``(B, queries, keys)``.
        """
        if self.averaged:
            row = row / (1 + matrix.sum(dim=-1))
        return row, row_product(row, matrix)

    def back(self, row: Tensor, step: CapturedMixing) -> Tensor:
        """Propagate from a layer's output ``(B, queries)`` to its input ``(B, keys)``."""
        kind = step.layout.kind
        if kind == "global":
            return _sum(self.split(row, step.weights))
        if kind in ("window", "grid"):
            return from_groups(_sum(self.split(to_groups(row, step.layout), step.weights)), step.layout)
        if kind in _REGROUPINGS:
            return _REGROUPINGS[kind](row, step)
        if kind == "fuse":
            # Stored until the step before it, which mixed the learned tokens.
            self._spread = step.weights
            return row
        # Class tokens, which learn no tokens, come first.
        if kind == "mix":
            assert self._spread is not None, "a fuse step follows each mix step"
            head, rest = _split(row, self._spread.shape[1])
            matrix = self._spread @ step.weights
            residual, mixed = self.split(rest, normalize_rows(matrix) if self.averaged else matrix)
            # The residual connection bypasses the TokenLearner of the block.
            self._bypassing.append(residual)
            return torch.cat([head, mixed], dim=1)
        assert kind == "pool", f"rollout knows no layout of kind {kind}"
        head, rest = _split(row, step.weights.shape[1])
        rest = row_product(rest, step.weights)
        return torch.cat([head, rest + self._bypassing.pop() if self._bypassing else rest], dim=1)


def _sum(parts: tuple[Tensor, Tensor]) -> Tensor:
    return parts[0] + parts[1]


def _split(row: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Split off the last ``count`` values of rows."""
    return row[:, : row.shape[1] - count], row[:, row.shape[1] - count :]


def _to_slices(row: Tensor, step: CapturedMixing) -> Tensor:
    """Propagate from one token for each slice of time to the tokens of the slices: their prefix tokens first."""
    times, prefix = step.weights.shape[1], step.layout.num_prefix
    shares = _split(row, times)[1][:, :, None] * step.weights
    return torch.cat([shares[:, :, :prefix].flatten(1), shares[:, :, prefix:].flatten(1)], dim=1)


def _to_matched(row: Tensor, step: CapturedMixing) -> Tensor:
    """Propagate from tokens to those that they were averaged from; prefix tokens come first."""
    prefix, rest = _split(row, step.weights.shape[1])
    return torch.cat([prefix, row_product(rest, step.weights)], dim=1)


def _to_parents(row: Tensor, step: CapturedMixing) -> Tensor:
    """Propagate from merged tokens to their 2 x 2 parents; slices of time are merged one by one."""
    batch, row = row.shape[0], row.reshape(step.weights.shape[0], -1)
    before, after = step.layout.key_grid, step.layout.query_grid
    assert before is not None, "merging has a grid before"
    assert after is not None, "merging has a grid after"
    shares = (row[:, :, None] * step.weights).reshape(-1, *after, len(PARENTS))
    spread = row.new_zeros(row.shape[0], 2 * after[0], 2 * after[1])
    for i, (down, right) in enumerate(PARENTS):
        spread[:, down::2, right::2] = shares[..., i]
    return spread[:, : before[0], : before[1]].reshape(batch, -1)


# Kinds of layers that no residual connection bypasses.
_REGROUPINGS: dict[str, Callable[[Tensor, CapturedMixing], Tensor]] = {
    "merge": _to_parents,
    "slices": _to_slices,
    "match": _to_matched,
}


def row_product(row: Tensor, matrix: Tensor) -> Tensor:
    """Multiply rows ``(B, queries)`` by matrices ``(B, queries, keys)``."""
    return (row[:, None] @ matrix.to(row.dtype))[:, 0]


def fuse_heads(
    weights: Tensor,
    layout: TokenLayout,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
    discard_from: DiscardFrom = "row",
) -> Tensor:
    """Fuse the heads of an attention; weights of padded keys become zero.

    Args:
        weights: Attention, shape ``(B, heads, N, M)``.
        layout: Layout of the layer.
        head_fusion: Mean, maximum or minimum over heads.
        discard_ratio: Share of the smallest weights set to zero.
        discard_from: "row" discards them from each row; "matrix" from the whole matrix of an image (all its windows
            together), where the first weight, that of the class token to itself, stays.

    Returns:
        Shape ``(B, N, M)``, float32.

    Source: discarding from the whole matrix: J. Gildenblat's program vit-explain.
    """
    if head_fusion == "mean":
        fused = weights.mean(dim=1)
    else:
        fused = weights.amax(dim=1) if head_fusion == "max" else weights.amin(dim=1)
    fused = fused.float()
    if layout.kind in ("window", "grid") and any(layout.padding):
        # In the reference implementations padded tokens are keys, too.
        real = real_tokens(layout, fused.device)
        fused = (fused.view(-1, *real.shape, real.shape[1]) * real[:, None]).flatten(0, 1)
    if discard_from == "row":
        return _without_smallest(fused, discard_ratio)
    groups = len(group_members(layout)) if layout.kind in ("window", "grid") else 1
    flat = fused.reshape(len(fused) // groups, -1)
    rest = _without_smallest(flat, discard_ratio)
    if layout.num_prefix:
        rest = torch.cat([flat[:, :1], rest[:, 1:]], dim=1)
    return rest.view(fused.shape)


def _without_smallest(values: Tensor, ratio: float) -> Tensor:
    """Set the smallest share of each row (last dimension) to zero."""
    count = int(values.shape[-1] * ratio)
    if not count:
        return values
    return values.scatter(-1, values.topk(count, dim=-1, largest=False).indices, 0.0)


def check_head_fusion(head_fusion: str, discard_ratio: float, discard_from: str = "row") -> None:
    """Check the settings of :func:`fuse_heads`.

    Raises:
        ConfigError: A setting is out of range.
    """
    if not 0.0 <= discard_ratio < 1.0:
        raise ConfigError(f"discard_ratio must be at least 0 and below 1, got {discard_ratio}")
    if head_fusion not in ("mean", "max", "min"):
        raise ConfigError(f"head_fusion must be 'mean', 'max' or 'min', got {head_fusion!r}")
    if discard_from not in ("row", "matrix"):
        raise ConfigError(f"discard_from must be 'row' or 'matrix', got {discard_from!r}")
