"""The attention of any layer and head as maps, and how far it reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitrail.errors import ConfigError, closest
from vitrail.explain.capture.groups import from_groups, group_members, real_tokens, to_groups
from vitrail.explain.capture.record import (
    CapturedMixing,
    capture_attention,
    check_reports,
    lacks_taps,
    layer_stride,
    numbered_layers,
    running_mixers,
    tapped_layers,
)
from vitrail.explain.methods.maps import StreamMap, upsample
from vitrail.explain.methods.registry import register_method
from vitrail.layers.tap import TokenLayout
from vitrail.models.base import VisionModel

Query = tuple[int, int] | Literal["class", "mean"]


@dataclass(frozen=True)
class AttentionMaps:
    """What one layer attended to.

    Attributes:
        layer: Its name.
        stream: The input on whose tokens the maps lie.
        query: Who asked: a place in pixels, the class token, or the mean over all tokens of the grid.
        layout: As the layer reported it.
        maps: Weights of the tokens by head, shape ``(B, heads, h, w)``. They sum to one but for what went to the class
            token and, where a model lets it take part, to padding.
        stride: Pixels from one token of the maps to the next.
    """

    layer: str
    stream: str
    query: Query
    layout: TokenLayout
    maps: Tensor
    stride: tuple[int, int]


@dataclass(frozen=True)
class AttentionDistance:
    """How far one layer looks.

    Attributes:
        layer: Its name.
        stride: Pixels from one of its tokens to the next.
        distance: Mean distance of what is attended to, in pixels, by image and head, shape ``(B, heads)``.
    """

    layer: str
    stride: tuple[int, int]
    distance: Tensor


def attention_maps(
    model: VisionModel, *inputs: Tensor | None, layer: str | int | None = None, query: Query | None = None
) -> AttentionMaps:
    """What a layer attended to, head by head, spread over the map where it works in windows or grids.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.
        layer: Name of a layer with attention, or its number in the order of the model (negative: from the end); the
            last of the first stream whose tokens have places when not given.
        query: Whose attention: of the token at a place (row and column in pixels of the input that asks), of the
            ``"class"`` token, or the ``"mean"`` over all tokens of the grid. When not given, the class token where
            there is one, otherwise the mean.

    Raises:
        ConfigError: No such layer, no such place, no class token, or a layer whose tokens have no places.
    """
    layers = numbered_layers(model)
    name = None if layer is None else _layer_name(layers, layer)
    own = next(iter(model.stream_prefixes.values()), "")
    asked: dict[str, Query] = {}

    def answer(step: CapturedMixing) -> Tensor | None:
        if step.name not in layers or step.layout.key_grid is None:
            return None
        asked[step.name] = _who(step, query)
        return _row(model, step, asked[step.name], inputs)

    # Only a layer without a tap is named as its mixer: every tap is armed then, and that it does not report is found.
    pattern = name if name in tapped_layers(model) else "*"
    with torch.no_grad(), capture_attention(model, pattern or "*", keep=answer) as record:
        model.forward_features(*inputs)
    asked_for = [name] if name else [mixer for mixer in model.mixers() if mixer.startswith(own)][-1:]
    check_reports(model, asked_for, record)
    steps = [step for step in record.steps if name is not None or step.name.startswith(own)]
    if not steps:
        raise ConfigError(
            f"{name or 'every layer'} attends among learned tokens, which have no places; choose a layer before the "
            "TokenLearner, or method 'tokens'"
        )
    step = steps[-1]
    assert step.layout.key_grid is not None, "only layers whose tokens have places are kept"
    maps = step.weights.view(*step.weights.shape[:2], *step.layout.key_grid)
    stream = _stream(model, step)
    stride = _last_stride(model, stream) if step.layout.kind == "cross" else layer_stride(model, step.name)
    return AttentionMaps(step.name, stream, asked[step.name], step.layout, maps, stride)


def attention_distances(model: VisionModel, *inputs: Tensor | None) -> list[AttentionDistance]:
    """Mean attention distance of each layer and head, in pixels.

    The distance between the centres of a token and those it attends to, weighted by the attention, averaged over all
    tokens of the map. In windows and grids places are those on the map, so that a grid's neighbours are far apart.
    Class tokens and padding are left out, as askers and as asked; the rest of a row counts as the whole. Attention
    between streams and among learned tokens has no distance and is left out.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.

    Raises:
        ConfigError: No layer attends among tokens that have places.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, figure 7, right.
    """
    layers = numbered_layers(model)

    def measure(step: CapturedMixing) -> Tensor | None:
        if step.name not in layers or step.layout.kind == "cross" or step.layout.query_grid is None:
            return None
        return _distance(step, layer_stride(model, step.name))

    with torch.no_grad(), capture_attention(model, keep=measure) as record:
        model.forward_features(*inputs)
    check_reports(model, running_mixers(model, inputs), record)
    if not record.steps:
        raise ConfigError("every layer attends among learned tokens, which have no places and so no distances")
    return [AttentionDistance(step.name, layer_stride(model, step.name), step.weights) for step in record.steps]


def _layer_name(layers: Sequence[str], layer: str | int) -> str:
    if isinstance(layer, str):
        if layer not in layers:
            raise ConfigError(f"no layer with attention is called {layer!r}{closest(layer, layers)}")
        return layer
    if not -len(layers) <= layer < len(layers):
        raise ConfigError(f"the model has {len(layers)} layers with attention, numbered from 0; got {layer}")
    return layers[layer]


def _who(step: CapturedMixing, query: Query | None) -> Query:
    if query is None:
        return "class" if step.layout.num_prefix else "mean"
    if query == "class" and not step.layout.num_prefix:
        raise ConfigError(f"{step.name} has no class token; give query 'mean', or a place (row, column) in pixels")
    if isinstance(query, str) and query not in ("class", "mean"):
        raise ConfigError(f"query must be 'class', 'mean' or a place (row, column) in pixels, got {query!r}")
    return query


def _stream(model: VisionModel, step: CapturedMixing) -> str:
    names = [stream.name for stream in model.streams]
    if step.layout.kind == "cross":
        return names[-1]
    prefixes = model.stream_prefixes
    return next((name for name in names if step.name.startswith(prefixes.get(name, ""))), names[0])


def _row(model: VisionModel, step: CapturedMixing, query: Query, inputs: Sequence[Tensor | None]) -> Tensor:
    """What the query attended to, shape ``(B, heads, keys)``, without prefix tokens and padding."""
    weights, layout = step.weights.float(), step.layout
    prefix, grid = layout.num_prefix, layout.query_grid
    assert grid is not None, "a layer whose keys have places has queries that do"
    if query == "class":
        return weights[:, :, 0, prefix:].clone()
    count = grid[0] * grid[1]
    row = torch.full((1, count), 1 / count, device=weights.device)
    if isinstance(query, tuple):
        place = _place(model, step, query, inputs)
        row = torch.zeros_like(row).index_fill_(1, torch.tensor(place, device=row.device), 1.0)
    if layout.kind in ("window", "grid"):
        rows = to_groups(row, layout)
        weights = weights.view(-1, len(rows), *weights.shape[1:])
        groups = (rows[None, :, None, None] @ weights).squeeze(-2).transpose(1, 2)
        carried = from_groups(groups.flatten(0, 2), layout)
        return carried.view(*groups.shape[:2], -1)
    return (row @ weights[:, :, prefix:, prefix:]).squeeze(-2)


def _place(model: VisionModel, step: CapturedMixing, query: tuple[int, int], inputs: Sequence[Tensor | None]) -> int:
    """Number of the token at a place in pixels, row-major on the grid of those that ask."""
    layout = step.layout
    names = [stream.name for stream in model.streams]
    # Image tokens ask spectral ones.
    asking = names[0] if layout.kind == "cross" else _stream(model, step)
    image = inputs[names.index(asking)]
    assert image is not None, "a stream without input has no layer that reports"
    assert layout.query_grid is not None
    size = (image.shape[2], image.shape[3])
    if len(query) != 2 or not all(0 <= at < length for at, length in zip(query, size, strict=True)):
        raise ConfigError(f"query {tuple(query)} is not a place (row, column) in an image of {size[0]} x {size[1]}")
    stride = _last_stride(model, asking) if layout.kind == "cross" else layer_stride(model, step.name)
    grid = layout.query_grid
    return min(query[0] // stride[0], grid[0] - 1) * grid[1] + min(query[1] // stride[1], grid[1] - 1)


def _last_stride(model: VisionModel, stream: str) -> tuple[int, int]:
    """Pixels from one of a stream's last tokens to the next."""
    prefix = model.stream_prefixes[stream]
    return [info.stride for info in model.feature_info if info.name.startswith(prefix)][-1]


