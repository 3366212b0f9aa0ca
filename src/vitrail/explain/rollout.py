"""Attention rollout: how much of each input token reaches the output, composed through all layers.

Only a row vector is carried from the output back to the input, so the full N x N product is never built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture import CapturedMixing, capture_attention
from vitrail.explain.interface import StreamMap, register_method, upsample
from vitrail.layers.patch_merging import PARENTS
from vitrail.layers.tap import TokenLayout
from vitrail.layers.windows import (
    merge_grid,
    merge_windows,
    partition_grid,
    partition_windows,
    shift_map,
    unshift_map,
)
from vitrail.models.base import VisionModel

HeadFusion = Literal["mean", "max", "min"]


@dataclass(frozen=True)
class Rollout:
    """How much each place of an input contributed.

    Attributes:
        map: Shape ``(B, H, W)``, at the input's resolution, interpolated from the tokens.
        tokens: Shape ``(B, h, w)``, on the grid of the first tokens; sums to one for each image.
        share: How much of the whole came from this input, shape ``(B,)``: one where it is the only one.
        others: The same for the model's other streams, by name.
    """

    map: Tensor
    tokens: Tensor
    share: Tensor
    others: dict[str, Rollout]


def attention_rollout(
    model: VisionModel, *inputs: Tensor | None, head_fusion: HeadFusion = "mean", discard_ratio: float = 0.0
) -> Rollout:
    """Attention rollout through every layer of a model of any family.

    Each attention counts half, its residual connection the other half: A' = (A + I) / 2, heads fused, rows
    renormalised. Attention in windows or grids is the same matrix spread to the tokens' places on the map. A merged
    token, and one after a convolution of stride 2, is the mean of its 2 x 2 parents. TokenLearner contributes its
    selection weights, normalised over positions; after a TokenFuser a token is half itself, half its share of the
    learned tokens; after the fusion of two streams an image token is half itself, half what it took from the other
    stream. Convolutions of stride 1 and perceptrons leave tokens where they are. The result is read where the model
    reads it: in the class token's row, or in the mean over tokens.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream. A stream whose input is None, or
            left out, where the model allows that, has no map; its share is what the others lack.
        head_fusion: How heads are fused.
        discard_ratio: Share of the smallest weights of each row set to zero before the residual is added.

    Raises:
        ConfigError: Settings out of range.

    Source: Abnar & Zuidema 2020, arXiv:2005.00928, section 3.
    """
    if not 0.0 <= discard_ratio < 1.0:
        raise ConfigError(f"discard_ratio must be at least 0 and below 1, got {discard_ratio}")
    if head_fusion not in ("mean", "max", "min"):
        raise ConfigError(f"head_fusion must be 'mean', 'max' or 'min', got {head_fusion!r}")
    with torch.no_grad(), capture_attention(model) as record:
        features = model.forward_features(*inputs)  # type: ignore[arg-type]  # None is for the model to judge
    carrier = _Carrier(model.num_prefix, head_fusion, discard_ratio)
    streams = model.stream_prefixes or {"image": ""}
    first = next(iter(streams))
    grids: dict[str, tuple[int, int]] = {}
    rows = {first: _reading(model, features, record.steps[-1].layout)}
    for step in reversed(record.steps):
        if step.layout.kind == "cross":
            (second,) = (name for name in streams if name != first)
            rows[first], rows[second] = rows[first] / 2, carrier.across(rows[first] / 2, step)
            grids[second] = _grid(step)
        else:
            stream = next(name for name, prefix in streams.items() if step.name.startswith(prefix))
            rows[stream], grids[stream] = carrier.back(rows[stream], step), _grid(step)
    tokens = {name: row[:, model.num_prefix :] for name, row in rows.items()}
    total = torch.stack([row.sum(dim=1) for row in tokens.values()]).sum(dim=0)
    results = {
        name: _result(row, grids[name], total, image.shape)
        for (name, row), image in zip(tokens.items(), inputs, strict=False)
        if image is not None
    }
    return dataclasses.replace(results.pop(first), others=results)


def _reading(model: VisionModel, features: Tensor, last: TokenLayout) -> Tensor:
    """The row in which the model reads its tokens, shape ``(B, N)``."""
    grid = last.query_grid
    number = features.shape[1] if features.ndim == 3 or grid is None else grid[0] * grid[1]
    row = torch.zeros(features.shape[0], number, dtype=torch.float32, device=features.device)
    if getattr(model.config, "global_pool", "avg") == "token":
        row[:, 0] = 1.0
    else:
        row[:, model.num_prefix :] = 1.0 / (number - model.num_prefix)
    return row


def _grid(step: CapturedMixing) -> tuple[int, int]:
    """The grid of the tokens that a layer took; (0, 0) for tokens that were learned and have none."""
    return step.layout.key_grid or step.layout.query_grid or (0, 0)


def _result(tokens: Tensor, grid: tuple[int, int], total: Tensor, shape: Sequence[int]) -> Rollout:
    share = tokens.sum(dim=1)
    places = (tokens / share[:, None].clamp_min(torch.finfo(tokens.dtype).tiny)).reshape(len(tokens), *grid)
    return Rollout(upsample(places, (shape[2], shape[3])), places, share / total, {})


class _Carrier:
    """Multiplies a row vector by one layer's matrix after the other, last layer first.

    Args:
        prefix: Class and other tokens before the grid.
        head_fusion: How heads are fused.
        discard_ratio: Share of the smallest weights of each row set to zero.
    """

    def __init__(self, prefix: int, head_fusion: HeadFusion, discard_ratio: float) -> None:
        self.prefix, self.head_fusion, self.discard_ratio = prefix, head_fusion, discard_ratio
        self._waiting: list[Tensor] = []

    def back(self, row: Tensor, step: CapturedMixing) -> Tensor:
        """From a layer's output ``(B, queries)`` to its input ``(B, keys)``."""
        kind = step.layout.kind
        if kind == "global":
            return _through(row, mixing_matrix(step.weights, self.head_fusion, self.discard_ratio))
        if kind in ("window", "grid"):
            return self._in_groups(row, step)
        if kind == "merge":
            return _to_parents(row, step)
        head, rest = row[:, : self.prefix], row[:, self.prefix :]
        if kind == "fuse":
            # Half of a fused token is what it was before its block; that half waits for the block's TokenLearner.
            self._waiting.append(rest / 2)
            return torch.cat([head, _through(rest / 2, normalize_rows(step.weights))], dim=1)
        assert kind == "pool", f"a layout of kind {kind} that rollout does not know"
        rest = _through(rest, normalize_rows(step.weights))
        return torch.cat([head, rest + self._waiting.pop() if self._waiting else rest], dim=1)

    def across(self, row: Tensor, step: CapturedMixing) -> Tensor:
        """From the tokens that asked ``(B, queries)`` to those of the other stream ``(B, keys)``."""
        weights = fuse_heads(step.weights, self.head_fusion, self.discard_ratio)
        return _through(row, normalize_rows(weights))

    def _in_groups(self, row: Tensor, step: CapturedMixing) -> Tensor:
        layout = step.layout
        grid, window, shift, padding = layout.query_grid, layout.window, layout.shift, layout.padding
        assert grid is not None, "groups are parts of a grid"
        assert window is not None, "groups have a size"
        windows = layout.kind == "window"

        def split(x: Tensor) -> Tensor:
            rolled = shift_map(x, padding, shift, layout.pad_after_shift)
            return (partition_windows if windows else partition_grid)(rolled, window)

        groups = split(row.reshape(-1, *grid, 1)).squeeze(-1)
        # What padding gave, where it takes part as the reference implementations let it, came from no place.
        real = split(torch.ones(len(row), *grid, 1, device=row.device)).squeeze(-1)
        matrix = mixing_matrix(step.weights * real[:, None, None], self.head_fusion, self.discard_ratio)
        full = (grid[0] + padding[0], grid[1] + padding[1])
        carried = (merge_windows if windows else merge_grid)(_through(groups, matrix)[..., None], window, full)
        return unshift_map(carried, grid, shift, layout.pad_after_shift).flatten(1)


