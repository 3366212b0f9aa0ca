"""Training images beside their augmented views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vitrail.errors import plural
from vitrail.figures.clouds import add_part_legend, cloud_picture, part_colors
from vitrail.figures.display import as_pictures
from vitrail.figures.picture import shorten
from vitrail.figures.write import write_figure

_MOST_CHARACTERS = 24


def write_contact_sheet(
    streams: Sequence[Mapping[str, Tensor]],
    labels: Sequence[Sequence[str]],
    bands: Mapping[str, tuple[str, ...]],
    out: Path,
    parts: Sequence[str] = (),
) -> None:
    """Draw a row for each stream of each image: the image, then its augmented views.

    Three bands are shown in their colours, one in gray, others as the mean of all bands, on the scale of the image;
    points by depth, or by part with a legend.

    Args:
        streams: Streams of each image: stream -> the image and its views, shape ``(1 + views, C, H, W)``, in 0..1, of
            clips ``(1 + views, C, T, H, W)``, of clouds ``(1 + views, N, 3)``; "parts" has those of their points,
            ``(1 + views, N)``.
        labels: Labels of each image: label of the image and of each view.
        bands: Stream -> names of its bands.
        out: PNG file.
        parts: Names of the parts.
    """
    # Attributes of points have no picture.
    names = ["points"] if "points" in bands else list(bands)
    columns = len(labels[0])
    count = len(streams) * len(names)
    height, width = _pictures(streams[0], names[0], bands, parts)[0].shape[:2]
    lines = max(label.count("\n") + 1 for row in labels for label in row)
    cell = 1.4 * height / width if width >= height else 1.4
    size = (1.5 * columns + 0.6, (cell + 0.12) * count + 0.16 * lines * len(streams) + 0.5 + 0.3 * -(-len(parts) // 4))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(count, columns, squeeze=False)
    for i, (images, titles) in enumerate(zip(streams, labels, strict=True)):
        for j, name in enumerate(names):
            line = axes[i * len(names) + j]
            for axis, picture, title in zip(line, _pictures(images, name, bands, parts), titles, strict=True):
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                if j == 0:
                    short = [shorten(part, _MOST_CHARACTERS) for part in title.split("\n")]
                    axis.set_title("\n".join(short), fontsize=7)
            line[0].set_ylabel(_stream_title(name, bands[name]), fontsize=7)
    for spine in (s for line in axes for s in line[0].spines.values()):
        spine.set(linewidth=2)
    for axis, text in zip(axes[0], ("as it is", "as training changes it"), strict=False):
        axis.annotate(text, (0, 1), xytext=(0, 10 + 9 * lines), xycoords="axes fraction",
                      textcoords="offset points", fontsize=8, fontweight="bold")  # fmt: skip
    shown = [images["parts"][~images["points"][..., 0].isnan()] for images in streams if "parts" in images]
    if shown:
        add_part_legend(figure, torch.cat(shown).numpy(), parts)
    write_figure(figure, out, dpi=110)


def _pictures(
    images: Mapping[str, Tensor], name: str, bands: Mapping[str, Sequence[str]], parts: Sequence[str]
) -> Sequence[npt.NDArray[Any]]:
    """Make a picture ``(H, W)`` or ``(H, W, 3)`` of an input and of each view: images, clips or clouds."""
    inputs = images[name]
    if name != "points":
        return list(as_pictures(inputs, bands[name], alike=True))
    colors = [part_colors(own, parts) for own in images["parts"].numpy()] if "parts" in images else [None] * len(inputs)
    return [cloud_picture(cloud, own) for cloud, own in zip(inputs.numpy(), colors, strict=True)]


def _stream_title(name: str, bands: tuple[str, ...]) -> str:
    if len(bands) in (1, 3):
        return f"{name}\n{shorten(', '.join(bands), _MOST_CHARACTERS)}"
    if {"red", "green", "blue"} <= set(bands):
        return f"{name}\n(red, green, blue of {plural(len(bands), 'band')})"
    return f"{name}\n(mean of {plural(len(bands), 'band')})"
