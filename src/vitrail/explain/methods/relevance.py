"""A row carried from a model's output back to its input, through one layer's matrix after the other.

What attention rollout, gradient rollout and attribution share. They differ in what they make of a layer's weights
when it reports them, and in how a branch and the residual connection beside it add up. Only a row vector is carried,
so the full N x N product is never built, and of the weights no more is kept than one matrix a layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.groups import from_groups, normalize_rows, real_tokens, to_groups
from vitrail.explain.capture.record import CapturedMixing, first_stride, lacks_taps
from vitrail.explain.methods.maps import StreamMap, upsample
from vitrail.layers.patch_merging import PARENTS
from vitrail.layers.tap import TokenLayout
from vitrail.models.base import VisionModel

HeadFusion = Literal["mean", "max", "min"]


@dataclass(frozen=True)
class Rollout:
    """How much each place of an input contributed.

    Attributes:
        map: Shape ``(B, H, W)``, at the input's resolution, interpolated from the tokens.
        tokens: Shape ``(B, h, w)``, on the grid of the first tokens; sums to one for each image, or to zero where
            nothing speaks for the class that was asked for.
        share: How much of the whole came from this input, shape ``(B,)``: one where it is the only one.
        others: The same for the model's other streams, by name.
    """

    map: Tensor
    tokens: Tensor
    share: Tensor
    others: dict[str, Rollout]

    def by_stream(self, model: VisionModel) -> dict[str, StreamMap]:
        """The same as the streams of an explanation."""
        results = {model.streams[0].name: self, **self.others}
        return {name: StreamMap(result.map, result.tokens, result.share) for name, result in results.items()}


def roll_back(
    model: VisionModel,
    row: Tensor,
    steps: Sequence[CapturedMixing],
    inputs: Sequence[Tensor | None],
    averaged: bool = True,
) -> Rollout:
    """Carry a row from the last tokens to the first ones of every stream.

    Args:
        model: The model.
        row: How much the result reads of each of the last tokens, shape ``(B, N)``.
        steps: All layers in the order in which they ran; of their weights what a method made of them, one matrix
            for each image or group, ``(B, queries, keys)``, without what padding gave.
        inputs: What the model was given; a stream without input gets no map.
        averaged: Whether a layer with a residual connection is the mean of the two (rollout) or their sum
            (attribution); what never left its token, by residual connections alone, is left out of the sum.
    """
    carrier = Carrier(model.num_prefix, averaged)
    streams = model.stream_prefixes or {"image": ""}
    first = next(iter(streams))
    if not averaged:
        # What is carried is small beside what stays, which is taken off in the end.
        row = row.double()
    grids: dict[str, tuple[int, int]] = {}
    rows = {first: row}
    for step in reversed(steps):
        if step.layout.kind == "cross":
            (second,) = (name for name in streams if name != first)
            rows[first], rows[second] = carrier.split(rows[first], step.weights)
            grids[second] = _grid(step)
        else:
            stream = next(name for name, prefix in streams.items() if step.name.startswith(prefix))
            rows[stream], grids[stream] = carrier.back(rows[stream], step), _grid(step)
    if not averaged:
        own = [step for step in steps if step.layout.kind != "cross" and step.name.startswith(streams[first])]
        rows[first] = (rows[first] - _unmoved(row, own, model.num_prefix)).clamp_min(0)
    tokens = {name: row[:, model.num_prefix :].float() for name, row in rows.items()}
    total = torch.stack([row.sum(dim=1) for row in tokens.values()]).sum(dim=0)
    results = {
        name: _result(row, grids[name], total, image.shape, first_stride(model, name))
        for (name, row), image in zip(tokens.items(), inputs, strict=False)
        if image is not None
    }
    return dataclasses.replace(results.pop(first), others=results)


def _unmoved(row: Tensor, steps: Sequence[CapturedMixing], prefix: int) -> Tensor:
    """What of a row comes back to the first tokens by residual connections and merging alone."""
    fused = 0
    for step in reversed(steps):
        kind = step.layout.kind
        if kind == "merge":
            row = _to_parents(row, step)
        elif kind == "mix":
            fused += 1
        elif kind == "pool" and fused:
            fused -= 1  # tokens that went around it
        elif kind == "pool":
            row = torch.cat([row[:, :prefix], row.new_zeros(len(row), step.weights.shape[-1])], dim=1)
    return row


def lacks_mean(model: VisionModel) -> str | None:
    """Why no fixed weights of the last tokens give what the classifier reads; None where they do."""
    if model.global_pool in ("token", "avg"):
        return None
    return (
        f"global_pool={model.global_pool!r} does not read the class token or the mean of the last tokens, where the "
        "method starts; build the model with global_pool='avg', or use 'gradcam', which follows the gradient"
    )


def lacks_rollout(model: VisionModel) -> str | None:
    """Reason why the mixing of all layers cannot be composed up to the classifier; None where it can."""
    return lacks_taps(model) or lacks_mean(model)


def reading_row(model: VisionModel, features: Tensor, last: TokenLayout) -> Tensor:
    """Where the model reads its last tokens: the class token, or all others alike.

    Args:
        model: The model.
        features: Its last tokens, as :meth:`~vitrail.models.base.VisionModel.forward_features` gives them.
        last: Layout of the last layer that reported.

    Returns:
        Shape ``(B, N)``; sums to one.

    Raises:
        ConfigError: Another pooling, see :func:`lacks_mean`.
    """
    lack = lacks_mean(model)
    if lack is not None:
        raise ConfigError(f"this explanation is not possible: {lack}")
    grid = last.query_grid
    number = features.shape[1] if features.ndim == 3 or grid is None else grid[0] * grid[1]
    row = torch.zeros(features.shape[0], number, dtype=torch.float32, device=features.device)
    if reads_class_token(model):
        row[:, 0] = 1.0
    else:
        row[:, model.num_prefix :] = 1.0 / (number - model.num_prefix)
    return row


def reads_class_token(model: VisionModel) -> bool:
    """Whether the classifier sees the class token; otherwise it sees the mean over the other tokens."""
    return bool(getattr(model.config, "global_pool", "avg") == "token")


def _grid(step: CapturedMixing) -> tuple[int, int]:
    """The grid of the tokens that a layer took; (0, 0) for tokens that were learned and have none."""
    return step.layout.key_grid or step.layout.query_grid or (0, 0)


def _result(
    tokens: Tensor, grid: tuple[int, int], total: Tensor, shape: Sequence[int], stride: tuple[int, int]
) -> Rollout:
    tiny = torch.finfo(tokens.dtype).tiny
    share = tokens.sum(dim=1)
    places = (tokens / share[:, None].clamp_min(tiny)).reshape(len(tokens), *grid)
    return Rollout(upsample(places, (shape[2], shape[3]), stride), places, share / total.clamp_min(tiny), {})


class Carrier:
    """Multiplies a row vector by one layer's matrix after the other, last layer first.

    Args:
        prefix: Class and other tokens before the grid.
        averaged: Whether a layer with a residual connection is the mean of the two, its rows scaled to sum to one, or
            their sum.
    """

    def __init__(self, prefix: int, averaged: bool = True) -> None:
        self.prefix, self.averaged = prefix, averaged
        self._waiting: list[Tensor] = []
        self._spread: Tensor | None = None

    def split(self, row: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """What of a row ``(B, queries)`` stays with the tokens themselves, and what came from the keys, ``(B, keys)``.

        Args:
            row: At a layer's output.
            matrix: Of the branch beside the residual connection, shape ``(B, queries, keys)``.
        """
        if self.averaged:
            row = row / (1 + matrix.sum(dim=-1))
        return row, through(row, matrix)

    def back(self, row: Tensor, step: CapturedMixing) -> Tensor:
        """From a layer's output ``(B, queries)`` to its input ``(B, keys)``."""
        kind = step.layout.kind
        if kind == "global":
            return _sum(self.split(row, step.weights))
        if kind in ("window", "grid"):
            return from_groups(_sum(self.split(to_groups(row, step.layout), step.weights)), step.layout)
        if kind == "merge":
            return _to_parents(row, step)
        if kind == "fuse":
            # Until it is known what the tokens that were spread had been mixed from.
            self._spread = step.weights
            return row
        head, rest = row[:, : self.prefix], row[:, self.prefix :]
        if kind == "mix":
            assert self._spread is not None, "what is mixed is spread afterwards"
            matrix = self._spread @ step.weights
            stays, taken = self.split(rest, normalize_rows(matrix) if self.averaged else matrix)
            # What a fused token was before its block waits for the block's TokenLearner.
            self._waiting.append(stays)
            return torch.cat([head, taken], dim=1)
        assert kind == "pool", f"a layout of kind {kind} that rollout does not know"
        rest = through(rest, step.weights)
        return torch.cat([head, rest + self._waiting.pop() if self._waiting else rest], dim=1)


