"""Attention maps over images: rollout, and the selection maps of learned tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure


def attention(images: npt.NDArray[Any], maps: Mapping[str, npt.NDArray[Any]], titles: Sequence[str]) -> Figure:
    """Draw images, and below them the rollout of each run over the image, all on one scale.

    Args:
        images: Shape ``(n, H, W)`` or ``(n, H, W, 3)``, in 0..1.
        maps: Run -> shape ``(n, H, W)``, in multiples of an even spread.
        titles: One for each image.
    """
    rows, columns = 1 + len(maps), len(images)
    figure = Figure(figsize=(1.3 * columns + 1.2, 1.4 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    top = max(float(np.quantile(values, 0.99)) for values in maps.values())
    for column, image in enumerate(images):
        _show_image(axes[0, column], image)
        axes[0, column].set_title(titles[column], fontsize=8)
    shown = None
    for row, (name, values) in enumerate(maps.items(), start=1):
        for column, image in enumerate(images):
            _show_image(axes[row, column], image)
            shown = axes[row, column].imshow(values[column], cmap="inferno", vmin=0, vmax=top, alpha=0.65)
        axes[row, 0].set_ylabel(name, fontsize=8)
    axes[0, 0].set_ylabel("image", fontsize=8)
    if shown is not None:
        bar = figure.colorbar(shown, ax=axes[1:, :], shrink=0.9, aspect=15)
        bar.set_label("rollout, multiples of even spread", fontsize=8)
    return figure


def learned_tokens(images: npt.NDArray[Any], maps: npt.NDArray[Any], titles: Sequence[str]) -> Figure:
    """Draw a row an image: the image, then the selection map of each learned token.

    Args:
        images: Shape ``(n, H, W)`` or ``(n, H, W, 3)``, in 0..1.
        maps: Shape ``(n, tokens, H, W)``, in multiples of an even spread.
        titles: One for each image.
    """
    count, tokens = maps.shape[:2]
    ratio = images.shape[1] / images.shape[2]
    # Frames of a clip side by side are wide; labels at the left need a height of their own.
    width, height = (1.1, 1.15) if ratio > 0.7 else (2.2, max(1.35, 2.2 * ratio + 0.05))
    figure = Figure(figsize=(width * (tokens + 1) + 1.0, height * count), layout="constrained")
    axes = figure.subplots(count, tokens + 1, squeeze=False)
    top = float(np.quantile(maps, 0.995))
    shown = None
    for row in range(count):
        _show_image(axes[row, 0], images[row])
        axes[row, 0].set_ylabel(titles[row], fontsize=8)
        for token in range(tokens):
            axis = axes[row, token + 1]
            _show_image(axis, images[row])
            shown = axis.imshow(maps[row, token], cmap="inferno", vmin=0, vmax=top, alpha=0.7)
            if row == 0:
                axis.set_title(f"token {token + 1}", fontsize=8)
    if shown is not None:
        bar = figure.colorbar(shown, ax=axes, shrink=0.8, aspect=20)
        bar.set_label("weight, multiples of even spread", fontsize=8)
    return figure


def _show_image(axis: Any, image: npt.NDArray[Any]) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
