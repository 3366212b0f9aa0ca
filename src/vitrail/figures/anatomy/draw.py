"""All pictures that a model's anatomy gives, written into one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from vitrail.explain.capture.record import layer_stride
from vitrail.explain.structure.anatomy import Anatomy, Level, dissect
from vitrail.figures.anatomy import hierarchy, positions, tokens, windows
from vitrail.figures.anatomy.canvas import View, save
from vitrail.models.base import VisionModel


def draw_anatomy(
    model: VisionModel, inputs: Sequence[Tensor], views: Sequence[View], folder: str | Path, told: str
) -> tuple[list[Path], dict[str, str]]:
    """Run one image through a model and draw how it was taken apart.

    Args:
        model: The model, in evaluation mode, on the CPU.
        inputs: One tensor ``(1, C, H, W)`` for each stream, normalised.
        views: What is shown of each.
        folder: Where PNG and SVG files go; made when missing.
        told: One line below each picture: what is drawn, with which weights.

    Returns:
        The files, and by the name of each picture that this model could have and this image does not show, why.

    Raises:
        ConfigError: More than one image.
        RunError: The folder cannot be written.
    """
    anatomy = dissect(model, inputs)
    pictures, omitted = plan_pictures(model, anatomy, views, told)
    written: list[Path] = []
    for name, draw in pictures.items():
        written += save(draw(), Path(folder), name)
    return written, omitted


def plan_pictures(
    model: VisionModel, anatomy: Anatomy, views: Sequence[View], told: str
) -> tuple[dict[str, Callable[[], Figure]], dict[str, str]]:
    """Which pictures there are: name -> what draws it; and why others are left out."""
    pictures: dict[str, Callable[[], Figure]] = {}
    omitted: dict[str, str] = {}
    streams = split_streams(model, anatomy.levels)
    kinds = {group.layout.kind for group in anatomy.groups}
    if anatomy.patches:
        pictures["patches"] = lambda: tokens.draw_patches(anatomy.patches, views, told)
    image_groups = [g for g in anatomy.groups if not _second(model, g.name)]
    if kinds == {"window"}:
        pictures["windows"] = lambda: windows.draw_windows(image_groups, views[0], told)
    if "grid" in kinds:
        pictures["partitions"] = lambda: windows.draw_partitions(image_groups, views[0], told)
    masks = [group for group in image_groups if bool(group.mask.any())]
    # A shifted layer shows every kind of mask, padding among them.
    masking = next((group for group in masks if group.layout.shift != (0, 0)), next(iter(masks), None))
    if masking is not None:
        pictures["attention_mask"] = lambda: windows.draw_masks(masking, told)
    elif image_groups:
        omitted["attention_mask"] = "at this size no layer masks anything"
    if anatomy.relative:
        pictures["relative_position"] = lambda: positions.draw_relative_position(anatomy.relative, told)
    merge = next((m for m in anatomy.merges if not _second(model, m.name)), None)
    if merge is not None:
        after = next((x for x in anatomy.levels if merge.name.startswith(x.name + ".")), None)
        pictures["merging"] = lambda: hierarchy.draw_merging(merge, views[0], after, told)
    asked = [a for a in anatomy.attention if not _second(model, a.name)]
    if asked:
        strides = {a.name: layer_stride(model, a.name) for a in asked}
        pictures["attention"] = lambda: tokens.draw_attention(asked, dict.fromkeys(strides, views[0]), strides, told)
    if anatomy.learned:
        stride = anatomy.patches[0].patch
        pictures["token_maps"] = lambda: tokens.draw_learned(anatomy.learned, views[0], stride, told)
    if streams[0]:
        pictures["pyramid"] = lambda: hierarchy.draw_pyramid(streams[0], views[0], told)
    if len(streams) > 1:
        pictures["streams"] = lambda: hierarchy.draw_streams(streams, views, told)
    fusion = anatomy.fusion
    if fusion is not None:
        pictures["fusion"] = lambda: hierarchy.draw_fusion(fusion, views, told)
    return pictures, omitted


def split_streams(model: VisionModel, levels: Sequence[Level]) -> list[list[Level]]:
    """Levels by the stream that they belong to, in the order of the model's inputs."""
    prefixes = [model.stream_prefixes.get(stream.name, "") for stream in model.streams]
    return [[level for level in levels if level.name.startswith(prefix)] for prefix in prefixes]


def _second(model: VisionModel, layer: str) -> bool:
    """Whether a layer belongs to the second input."""
    return any(layer.startswith(model.stream_prefixes.get(s.name, "\0")) for s in model.streams[1:])
