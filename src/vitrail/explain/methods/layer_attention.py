"""Attention of one layer as maps, and attention distances of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vitrail.errors import ConfigError, closest
from vitrail.explain.capture.forwarding import input_sizes
from vitrail.explain.capture.groups import coordinates, from_groups, group_members, real_tokens, to_groups
from vitrail.explain.capture.record import (
    CapturedMixing,
    capture_attention,
    check_reports,
    class_tokens,
    lacks_taps,
    last_tiles,
    layer_at,
    layer_tiles,
    measure_layers,
    numbered_layers,
    tapped_layers,
)
from vitrail.explain.methods.maps import StreamMap, upsample
from vitrail.explain.methods.registry import register_method
from vitrail.explain.structure.token_groups import uniform_attention
from vitrail.layers.shapes import product
from vitrail.layers.tap import Grid, TokenLayout
from vitrail.models.base import VisionModel
from vitrail.models.facts import Tiles

Query = tuple[int, int] | Literal["class", "mean"]


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of one layer.

    Attributes:
        layer: The layer's name.
        stream: Stream of the keys.
        query: The query: row and column in pixels, the class token, or the mean over all tokens of the grid.
        layout: Layout that the layer reported.
        maps: Weights of the keys by head, shape ``(B, heads, h, w)``. They sum to one without the weights of the class
            token and of padding that is not masked.
        tiles: Pixels of each key.
    """

    layer: str
    stream: str
    query: Query
    layout: TokenLayout
    maps: Tensor
    tiles: Tiles


@dataclass(frozen=True)
class AttentionDistance:
    """Mean attention distance of one layer.

    Attributes:
        layer: The layer's name.
        stride: Pixels per token.
        kind: Kind of its layout: "global", "window" or "grid".
        distance: Mean distance from query to key in pixels, by image and head, shape ``(B, heads)``.
        uniform: Mean distance of uniform attention over the same keys.
    """

    layer: str
    stride: Grid
    kind: str
    distance: Tensor
    uniform: float


def attention_maps(
    model: VisionModel, *inputs: Tensor | None, layer: str | int | None = None, query: Query | None = None
) -> AttentionMaps:
    """Compute the attention of a layer by head; that of windows and grids is scattered to the feature map.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.
        layer: Name of a layer with attention, or its index in the order of the model (negative: from the end). By
            default the last layer of the first stream whose tokens have positions.
        query: The token at a position (row and column in pixels of the query's input), the ``"class"`` token (the mean
            of several), or the ``"mean"`` over all tokens of the grid. By default the class token, and without one the
            mean.

    Raises:
        ConfigError: No such layer, no such position, no class token, or a layer whose tokens have no positions.
    """
    layers = numbered_layers(model)
    name = None if layer is None else _layer_name(layers, layer)
    own = next(iter(model.stream_prefixes.values()), "")
    queries: dict[str, Query] = {}

    def attend(step: CapturedMixing) -> Tensor | None:
        if step.name not in layers or step.layout.key_grid is None:
            return None
        queries[step.name] = _query_of(model, step, query)
        return _attention_of(model, step, queries[step.name], inputs)

    # A layer without a tap has the name of its mixer: all taps are armed then, and check_reports raises.
    pattern = name if name in tapped_layers(model) else "*"
    with torch.no_grad(), capture_attention(model, pattern or "*", keep=attend) as record:
        model.forward_features(*inputs)
    expected = [name] if name else [mixer for mixer in model.mixers() if mixer.startswith(own)][-1:]
    check_reports(model, expected, record)
    steps = [step for step in record.steps if name is not None or step.name.startswith(own)]
    if not steps:
        raise ConfigError(
            f"{name or 'every layer'} attends among learned or merged tokens, which have no positions; choose a layer "
            "before the TokenLearner, or method 'tokens'; before the first merged tokens, or method 'rollout'"
        )
    step = steps[-1]
    assert step.layout.key_grid is not None, "attend() omits layers without positions"
    maps = step.weights.view(*step.weights.shape[:2], *step.layout.key_grid)
    stream = _stream(model, step)
    return AttentionMaps(step.name, stream, queries[step.name], step.layout, maps, _tiles(model, step, stream))


def attention_distances(model: VisionModel, *inputs: Tensor | None) -> list[AttentionDistance]:
    """Compute the mean attention distance of each layer and head, in pixels; of a clip the distance in space.

    Distance between the centres of query and key, weighted by the attention, averaged over all queries. Positions are
    those on the feature map, so that neighbours in a grid are far apart. Class tokens and padding are omitted as
    queries and as keys, and rows are renormalised. Attention between streams and among learned tokens has no distance.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.

    Raises:
        ConfigError: No layer attends among tokens with positions.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, figure 7, right.
    """

    def measure(step: CapturedMixing) -> AttentionDistance | None:
        if step.layout.kind == "cross" or step.layout.query_grid is None:
            return None
        stride = layer_tiles(model, step.name).stride
        uniform = _distance(replace(step, weights=uniform_attention(model, step)), stride)[0, 0]
        return AttentionDistance(step.name, stride, step.layout.kind, _distance(step, stride), float(uniform))

    found = measure_layers(model, inputs, measure)
    if not found:
        raise ConfigError("every layer attends among learned tokens, which have no positions and so no distances")
    return found


def _layer_name(layers: Sequence[str], layer: str | int) -> str:
    if isinstance(layer, str):
        if layer not in layers:
            raise ConfigError(f"no layer with attention is named {layer!r}{closest(layer, layers)}")
        return layer
    return layer_at(layers, layer)


