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
from vitrail.explain.capture.record import CapturedMixing, capture_attention, layer_stride
from vitrail.explain.structure.merging import Merge, trace_merge
from vitrail.explain.structure.positions import RelativeBias, relative_bias
from vitrail.explain.structure.token_groups import Groups, central_token, group_tokens, token_attention
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
        grid: Patches along both sides.
        num_prefix: Number of prefix tokens (class token).
    """

    name: str
    stream: int
    patch: Pair
    grid: Pair
    num_prefix: int


class QueryAttention(NamedTuple):
    """Attention of one token in one layer.

    Attributes:
        name: The layer's name.
        layout: Layout that the layer reported.
        query: Row-major index of the query on the grid; None is the class token.
        maps: Weights of the tokens of the grid by head, shape ``(heads, H, W)``.
    """

    name: str
    layout: TokenLayout
    query: int | None
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
    """Structure of the forward pass of one image; lists are empty where the model has no such layer."""

    patches: list[PatchGrid]
    groups: list[Groups]
    relative: list[RelativeBias]
    merges: list[Merge]
    attention: list[QueryAttention]
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
        record = stack.enter_context(capture_attention(model, keep=keep_one_query))
        model.forward_features(*inputs)
        steps = list(record.steps)
    with torch.no_grad():
        maps = model.forward_intermediates(inputs, intermediates_only=True)
    levels = [Level(info.name, info.stride, map_[0]) for info, map_ in zip(model.feature_info, maps, strict=True)]
    modules = dict(model.named_modules())
    patches = [
        PatchGrid(name, i, _tile(model, module), _grid(calls[name][1]), model.num_prefix)
        for i, (name, module) in enumerate((n, m) for n, m in modules.items() if isinstance(m, PatchEmbed))
    ]
    groups = [
        group_tokens(step.name, step.layout, layer_stride(model, step.name), _mask_padding(modules[step.name]))
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
        _attention(steps, groups),
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
    height, width = layer_stride(model, layer)
    return height // 2, width // 2


def _mask_padding(module: nn.Module) -> bool:
    return bool(getattr(module, "mask_padding", True))


def keep_one_query(step: CapturedMixing) -> Tensor:
    """Reduce global attention to the row of one token, since N x N weights of a large image exceed the memory.

    Args:
        step: The layer.

    Returns:
        Shape ``(B, heads, 1, N)`` for global attention: the row of the class token, or else of the central token; all
        weights for other kinds.
    """
    weights, layout = step.weights, step.layout
    if layout.kind != "global":
        return weights
    row = 0 if layout.num_prefix or layout.query_grid is None else central_token(layout.query_grid)
    return weights[:, :, row : row + 1].clone()


def _tile(model: VisionModel, layer: PatchEmbed) -> tuple[int, int]:
    """Pixels of the image from one token to the next: the patch, or less where patches overlap, more after a stem."""
    if layer.stride == layer.patch_size and layer.in_chans in {stream.chans for stream in model.streams}:
        return layer.patch_size
    return model.feature_info[0].stride


def _attention(steps: Sequence[CapturedMixing], groups: Sequence[Groups]) -> list[QueryAttention]:
    by_name = {group.name: group for group in groups}
    attention: list[QueryAttention] = []
    for step in steps:
        layout, grid = step.layout, step.layout.query_grid
        if layout.kind == "global" and grid is not None:
            query = None if layout.num_prefix else central_token(grid)
            maps = step.weights[0, :, 0, layout.num_prefix :].reshape(-1, *grid)
            attention.append(QueryAttention(step.name, layout, query, maps))
        elif step.name in by_name and grid is not None:
            query = central_token(grid)
            maps = token_attention(step, by_name[step.name], query)
            attention.append(QueryAttention(step.name, layout, query, maps))
    return attention


def _fusion(
    calls: dict[str, Call], modules: dict[str, nn.Module], steps: Sequence[CapturedMixing]
) -> FusedStreams | None:
    for name, (args, output) in calls.items():
        if isinstance(modules[name], CrossAttentionFusion | ConcatFusion):
            # Concatenation also reports its weights, but they are no attention.
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