def _distance(step: CapturedMixing, stride: tuple[int, int]) -> Tensor:
    """Mean distance by image and head, shape ``(B, heads)``."""
    layout, weights = step.layout, step.weights.float()
    assert layout.query_grid is not None
    if layout.kind == "global":
        weights = weights[:, None, :, layout.num_prefix :, layout.num_prefix :]
        members = torch.arange(layout.query_grid[0] * layout.query_grid[1], device=weights.device)[None]
        real = torch.ones_like(members, dtype=torch.bool)
    else:
        members, real = group_members(layout, weights.device), real_tokens(layout, weights.device)
        weights = weights.view(-1, len(members), *weights.shape[1:])
    rows, columns = members // layout.query_grid[1] * stride[0], members % layout.query_grid[1] * stride[1]
    apart = torch.hypot(*(1.0 * (x[:, :, None] - x[:, None, :]) for x in (rows, columns)))
    apart, both = apart * real[:, None], real[:, None].float()
    sums = []
    for head in range(weights.shape[2]):  # one by one: all at once would double the memory of the weights
        here = weights[:, :, head]
        whole = (here * both).sum(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        sums.append(((here * apart).sum(dim=-1) / whole * real).sum(dim=(1, 2)) / real.sum())
    return torch.stack(sums, dim=1)


def _lacks_positions(model: VisionModel) -> str | None:
    """Reason why no layer attends among tokens with positions; None where one does."""
    return lacks_taps(model) or model.lacks_positions() or None


@register_method("attention", by_class=False, lacks=_lacks_positions)
def _attention(
    model: VisionModel,
    inputs: Sequence[Tensor | None],
    target: Tensor | None,
    layer: str | int | None = None,
    head: int | None = None,
    query: Query | None = None,
) -> dict[str, StreamMap]:
    """Attention of one layer: of one head, or the mean over all and each as a part."""
    found = attention_maps(model, *inputs, layer=layer, query=query)
    heads = found.maps.shape[1]
    if head is not None and not 0 <= head < heads:
        raise ConfigError(f"{found.layer} has {heads} heads, numbered from 0; got {head}")
    tokens = found.maps.mean(dim=1) if head is None else found.maps[:, head]
    image = inputs[[stream.name for stream in model.streams].index(found.stream)]
    size = (1, 1) if image is None else (image.shape[2], image.shape[3])
    map_ = upsample(tokens, size, None if image is None else found.stride)
    return {found.stream: StreamMap(map_, tokens, None, found.maps if head is None else None)}