def _to_parents(row: Tensor, step: CapturedMixing) -> Tensor:
    """From merged tokens to the 2 x 2 tokens that each was made of."""
    before, after = step.layout.key_grid, step.layout.query_grid
    assert before is not None, "merging has a grid before"
    assert after is not None, "merging has a grid after"
    shares = (row[:, :, None] * step.weights).reshape(-1, *after, len(PARENTS))
    spread = row.new_zeros(len(row), 2 * after[0], 2 * after[1])
    for number, (down, right) in enumerate(PARENTS):
        spread[:, down::2, right::2] = shares[..., number]
    return spread[:, : before[0], : before[1]].flatten(1)


def _through(row: Tensor, matrix: Tensor) -> Tensor:
    return (row[:, None] @ matrix.float())[:, 0]


def fuse_heads(weights: Tensor, head_fusion: HeadFusion = "mean", discard_ratio: float = 0.0) -> Tensor:
    """One matrix from those of all heads.

    Args:
        weights: Attention, shape ``(B, heads, N, M)``.
        head_fusion: How heads are fused.
        discard_ratio: Share of the smallest weights of each row set to zero.

    Returns:
        Shape ``(B, N, M)``.
    """
    if head_fusion == "mean":
        fused = weights.mean(dim=1)
    else:
        fused = weights.amax(dim=1) if head_fusion == "max" else weights.amin(dim=1)
    count = int(fused.shape[-1] * discard_ratio)
    if count:
        smallest = fused.topk(count, dim=-1, largest=False).indices
        fused = fused.scatter(-1, smallest, 0.0)
    return fused


def mixing_matrix(weights: Tensor, head_fusion: HeadFusion = "mean", discard_ratio: float = 0.0) -> Tensor:
    """(A + I) / 2 with fused heads and rows that sum to one.

    Args:
        weights: Attention, shape ``(B, heads, N, N)``.
        head_fusion: How heads are fused.
        discard_ratio: Share of the smallest weights of each row set to zero.

    Returns:
        Shape ``(B, N, N)``.
    """
    fused = fuse_heads(weights, head_fusion, discard_ratio)
    identity = torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)
    return normalize_rows((fused + identity) / 2)


def normalize_rows(matrix: Tensor) -> Tensor:
    """Scale each row (last dimension) to sum to one."""
    return matrix / matrix.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)


@register_method("rollout", by_class=False)
def _rollout(
    model: VisionModel,
    inputs: Sequence[Tensor | None],
    target: Tensor | None,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
) -> dict[str, StreamMap]:
    """Attention of all layers composed, from the output back to the input (Abnar & Zuidema 2020)."""
    first = attention_rollout(model, *inputs, head_fusion=head_fusion, discard_ratio=discard_ratio)
    results = {model.streams[0].name: first, **first.others}
    return {name: StreamMap(result.map, result.tokens, result.share) for name, result in results.items()}
