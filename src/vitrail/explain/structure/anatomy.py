"""How a model takes an image apart: patches, groups of tokens, masks, positions, merging, feature maps, fusion.

Everything here is seen while the model runs (its taps and the outputs of its modules) or made by the functions
that its layers call; nothing is computed a second way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.explain.capture.groups import group_members, normalize_rows
from vitrail.explain.capture.record import CapturedMixing, capture_attention, layer_stride
from vitrail.explain.structure.positions import RelativeBias, relative_bias
from vitrail.layers.fusion import ConcatFusion, CrossAttentionFusion
from vitrail.layers.patch_merging import PatchMerging
from vitrail.layers.patches import PatchEmbed
from vitrail.layers.tap import TokenLayout
from vitrail.layers.windows import padding_regions, partition_grid, partition_windows, shifted_regions, window_mask
from vitrail.models.base import VisionModel

Pair = tuple[int, int]


class PatchGrid(NamedTuple):
    """What a patch embedding did.

    Attributes:
        name: The layer's name.
        stream: Number of the input that it cut up.
        patch: Height and width of a patch in pixels.
        grid: Patches along both sides.
        num_prefix: Tokens that the model puts before those of the patches.
    """

    name: str
    stream: int
    patch: Pair
    grid: Pair
    num_prefix: int


@dataclass(frozen=True)
class Groups:
    """Which tokens one layer lets attend to each other.

    Attributes:
        name: The layer's name.
        layout: Grid, group size, shift and padding, as the layer reported them.
        stride: Pixels from one token to the next.
        members: Place (row-major on the grid) of each token of each group, shape ``(groups, n)``; -1: padding.
        regions: Labels on the padded map at the tokens' places after the roll, shape ``(H', W')``; only equal
            labels of one group meet; -1: padding.
        labels: The regions' labels by group, shape ``(groups, n)``.
        blocked: True where a token may not attend to another, shape ``(groups, n, n)``.
    """

    name: str
    layout: TokenLayout
    stride: Pair
    members: Tensor
    regions: Tensor
    labels: Tensor
    blocked: Tensor

    @property
    def grid(self) -> Pair:
        """Height and width of the map before padding."""
        assert self.layout.query_grid is not None
        return self.layout.query_grid

    @property
    def padded(self) -> Pair:
        """Height and width of the map with its padding."""
        return self.grid[0] + self.layout.padding[0], self.grid[1] + self.layout.padding[1]

    @property
    def window(self) -> Pair:
        """Height and width of a group."""
        assert self.layout.window is not None
        return self.layout.window

    def at_places(self, values: Tensor) -> Tensor:
        """Put a value of each token of each group, ``(groups, n)``, at the token's place on the grid: ``(H, W)``."""
        out = values.new_zeros(self.grid[0] * self.grid[1])
        real = self.members >= 0
        out[self.members[real]] = values[real]
        return out.view(self.grid)

    def group_map(self) -> Tensor:
        """Number of the group that each token of the grid belongs to, shape ``(H, W)``."""
        return self.at_places(torch.arange(len(self.members))[:, None].expand_as(self.members))


class Merge(NamedTuple):
    """One patch merging.

    Attributes:
        name: The layer's name.
        grid: Height and width before.
        stride: Pixels from one token to the next, before.
        parents: Place (row-major on the grid) of the tokens that each merged token is made of, in the order in
            which they are concatenated, shape ``(ceil(H / 2), ceil(W / 2), 4)``; -1: padding.
    """

    name: str
    grid: Pair
    stride: Pair
    parents: Tensor


class Asked(NamedTuple):
    """What one token attended to in one layer.

    Attributes:
        name: The layer's name.
        layout: As the layer reported it.
        place: The asking token's place on the grid, row-major; None: the class token.
        maps: Weight of each token of the grid by head, shape ``(heads, H, W)``.
    """

    name: str
    layout: TokenLayout
    place: int | None
    maps: Tensor


class Level(NamedTuple):
    """One level of the feature pyramid.

    Attributes:
        name: The module that gives it.
        stride: Pixels from one position to the next.
        map: Shape ``(C, h, w)``.
    """

    name: str
    stride: Pair
    map: Tensor


class FusedStreams(NamedTuple):
    """Where two streams meet.

    Attributes:
        weights: Attention from image tokens (rows) to spectral tokens, shape ``(heads, N, M)``; None where the
            fusion is no attention.
        image: Image tokens before, shape ``(h, w, C)``.
        spectral: Spectral tokens before, shape ``(h', w', C')``.
        fused: The result, shape ``(h, w, C)``.
    """

    weights: Tensor | None
    image: Tensor
    spectral: Tensor
    fused: Tensor


