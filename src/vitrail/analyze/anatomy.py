"""Figures of the steps that a model takes one image through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor

from vitrail.explain.capture.record import first_tiles, layer_tiles
from vitrail.explain.structure import anatomy as structure
from vitrail.explain.structure.anatomy import Anatomy, dissect
from vitrail.explain.structure.features import principal_colors
from vitrail.explain.structure.merging import Merge
from vitrail.explain.structure.positions import RelativeBias
from vitrail.explain.structure.token_groups import Groups
from vitrail.figures.anatomy.canvas import View
from vitrail.figures.anatomy.hierarchy import FeatureMap, Merging, draw_fusion, draw_merging, draw_pyramid, draw_streams
from vitrail.figures.anatomy.positions import RelativePositions, draw_relative_position
from vitrail.figures.anatomy.tokens import PatchGrid, QueryAttention, draw_attention, draw_learned, draw_patches
from vitrail.figures.anatomy.windows import TokenGroups, draw_masks, draw_partitions, draw_windows
from vitrail.figures.write import write_both
from vitrail.layers.patch_merging import PARENTS
from vitrail.models.base import VisionModel


def draw_anatomy(
    model: VisionModel, inputs: Sequence[Tensor], views: Sequence[View], folder: str | Path, note: str
) -> tuple[list[Path], dict[str, str]]:
    """Run one image through a model and draw its steps.

    Args:
        model: The model, in evaluation mode, on the CPU.
        inputs: One tensor ``(1, C, H, W)`` for each stream, normalised.
        views: Picture of each input.
        folder: Folder for PNG and SVG files; created if missing.
        note: Line below each figure: the model and its weights.

    Returns:
        The files, and for each figure that this image does not show, the reason.

    Raises:
        ConfigError: More than one image.
        RunError: The folder cannot be written.
    """
    figures, omitted = plan_figures(model, dissect(model, inputs), views, note)
    written: list[Path] = []
    for name, draw in figures.items():
        written += write_both(draw(), Path(folder), name)
    return written, omitted


def plan_figures(
    model: VisionModel, anatomy: Anatomy, views: Sequence[View], note: str
) -> tuple[dict[str, Callable[[], Figure]], dict[str, str]]:
    """Choose the figures: name -> function that draws it; and the reasons for omitted figures."""
    figures: dict[str, Callable[[], Figure]] = {}
    omitted: dict[str, str] = {}
    # All levels of a model with an offset have one stride, so that one offset serves every figure.
    views = [
        replace(view, offset=first_tiles(model, stream.name).offset if anatomy.patches else (0, 0))
        for stream, view in zip(model.streams, views, strict=True)
    ]
    image = views[0]
    prefixes = [model.stream_prefixes.get(stream.name, "") for stream in model.streams]

    def of_image(name: str) -> bool:
        return not any(prefix and name.startswith(prefix) for prefix in prefixes[1:])

    groups = [token_groups(group) for group in anatomy.groups if of_image(group.name)]
    kinds = {group.layout.kind for group in anatomy.groups}
    if anatomy.patches:
        patches = [_patch_grid(patch) for patch in anatomy.patches]
        figures["patches"] = lambda: draw_patches(patches, views, note)
    if kinds == {"window"}:
        figures["windows"] = lambda: draw_windows(groups, image, note)
    if "grid" in kinds:
        figures["partitions"] = lambda: draw_partitions(groups, image, note)
    masks = [group for group in groups if group.blocked.any()]
    # A shifted layer shows every kind of mask, padding among them.
    masking = next((group for group in masks if group.shift != (0, 0)), next(iter(masks), None))
    if masking is not None:
        figures["attention_mask"] = lambda: draw_masks(masking, note)
    elif groups:
        omitted["attention_mask"] = "at this size no layer masks anything"
    if anatomy.relative:
        relative = [_relative_positions(layer) for layer in anatomy.relative]
        figures["relative_position"] = lambda: draw_relative_position(relative, note)
    merge = next((m for m in anatomy.merges if of_image(m.name)), None)
    if merge is not None:
        after = next((_level(x) for x in anatomy.levels if merge.name.startswith(x.name + ".")), None)
        merging = merging_of(merge)
        figures["merging"] = lambda: draw_merging(merging, image, after, note)
    attention = [query_attention(model, layer) for layer in anatomy.attention if of_image(layer.name)]
    if attention:
        figures["attention"] = lambda: draw_attention(attention, image, note)
    if anatomy.prefix:
        tokens_before = [query_attention(model, layer) for layer in anatomy.prefix]
        figures["prefix_attention"] = lambda: draw_attention(tokens_before, image, note)
    if anatomy.learned:
        learned = anatomy.learned[0]
        spread = None if learned.spread is None else _array(learned.spread)
        stride = anatomy.patches[0].stride
        figures["token_maps"] = lambda: draw_learned(_array(learned.maps), spread, image, stride, note)
    streams = [[_level(level) for level in anatomy.levels if level.name.startswith(prefix)] for prefix in prefixes]
    if streams[0]:
        figures["pyramid"] = lambda: draw_pyramid(streams[0], image, note)
    if len(streams) > 1:
        figures["streams"] = lambda: draw_streams(streams, views, note)
    fusion = anatomy.fusion
    if fusion is not None:
        weights = None if fusion.weights is None else _array(fusion.weights)
        tokens = [_feature_map("", (1, 1), x.permute(2, 0, 1)) for x in (fusion.image, fusion.spectral, fusion.fused)]
        figures["fusion"] = lambda: draw_fusion(weights, tokens, views, note)
    return figures, omitted


_POSITIONS = {
    "learned": "a learned position is added to each",
    "fixed": "sines and cosines of the position are added to each",
    "relative": "attention has a bias by relative position",
    "rotary": "queries and keys are rotated by their position",
}


def _patch_grid(patch: structure.PatchGrid) -> PatchGrid:
    """Unpack the patches of one input."""
    positions = ", ".join(_POSITIONS[kind] for kind in patch.positions) or "no positions"
    sizes = patch.patch, patch.stride, patch.padding
    return PatchGrid(patch.stream, *sizes, patch.grid, patch.prefix, positions, patch.stem)


def token_groups(group: Groups) -> TokenGroups:
    """Unpack the groups of one layer into arrays."""
    return TokenGroups(
        group.name, group.layout.kind, group.stride, group.grid, group.padded, group.window, group.layout.shift,
        group.group_map().numpy(), group.on_grid(group.labels).numpy(), group.regions.numpy(), group.labels.numpy(),
        group.mask.numpy(),
    )  # fmt: skip


def merging_of(merge: Merge) -> Merging:
    """Unpack one patch merging into arrays."""
    return Merging(merge.name, merge.grid, merge.stride, PARENTS, merge.parents.numpy())


def query_attention(model: VisionModel, layer: structure.QueryAttention) -> QueryAttention:
    """Unpack the attention of one token in one layer into arrays."""
    window = None if layer.layout.kind == "global" else layer.layout.window
    stride, layout = layer_tiles(model, layer.name).stride, layer.layout
    maps = _array(layer.maps)
    return QueryAttention(layer.name, layout.kind, window, layout.shift, stride, layer.query, layer.token, maps)


def _relative_positions(layer: RelativeBias) -> RelativePositions:
    return RelativePositions(layer.name, layer.window, layer.index.numpy(), _array(layer.table), _array(layer.bias))


def _level(level: structure.Level) -> FeatureMap:
    return _feature_map(level.name, level.stride, level.map)


def _feature_map(name: str, stride: tuple[int, int], values: Tensor) -> FeatureMap:
    C, H, W = values.shape
    return FeatureMap(name, stride, (H, W, C), _array(principal_colors(values)), _array(values.float().norm(dim=0)))


def _array(values: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = values.detach().float().numpy()
    return array
