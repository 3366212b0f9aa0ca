"""Structure of a forward pass: patches, groups of tokens, attention, merging, feature maps, fusion.

Everything is captured from the taps and modules of the model, or computed by the functions that its layers call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.explain.capture.groups import normalize_rows
from vitrail.explain.capture.record import CapturedMixing, capture_attention, class_tokens, layer_tiles
from vitrail.explain.structure.merging import Merge, trace_merge
from vitrail.explain.structure.positions import RelativeBias, position_kinds, relative_bias
from vitrail.explain.structure.token_groups import Groups, central_token, group_tokens, masks_padding, token_attention
from vitrail.layers.fusion import ConcatFusion, CrossAttentionFusion
from vitrail.layers.patch_merging import PatchMerging
from vitrail.layers.patches import PatchEmbed
from vitrail.layers.tap import TokenLayout
from vitrail.models.base import VisionModel

Pair = tuple[int, int]
# Positional arguments and output of a module.
Call = tuple[tuple[Tensor, ...], Tensor]


class PatchGrid(NamedTuple):
    """Patches of one patch embedding.

    Attributes:
        name: The layer's name.
        stream: Index of its input.
        patch: Height and width of a patch in pixels.
        stride: Pixels from one patch to the next.
        padding: Rows and columns of zeros on each side of the image.
        grid: Patches along both sides.
        prefix: Names of the tokens before those of the patches.
        positions: Kinds of positions, see :func:`~vitrail.explain.structure.positions.position_kinds`.
        stem: Whether patches are cut of a stem's feature map.
    """

    name: str
    stream: int
    patch: Pair
    stride: Pair
    padding: Pair
    grid: Pair
    prefix: tuple[str, ...]
    positions: list[str]
    stem: bool


class QueryAttention(NamedTuple):
    """Attention of one token in one layer.

    Attributes:
        name: The layer's name.
        layout: Layout that the layer reported.
        query: Row-major index of the query on the grid; None for prefix tokens.
        token: Name of the query: "class" for the mean of class tokens, or that of a prefix token; "" on the grid.
        maps: Weights of the tokens of the grid by head, shape ``(heads, H, W)``.
    """

    name: str
    layout: TokenLayout
    query: int | None
    token: str
    maps: Tensor


class Level(NamedTuple):
    """One level of the feature pyramid.

    Attributes:
        name: The module that computes it.
        stride: Pixels per position.
        map: Features, shape ``(C, h, w)``.
    """

    name: str
    stride: Pair
    map: Tensor


class FusedStreams(NamedTuple):
    """Fusion of two streams.

    Attributes:
        weights: Attention from image tokens (rows) to spectral tokens, shape ``(heads, N, M)``; None for
            concatenation.
        image: Image tokens before, shape ``(h, w, C)``.
        spectral: Spectral tokens before, shape ``(h', w', C')``.
        fused: Fused tokens, shape ``(h, w, C)``.
    """

    weights: Tensor | None
    image: Tensor
    spectral: Tensor
    fused: Tensor


class LearnedTokens(NamedTuple):
    """Selection of a TokenLearner and weights of its TokenFuser.

    Attributes:
        name: The layer's name.
        maps: Selection map of each learned token, shape ``(S, h, w)``; each sums to one.
        spread: Weight of each learned token at each position, shape ``(S, h, w)``; None without a TokenFuser.
    """

    name: str
    maps: Tensor
    spread: Tensor | None


@dataclass(frozen=True)
class Anatomy:
    """Structure of the forward pass of one image; lists are empty where the model has no such layer.

    ``prefix`` holds the attention of each prefix token in the last layer that has several.
    """

    patches: list[PatchGrid]
    groups: list[Groups]
    relative: list[RelativeBias]
    merges: list[Merge]
    attention: list[QueryAttention]
    prefix: list[QueryAttention]
    levels: list[Level]
    fusion: FusedStreams | None
    learned: list[LearnedTokens]


def dissect(model: VisionModel, inputs: Sequence[Tensor]) -> Anatomy:
    """Run one image through a model and capture its structure.

    Args:
        model: The model, in evaluation mode.
        inputs: One tensor ``(1, C, H, W)`` for each stream, normalised.

    Raises:
        ConfigError: More or less than one image.
        ShapeError: Inputs of a shape that the model does not accept.
    """
    if any(x.ndim != 4 or x.shape[0] != 1 for x in inputs):
        raise ConfigError(f"one image at a time, as (1, C, H, W); got {', '.join(str(tuple(x.shape)) for x in inputs)}")
    calls: dict[str, Call] = {}
    with torch.no_grad(), ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, PatchEmbed | CrossAttentionFusion | ConcatFusion):
                stack.callback(module.register_forward_hook(_store(calls, name)).remove)
        record = stack.enter_context(capture_attention(model, keep=keep_few_queries))
        model.forward_features(*inputs)
        steps = list(record.steps)
    with torch.no_grad():
        maps = model.forward_intermediates(inputs, intermediates_only=True)
    levels = [Level(info.name, info.stride, map_[0]) for info, map_ in zip(model.feature_info, maps, strict=True)]
    modules = dict(model.named_modules())
    patches = [
        _patch_grid(model, name, module, i, _grid(calls[name][1]))
        for i, (name, module) in enumerate((n, m) for n, m in modules.items() if isinstance(m, PatchEmbed))
    ]
    groups = [
        group_tokens(step.name, step.layout, layer_tiles(model, step.name).stride, masks_padding(modules[step.name]))
        for step in steps
        if step.layout.kind in ("window", "grid")
    ]
    merges = [
        trace_merge(step.name, step.layout, _stride_before(model, step.name))
        for step in steps
        if step.layout.kind == "merge" and isinstance(modules[step.name], PatchMerging)
    ]
    return Anatomy(
        patches,
        groups,
        [bias for name, module in modules.items() if (bias := relative_bias(name, module)) is not None],
        merges,
        _attention(model, steps, groups),
        _prefix_attention(model, steps),
        levels,
        _fusion(calls, modules, steps),
        _learned_tokens(steps),
    )


def _store(calls: dict[str, Call], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls[name] = (args, output)

    return hook


def _grid(tokens: Tensor) -> Pair:
    return tokens.shape[1], tokens.shape[2]


def _stride_before(model: VisionModel, layer: str) -> Pair:
    """Return the pixels per token before a merging layer."""
    height, width = layer_tiles(model, layer).stride
    return height // 2, width // 2


def keep_few_queries(step: CapturedMixing) -> Tensor:
    """Reduce global attention to a few rows, since N x N weights of a large image exceed the memory.

    Args:
        step: The layer.

    Returns:
        Shape ``(B, heads, P + 1, N)`` for global attention: the rows of the P prefix tokens, then of the central
        token; all weights for other kinds.
    """
    weights, layout = step.weights, step.layout
    if layout.kind != "global" or layout.query_grid is None:
        return weights
    P = layout.num_prefix
    return weights[:, :, [*range(P), P + central_token(layout.query_grid)]]


def _patch_grid(model: VisionModel, name: str, layer: PatchEmbed, stream: int, grid: Pair) -> PatchGrid:
    rows, columns = layer.pixels
    patch, padding = ((a * rows, b * columns) for a, b in (layer.patch_size, layer.padding))
    kinds = position_kinds(model, name.rpartition(".")[0])
    stem = layer.pixels != (1, 1) or layer.in_chans != model.streams[stream].chans
    return PatchGrid(name, stream, patch, layer.pixel_stride, padding, grid, prefix_names(model), kinds, stem)


def prefix_names(model: VisionModel) -> tuple[str, ...]:
    """Name the prefix tokens: "class" and "register", numbered where there are several."""
    classes = class_tokens(model, model.num_prefix)
    counts = {"class": classes, "register": model.num_prefix - classes}
    return tuple(f"{name} {i + 1}" if n > 1 else name for name, n in counts.items() for i in range(n))


def _prefix_attention(model: VisionModel, steps: Sequence[CapturedMixing]) -> list[QueryAttention]:
    """Return the attention of each prefix token in the last layer whose tokens have positions, if there are several."""
    last = next((s for s in reversed(steps) if s.layout.kind == "global" and s.layout.query_grid is not None), None)
    if last is None or last.layout.num_prefix < 2:
        return []
    return [
        QueryAttention(last.name, last.layout, None, name, _on_grid(last, last.weights[0, :, row]))
        for row, name in enumerate(prefix_names(model))
    ]


def _on_grid(step: CapturedMixing, row: Tensor) -> Tensor:
    """Reshape the weights of one query, ``(heads, P + h * w)``, to the grid, ``(heads, h, w)``."""
    assert step.layout.query_grid is not None, "only layers with a grid are drawn"
    return row[:, step.layout.num_prefix :].reshape(-1, *step.layout.query_grid)


def _attention(model: VisionModel, steps: Sequence[CapturedMixing], groups: Sequence[Groups]) -> list[QueryAttention]:
    by_name = {group.name: group for group in groups}
    attention: list[QueryAttention] = []
    for step in steps:
        layout, grid = step.layout, step.layout.query_grid
        if layout.kind == "global" and grid is not None:
            classes = class_tokens(model, layout.num_prefix)
            query = None if classes else central_token(grid)
            row = step.weights[0, :, :classes].mean(dim=1) if classes else step.weights[0, :, -1]
            attention.append(QueryAttention(step.name, layout, query, "class" if classes else "", _on_grid(step, row)))
        elif step.name in by_name and grid is not None:
            query = central_token(grid)
            maps = token_attention(step, by_name[step.name], query)
            attention.append(QueryAttention(step.name, layout, query, "", maps))
    return attention


def _fusion(
    calls: dict[str, Call], modules: dict[str, nn.Module], steps: Sequence[CapturedMixing]
) -> FusedStreams | None:
    for name, (args, output) in calls.items():
        if isinstance(modules[name], CrossAttentionFusion | ConcatFusion):
            # Concatenation also reports its weights, but they are not attention.
            attends = isinstance(modules[name], CrossAttentionFusion)
            weights = next((step.weights[0] for step in steps if attends and step.layout.kind == "cross"), None)
            return FusedStreams(weights, args[0][0], args[1][0], output[0])
    return None


def _learned_tokens(steps: Sequence[CapturedMixing]) -> list[LearnedTokens]:
    learned: list[LearnedTokens] = []
    mix: Tensor | None = None
    for step in steps:
        if step.layout.kind == "pool":
            assert step.layout.key_grid is not None
            maps = normalize_rows(step.weights[0].float())
            learned.append(LearnedTokens(step.name, maps.view(-1, *step.layout.key_grid), None))
        elif step.layout.kind == "mix":
            mix = step.weights[0]
        elif step.layout.kind == "fuse":
            assert mix is not None, "a mix step precedes each fuse step"
            last = learned[-1]
            learned[-1] = last._replace(spread=(step.weights[0] @ mix).t().reshape(last.maps.shape))
    return learned