class LearnedTokens(NamedTuple):
    """What TokenLearner selected, and where TokenFuser put it.

    Attributes:
        name: The layer's name.
        maps: Selection of each learned token, each map sums to one, shape ``(S, h, w)``.
        spread: What each position took of each learned token, shape ``(S, h, w)``; None without a fuser.
    """

    name: str
    maps: Tensor
    spread: Tensor | None


@dataclass(frozen=True)
class Anatomy:
    """All that one image showed of a model; lists are empty where the model has no such thing."""

    patches: list[PatchGrid]
    groups: list[Groups]
    relative: list[RelativeBias]
    merges: list[Merge]
    asked: list[Asked]
    levels: list[Level]
    fusion: FusedStreams | None
    learned: list[LearnedTokens]


def dissect(model: VisionModel, inputs: Sequence[Tensor]) -> Anatomy:
    """Run one image through a model and note how it was taken apart.

    Args:
        model: The model, in evaluation mode.
        inputs: One tensor ``(1, C, H, W)`` for each stream, normalised.

    Raises:
        ConfigError: More or less than one image.
        ShapeError: Inputs that the model does not take.
    """
    if any(x.ndim != 4 or x.shape[0] != 1 for x in inputs):
        raise ConfigError(f"one image at a time, as (1, C, H, W); got {', '.join(str(tuple(x.shape)) for x in inputs)}")
    seen: dict[str, tuple[tuple[Tensor, ...], Tensor]] = {}
    with torch.no_grad(), ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, PatchEmbed | CrossAttentionFusion | ConcatFusion):
                stack.callback(module.register_forward_hook(_note(seen, name)).remove)
        record = stack.enter_context(capture_attention(model, keep=keep_one_query))
        model.forward_features(*inputs)
        steps = list(record.steps)
    with torch.no_grad():
        maps = model.forward_intermediates(inputs, intermediates_only=True)
    levels = [Level(info.name, info.stride, map_[0]) for info, map_ in zip(model.feature_info, maps, strict=True)]
    modules = dict(model.named_modules())
    patches = [
        PatchGrid(name, number, module.patch_size, _grid(seen[name][1]), model.num_prefix)
        for number, (name, module) in enumerate((n, m) for n, m in modules.items() if isinstance(m, PatchEmbed))
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
        _answers(steps, groups),
        levels,
        _fusion(seen, modules, steps),
        _learned_tokens(steps),
    )