def _sum(parts: tuple[Tensor, Tensor]) -> Tensor:
    return parts[0] + parts[1]


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


def through(row: Tensor, matrix: Tensor) -> Tensor:
    """A row ``(B, queries)`` times a matrix ``(B, queries, keys)``."""
    return (row[:, None] @ matrix.to(row.dtype))[:, 0]


def fuse_heads(
    weights: Tensor, layout: TokenLayout, head_fusion: HeadFusion = "mean", discard_ratio: float = 0.0
) -> Tensor:
    """One matrix from those of all heads, without what padding gave: that came from no place.

    Args:
        weights: Attention, shape ``(B, heads, N, M)``.
        layout: Of the layer.
        head_fusion: How heads are fused.
        discard_ratio: Share of the smallest weights of each row set to zero.

    Returns:
        Shape ``(B, N, M)``, in single precision.
    """
    if head_fusion == "mean":
        fused = weights.mean(dim=1)
    else:
        fused = weights.amax(dim=1) if head_fusion == "max" else weights.amin(dim=1)
    fused = fused.float()
    if layout.kind in ("window", "grid") and layout.padding != (0, 0):
        # The reference implementations let padding take part.
        real = real_tokens(layout, fused.device)
        fused = (fused.view(-1, *real.shape, real.shape[1]) * real[:, None]).flatten(0, 1)
    count = int(fused.shape[-1] * discard_ratio)
    if count:
        smallest = fused.topk(count, dim=-1, largest=False).indices
        fused = fused.scatter(-1, smallest, 0.0)
    return fused


def check_fusion(head_fusion: str, discard_ratio: float) -> None:
    """Refuse settings that :func:`fuse_heads` does not know.

    Raises:
        ConfigError: Naming the setting, what it may be, and the value.
    """
    if not 0.0 <= discard_ratio < 1.0:
        raise ConfigError(f"discard_ratio must be at least 0 and below 1, got {discard_ratio}")
    if head_fusion not in ("mean", "max", "min"):
        raise ConfigError(f"head_fusion must be 'mean', 'max' or 'min', got {head_fusion!r}")