def _query_of(model: VisionModel, step: CapturedMixing, query: Query | None) -> Query:
    has_class = class_tokens(model, step.layout.num_prefix) > 0
    if query is None:
        return "class" if has_class else "mean"
    if query == "class" and not has_class:
        raise ConfigError(f"{step.name} has no class token; use query 'mean', or a position (row, column) in pixels")
    if isinstance(query, str) and query not in ("class", "mean"):
        raise ConfigError(f"query must be 'class', 'mean' or a position (row, column) in pixels, got {query!r}")
    return query


def _stream(model: VisionModel, step: CapturedMixing) -> str:
    names = [stream.name for stream in model.streams]
    if step.layout.kind == "cross":
        return names[-1]
    prefixes = model.stream_prefixes
    return next((name for name in names if step.name.startswith(prefixes.get(name, ""))), names[0])


def _tiles(model: VisionModel, step: CapturedMixing, stream: str) -> Tiles:
    """Return the pixels of each token of a stream in a layer; cross-attention joins the last tokens of two streams."""
    return last_tiles(model, stream) if step.layout.kind == "cross" else layer_tiles(model, step.name)


def _attention_of(model: VisionModel, step: CapturedMixing, query: Query, inputs: Sequence[Tensor | None]) -> Tensor:
    """Compute the attention of a query, shape ``(B, heads, keys)``, without prefix tokens and padding."""
    weights, layout = step.weights.float(), step.layout
    prefix, grid = layout.num_prefix, layout.query_grid
    assert grid is not None, "a layer whose keys have a grid has queries with a grid"
    if query == "class":
        return weights[:, :, : class_tokens(model, prefix), prefix:].mean(dim=2)
    count = product(grid)
    row = torch.full((1, count), 1 / count, device=weights.device)
    if isinstance(query, tuple | list):
        index = _token_index(model, step, query, inputs)
        row = torch.zeros_like(row).index_fill_(1, torch.tensor(index, device=row.device), 1.0)
    if layout.kind in ("window", "grid"):
        rows = to_groups(row, layout)
        weights = weights.view(-1, len(rows), *weights.shape[1:])
        groups = (rows[None, :, None, None] @ weights).squeeze(-2).transpose(1, 2)
        on_grid = from_groups(groups.flatten(0, 2), layout)
        return on_grid.view(*groups.shape[:2], -1)
    return (row @ weights[:, :, prefix:, prefix:]).squeeze(-2)


def _token_index(
    model: VisionModel, step: CapturedMixing, query: Sequence[int], inputs: Sequence[Tensor | None]
) -> int:
    """Return the row-major index of the query at a position in pixels."""
    layout = step.layout
    # In cross-attention image tokens attend to spectral tokens.
    stream = model.streams[0].name if layout.kind == "cross" else _stream(model, step)
    assert layout.query_grid is not None
    size = input_sizes(model, inputs)[stream]  # no layer of a stream without input reports
    if len(query) != len(size) or not all(0 <= at < length for at, length in zip(query, size, strict=True)):
        axes = ", ".join(model.modality.axes)
        raise ConfigError(
            f"query {tuple(query)} is not a position ({axes}) in an input of {' x '.join(map(str, size))}"
        )
    return _tiles(model, step, stream).token_at(tuple(query), layout.query_grid)


def _distance(step: CapturedMixing, stride: Grid) -> Tensor:
    """Compute the mean distance by image and head, shape ``(B, heads)``."""
    layout, weights = step.layout, step.weights.float()
    assert layout.query_grid is not None
    if layout.kind == "global":
        weights = weights[:, None, :, layout.num_prefix :, layout.num_prefix :]
        members = torch.arange(product(layout.query_grid), device=weights.device)[None]
        real = torch.ones_like(members, dtype=torch.bool)
    else:
        members, real = group_members(layout, weights.device), real_tokens(layout, weights.device)
        weights = weights.view(-1, len(members), *weights.shape[1:])
    # The last two axes are those of space.
    places = coordinates(members, layout.query_grid)[-2:]
    apart = torch.hypot(
        *(float(step) * (x[:, :, None] - x[:, None, :]) for x, step in zip(places, stride[-2:], strict=True))
    )
    apart, both = apart * real[:, None], real[:, None].float()
    sums = []
    for head in range(weights.shape[2]):  # one by one, since all at once would double the memory of the weights
        here = weights[:, :, head]
        whole = (here * both).sum(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        sums.append(((here * apart).sum(dim=-1) / whole * real).sum(dim=(1, 2)) / real.sum())
    return torch.stack(sums, dim=1)


def lacks_positions(model: VisionModel) -> str | None:
    """Return the reason why no layer attends among tokens with positions; None where one does."""
    return lacks_taps(model) or model.lacks_positions() or None


@register_method("attention", by_class=False, lacks=lacks_positions)
def _attention(
    model: VisionModel,
    inputs: Sequence[Tensor | None],
    target: Tensor | None,
    layer: str | int | None = None,
    head: int | None = None,
    query: Query | None = None,
) -> dict[str, StreamMap]:
    """Attention of one layer: of one head, or the mean over all with each as a part."""
    found = attention_maps(model, *inputs, layer=layer, query=query)
    heads = found.maps.shape[1]
    if head is not None and not 0 <= head < heads:
        raise ConfigError(f"head must be from 0 to {heads - 1} in {found.layer}, got {head}")
    tokens = found.maps.mean(dim=1) if head is None else found.maps[:, head]
    size = input_sizes(model, inputs).get(found.stream)
    map_ = upsample(tokens, (1, 1), None) if size is None else upsample(tokens, size, found.tiles)
    return {found.stream: StreamMap(map_, tokens, None, found.maps if head is None else None)}