def _note(seen: dict[str, Any], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = (args, output)

    return hook


def _grid(tokens: Tensor) -> Pair:
    return tokens.shape[1], tokens.shape[2]


def _stride_before(model: VisionModel, layer: str) -> Pair:
    """Pixels from one token to the next before a layer that begins a stage."""
    height, width = layer_stride(model, layer)
    return height // 2, width // 2


def _mask_padding(module: nn.Module) -> bool:
    return bool(getattr(module, "mask_padding", True))


def middle(grid: Pair) -> int:
    """Place of the token that is asked: the one at the centre of the grid, row-major."""
    return (grid[0] // 2) * grid[1] + grid[1] // 2


def keep_one_query(step: CapturedMixing) -> Tensor:
    """Of global attention, only the row of one token: of N x N weights a layer, a large image has too many.

    Args:
        step: What a layer reports.

    Returns:
        Shape ``(B, heads, 1, N)`` for global attention: the class token's row, or that of the token at the
        centre; everything for other kinds.
    """
    weights, layout = step.weights, step.layout
    if layout.kind != "global":
        return weights
    row = 0 if layout.num_prefix or layout.query_grid is None else middle(layout.query_grid)
    return weights[:, :, row : row + 1].clone()


def group_tokens(name: str, layout: TokenLayout, stride: Pair, mask_padding: bool = True) -> Groups:
    """Which tokens form the groups of a layer, from its layout.

    Args:
        name: The layer's name.
        layout: What it reported; kind "window" or "grid".
        stride: Pixels from one token to the next.
        mask_padding: Whether padded tokens are kept from being attended to.
    """
    assert layout.query_grid is not None
    assert layout.window is not None
    grid = layout.query_grid
    if layout.kind == "window":
        partition: Callable[[Tensor, Pair], Tensor] = partition_windows
        regions = shifted_regions(grid, layout.padding, layout.shift, mask_padding)
        blocked = window_mask(grid, layout.window, layout.shift, mask_padding)
    else:
        partition = partition_grid
        regions = padding_regions(grid, layout.padding)
        blocked = window_mask(grid, layout.window, (0, 0), mask_padding=True, kind="grid")
    members = group_members(layout)
    labels = partition(regions[None, :, :, None], layout.window).squeeze(-1)
    return Groups(name, layout, stride, members, regions, labels, blocked)


def trace_merge(name: str, layout: TokenLayout, stride: Pair) -> Merge:
    """Send the places of tokens through a patch merging that neither normalises nor projects.

    Args:
        name: The layer's name.
        layout: What it reported.
        stride: Pixels from one token to the next, before.
    """
    assert layout.key_grid is not None
    H, W = layout.key_grid
    merging = PatchMerging(1)
    merging.norm = nn.Identity()  # type: ignore[assignment]
    merging.reduction = nn.Identity()  # type: ignore[assignment]
    # Double precision holds any place exactly; places count from 1, so that the zeros of the padding differ.
    places = torch.arange(1, H * W + 1, dtype=torch.float64).view(1, H, W, 1)
    return Merge(name, layout.key_grid, stride, merging(places)[0].long() - 1)


def attention_of(step: CapturedMixing, groups: Groups, place: int) -> Tensor:
    """What one token attended to in a layer that works in groups, spread over the grid.

    Args:
        step: The layer's weights, of one image.
        groups: Its groups.
        place: The token, row-major on the grid.

    Returns:
        Weights, shape ``(heads, H, W)``; zero outside the token's group.
    """
    ((group, query),) = (groups.members == place).nonzero().tolist()
    weights, members = step.weights[group, :, query], groups.members[group]
    spread = weights.new_zeros(weights.shape[0], groups.grid[0] * groups.grid[1])
    spread[:, members[members >= 0]] = weights[:, members >= 0]
    return spread.view(-1, *groups.grid)


def _answers(steps: Sequence[CapturedMixing], groups: Sequence[Groups]) -> list[Asked]:
    by_name = {group.name: group for group in groups}
    asked: list[Asked] = []
    for step in steps:
        layout, grid = step.layout, step.layout.query_grid
        if layout.kind == "global" and grid is not None:
            place = None if layout.num_prefix else middle(grid)
            maps = step.weights[0, :, 0, layout.num_prefix :].reshape(-1, *grid)
            asked.append(Asked(step.name, layout, place, maps))
        elif step.name in by_name and grid is not None:
            asked.append(Asked(step.name, layout, middle(grid), attention_of(step, by_name[step.name], middle(grid))))
    return asked


def _fusion(
    seen: dict[str, tuple[tuple[Tensor, ...], Tensor]], modules: dict[str, nn.Module], steps: Sequence[CapturedMixing]
) -> FusedStreams | None:
    for name, (args, output) in seen.items():
        if isinstance(modules[name], CrossAttentionFusion | ConcatFusion):
            # Concatenation reports for each token the places that it reads: no attention.
            attends = isinstance(modules[name], CrossAttentionFusion)
            weights = next((step.weights[0] for step in steps if attends and step.layout.kind == "cross"), None)
            return FusedStreams(weights, args[0][0], args[1][0], output[0])
    return None


def _learned_tokens(steps: Sequence[CapturedMixing]) -> list[LearnedTokens]:
    learned: list[LearnedTokens] = []
    mixed_from: Tensor | None = None
    for step in steps:
        if step.layout.kind == "pool":
            assert step.layout.key_grid is not None
            maps = normalize_rows(step.weights[0].float())
            learned.append(LearnedTokens(step.name, maps.view(-1, *step.layout.key_grid), None))
        elif step.layout.kind == "mix":
            mixed_from = step.weights[0]
        elif step.layout.kind == "fuse":
            assert mixed_from is not None, "what is spread was mixed before"
            last = learned[-1]
            learned[-1] = last._replace(spread=(step.weights[0] @ mixed_from).t().reshape(last.maps.shape))
    return learned


def principal_colors(features: Tensor) -> Tensor:
    """A feature map as a colour picture: its first three principal components as red, green and blue.

    Args:
        features: Shape ``(C, h, w)``.

    Returns:
        Shape ``(h, w, 3)`` in 0..1; gray where the map does not vary.
    """
    C, h, w = features.shape
    rows = features.reshape(C, h * w).t().double()
    rows = rows - rows.mean(dim=0)
    _, _, directions = torch.linalg.svd(rows, full_matrices=False)
    # The sign of a component is arbitrary: the largest weight decides, so that a picture comes out the same again.
    directions = directions[:3]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    components = rows @ (directions * largest.sign()).t()
    colors = rows.new_full((h * w, 3), 0.5)
    scale = components.abs().quantile(0.98, dim=0).clamp_min(1e-12)
    colors[:, : components.shape[1]] = (components / scale).clamp(-1, 1) / 2 + 0.5
    return colors.view(h, w, 3).float()
