"""The figures of a report, drawn from what runs recorded. Colours are safe for colour-blind readers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vitrail.report.picture import shorten

# Class and run names are text, whatever signs they hold.
matplotlib.rcParams["text.parse_math"] = False

# Okabe & Ito 2008, "Color universal design": black is kept for text.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
# Paul Tol's "muted" scheme and gray, for classes; with more classes than these, colours alone cannot tell them apart.
_CLASS_COLORS = (
    "#332288", "#DDCC77", "#117733", "#CC6677", "#88CCEE", "#882255", "#44AA99", "#AA4499", "#999933", "#888888",
)  # fmt: skip
# Of a class's name in a figure.
_MOST_LETTERS = 22
# In gray, marks tell them apart.
_CLASS_MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


def convergence(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Loss and accuracy by epoch: training dashed, validation solid, a colour a run."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for number, table in enumerate(curves.values()):
        color = PALETTE[number % len(PALETTE)]
        for axis, value in zip(axes, ("loss", "accuracy"), strict=True):
            for split, style in (("train", "--"), ("val", "-")):
                values = table[f"{split}_{value}"]
                axis.plot(table["epoch"] + 1, values, style, color=color, linewidth=1.6, marker=".", markersize=4)
    for axis, value in zip(axes, ("cross-entropy", "accuracy"), strict=True):
        axis.set(xlabel="epoch", ylabel=value)
        axis.grid(alpha=0.25)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    keys = [Line2D([], [], color=PALETTE[i % len(PALETTE)], label=name) for i, name in enumerate(curves)]
    keys.append(Line2D([], [], color="gray", linestyle="--", label="training"))
    keys.append(Line2D([], [], color="gray", linestyle="-", label="validation"))
    figure.legend(handles=keys, frameon=False, fontsize=8, loc="outside lower center", ncols=min(len(keys), 7))
    return figure


def confusion(tables: Mapping[str, pd.DataFrame], clustered: Mapping[str, pd.DataFrame]) -> Figure:
    """Confusion matrices, a row each: counts, and per cent of the true class with what is mixed up side by side.

    Args:
        tables: Run -> counts, a row a true class.
        clustered: Run -> the same counts in another order of the classes.
    """
    most = max(len(table) for table in tables.values())
    # A cell takes room for its number; beyond some classes there is no number to read.
    side = float(np.clip(0.42 * most, 2.6, 3.6))
    names = [str(name) for table in tables.values() for name in table.columns]
    letters = 0.062 * min(max(map(len, names), default=1), _MOST_LETTERS)
    figure = Figure(figsize=(2 * (side + letters + 0.6) + 0.4, (side + letters + 0.75) * len(tables)),
                    layout="constrained")  # fmt: skip
    axes = figure.subplots(len(tables), 2, squeeze=False)
    image = None
    for row, name in zip(axes, tables, strict=True):
        for axis, table, percent in zip(row, (tables[name], clustered[name]), (False, True), strict=True):
            image = _matrix(axis, table, percent)
            what = "per cent, clustered" if percent else "counts"
            axis.set_title(f"{name}: {what}" if len(tables) > 1 else what, fontsize=10)
    if image is not None:
        # As tall as the first row, and beside it.
        height = 0.8 / len(tables)
        figure.colorbar(image, ax=axes, label="% of the true class", shrink=height, anchor=(0, 1), aspect=15)
    return figure


def _matrix(axis: Any, table: pd.DataFrame, percent: bool) -> Any:
    counts = table.to_numpy(dtype=float)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    labels = [shorten(str(label), _MOST_LETTERS) for label in table.columns]
    axis.set(xlabel="predicted", ylabel="true")
    if len(labels) <= 30:
        turn = 90 if max(map(len, labels)) > 3 else 0
        axis.set_xticks(range(len(labels)), labels, rotation=turn, fontsize=8)
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
    if len(labels) <= 12:
        for i, j in np.argwhere(counts > 0):
            told = f"{counts[i, j]:.0f}"
            if percent:
                told = "<1" if 0 < share[i, j] < 0.5 else f"{share[i, j]:.0f}"
            axis.text(j, i, told, ha="center", va="center", fontsize=8, color="white" if share[i, j] > 55 else "black")
    axis.spines[:].set_color("#d8dee4")
    return image


def feature_space(points: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]], classes: Sequence[str]) -> Figure:
    """Two-dimensional maps of embeddings, a colour and a mark a class, the same in every panel."""
    columns = min(len(points), 3)
    rows = math.ceil(len(points) / columns)
    figure = Figure(figsize=(4.4 * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    colors = class_colors(len(classes))
    for axis, (name, (xy, targets)) in zip(axes.flat, points.items(), strict=False):
        for target, label in enumerate(classes):
            chosen = xy[targets == target]
            mark = _CLASS_MARKS[target % len(_CLASS_MARKS)]
            axis.scatter(*chosen.T, s=11, color=colors[target], marker=mark, label=label, linewidths=0)
            if len(chosen) and len(classes) <= 12:
                place = np.median(chosen, axis=0)
                box = {"facecolor": "white", "alpha": 0.75, "pad": 1, "edgecolor": "none"}
                axis.text(*place, label, ha="center", va="center", fontsize=8, fontweight="bold", bbox=box)
        axis.set(title=name, xticks=[], yticks=[])
    for axis in axes.flat[len(points) :]:
        axis.set_visible(False)
    if len(classes) > 40:
        figure.supxlabel(f"{len(classes)} classes", fontsize=9)
    else:
        keys = [
            Line2D([], [], color=colors[i], marker=_CLASS_MARKS[i % len(_CLASS_MARKS)], linestyle="", label=label)
            for i, label in enumerate(classes)
        ]
        # In points: a key's mark and the spaces around it, and some five for each letter of its label.
        key = 40 + 5 * max(map(len, classes), default=1)
        across = max(1, int(72 * figure.get_figwidth() / key))
        figure.legend(handles=keys, frameon=False, fontsize=8, loc="outside lower center", ncols=min(across, len(keys)))
    return figure


def class_colors(number: int) -> list[str]:
    """A colour for each class, as "#rrggbb"."""
    if number <= len(_CLASS_COLORS):
        return list(_CLASS_COLORS[:number])
    return [to_hex(matplotlib.colormaps["turbo"](i / (number - 1))) for i in range(number)]


def attention(images: npt.NDArray[Any], maps: Mapping[str, npt.NDArray[Any]], titles: Sequence[str]) -> Figure:
    """Images above, and below them each run's rollout laid over the image, all on one scale.

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
    """A row an image: the image, then where each learned token looks.

    Args:
        images: Shape ``(n, H, W)`` or ``(n, H, W, 3)``, in 0..1.
        maps: Shape ``(n, tokens, H, W)``, in multiples of an even spread.
        titles: One for each image.
    """
    count, tokens = maps.shape[:2]
    figure = Figure(figsize=(1.1 * (tokens + 1) + 1.0, 1.15 * count), layout="constrained")
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
