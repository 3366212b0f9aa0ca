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

from vitrail.evaluate.confusion import most_confused
from vitrail.figures.labels import distinct_names, legend_below, legend_beside

# Class and run names are text, whatever signs they hold.
matplotlib.rcParams["text.parse_math"] = False

# Okabe & Ito 2008, "Color universal design": black is kept for text.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
# Paul Tol's "muted" scheme and gray, for classes; with more classes than these, colours alone cannot tell them apart.
_CLASS_COLORS = (
    "#332288", "#DDCC77", "#117733", "#CC6677", "#88CCEE", "#882255", "#44AA99", "#AA4499", "#999933", "#888888",
)  # fmt: skip
# Of a class's name in a figure, and in a legend beside it.
_MOST_LETTERS, _MOST_LETTERS_BESIDE = 22, 34
# Classes of confusion matrices that lie side by side, and that are named at all; cells of one side of a larger one.
_MOST_SIDE_BY_SIDE, _MOST_NAMED, _MOST_CELLS = 30, 60, 400
# Classes that a legend names; the colour of the others.
_MOST_IN_LEGEND, _OTHERS = 40, "#c4cad0"
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
    legend_below(figure, keys)
    return figure


def confusion(tables: Mapping[str, pd.DataFrame], clustered: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw confusion matrices: counts, and per cent of the true class with confused classes side by side.

    Beside each other where the classes are few. Up to 60 classes are named, the two matrices below each other; of more,
    one matrix stands beside a list of the pairs that are confused most often, as no order of the classes can be read.

    Args:
        tables: Run -> counts, a row a true class.
        clustered: Run -> the same counts in another order of the classes.
    """
    most = max(len(table) for table in tables.values())
    if most > _MOST_NAMED:
        return _confusion_of_many(tables)
    narrow = most <= _MOST_SIDE_BY_SIDE
    # A cell takes room for its number; beyond some classes there is no number to read.
    side = float(np.clip(0.42 * most, 2.6, 3.6)) if narrow else 0.135 * most
    names = [str(name) for table in tables.values() for name in table.columns]
    letters = (0.062 if narrow else 0.05) * min(max(map(len, names), default=1), _MOST_LETTERS)
    across, down = (2, 1) if narrow else (1, 2)
    figure = Figure(figsize=(across * (side + letters + 0.6) + 0.4, (side + letters + 0.75) * len(tables) * down),
                    layout="constrained")  # fmt: skip
    axes = figure.subplots(len(tables) * down, across, squeeze=False).reshape(len(tables), 2)
    image = None
    for row, name in zip(axes, tables, strict=True):
        for axis, table, percent in zip(row, (tables[name], clustered[name]), (False, True), strict=True):
            image = _matrix(axis, table, percent)
            what = "per cent, clustered" if percent else "counts" if narrow else "per cent"
            axis.set_title(f"{name}: {what}" if len(tables) > 1 else what, fontsize=10)
    _color_bar(figure, image, axes, len(tables) * down)
    return figure


def _color_bar(figure: Figure, image: Any, axes: Any, rows: int) -> None:
    if image is not None:
        # As tall as the first row, and beside it.
        figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8 / rows, anchor=(0, 1), aspect=15)


def _matrix(axis: Any, table: pd.DataFrame, percent: bool) -> Any:
    counts = table.to_numpy(dtype=float)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    labels = distinct_names([str(label) for label in table.columns], _MOST_LETTERS)
    axis.set(xlabel="predicted", ylabel="true")
    size = 8 if len(labels) <= _MOST_SIDE_BY_SIDE else 6
    turn = 90 if max(map(len, labels)) > 3 else 0
    axis.set_xticks(range(len(labels)), labels, rotation=turn, fontsize=size)
    axis.set_yticks(range(len(labels)), labels, fontsize=size)
    if len(labels) <= 12:
        for i, j in np.argwhere(counts > 0):
            told = f"{counts[i, j]:.0f}"
            if percent:
                told = "<1" if 0 < share[i, j] < 0.5 else f"{share[i, j]:.0f}"
            axis.text(j, i, told, ha="center", va="center", fontsize=8, color="white" if share[i, j] > 55 else "black")
    axis.spines[:].set_color("#d8dee4")
    return image


def _confusion_of_many(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """One matrix a run with some of the classes named, and the pairs that are confused most often."""
    figure = Figure(figsize=(11.5, 4.9 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), 2, squeeze=False, width_ratios=(1, 1.1))
    image = None
    for (matrix, listed), (name, table) in zip(axes, tables.items(), strict=True):
        counts = table.to_numpy(dtype=float)
        share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        # Beyond the resolution of the figure a cell is the largest of its block, so that no error is lost.
        block = -(-len(share) // _MOST_CELLS)
        image = matrix.imshow(_largest_of_blocks(share, block), cmap="Blues", vmin=0, vmax=100, interpolation="nearest",
                              extent=(-0.5, len(share) - 0.5, len(share) - 0.5, -0.5))  # fmt: skip
        shown = np.unique(np.linspace(0, len(table) - 1, 16).round().astype(int))
        labels = distinct_names([str(label) for label in table.columns], _MOST_LETTERS)
        matrix.set_yticks(shown, [labels[i] for i in shown], fontsize=6)
        matrix.set_xticks(shown, [labels[i] for i in shown], fontsize=6, rotation=90)
        title = f"{len(table)} classes, 16 of them named"
        matrix.set(xlabel="predicted", ylabel="true")
        matrix.set_title(f"{name}: {title}" if len(tables) > 1 else title, fontsize=10)
        matrix.spines[:].set_color("#d8dee4")
        listed.set_axis_off()
        listed.set_title("most often confused", fontsize=10, loc="left")
        pairs = most_confused(table, 18)
        short = dict(zip(map(str, table.columns), distinct_names([str(c) for c in table.columns], 34), strict=True))
        for row, pair in enumerate(pairs.itertuples()):
            text = f"{pair.count:>4}  {short[str(pair.true)]} → {short[str(pair.predicted)]} ({pair.share:.0%})"
            listed.text(0, 1 - (row + 0.7) / 18.5, text, fontsize=7, transform=listed.transAxes, va="center")
        if pairs.empty:
            listed.text(0, 0.95, "no image is predicted as another class", fontsize=8, transform=listed.transAxes)
    _color_bar(figure, image, axes[:, 0], len(tables))
    return figure


def _largest_of_blocks(values: npt.NDArray[np.float64], block: int) -> npt.NDArray[np.float64]:
    if block == 1:
        return values
    pad = -len(values) % block
    padded = np.pad(values, ((0, pad), (0, pad)))
    count = len(padded) // block
    largest: npt.NDArray[np.float64] = padded.reshape(count, block, count, block).max(axis=(1, 3))
    return largest


def feature_space(points: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]], classes: Sequence[str]) -> Figure:
    """Draw two-dimensional maps of embeddings, a colour and a mark a class, the same in every panel.

    The legend lies beside the panels. Of more than 40 classes the 20 with most points have a colour and a name, the
    others are gray.

    Args:
        points: Run -> points, shape ``(N, 2)``, and the class of each, shape ``(N,)``.
        classes: Names.
    """
    columns = min(len(points), 3)
    rows = math.ceil(len(points) / columns)
    figure = Figure(figsize=(4.4 * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    named = _named_classes([targets for _, targets in points.values()], len(classes))
    labels = dict(zip(named, distinct_names([str(classes[i]) for i in named], _MOST_LETTERS_BESIDE), strict=True))
    colors = dict(zip(named, class_colors(len(named)), strict=True))
    for axis, (name, (xy, targets)) in zip(axes.flat, points.items(), strict=False):
        if len(named) < len(classes):
            axis.scatter(*xy[~np.isin(targets, named)].T, s=7, color=_OTHERS, linewidths=0)
        for number, target in enumerate(named):
            chosen = xy[targets == target]
            mark = _CLASS_MARKS[number % len(_CLASS_MARKS)]
            axis.scatter(*chosen.T, s=11, color=colors[target], marker=mark, linewidths=0)
            if len(chosen) and len(classes) <= 12:
                place = np.median(chosen, axis=0)
                box = {"facecolor": "white", "alpha": 0.75, "pad": 1, "edgecolor": "none"}
                axis.text(*place, labels[target], ha="center", va="center", fontsize=8, fontweight="bold", bbox=box)
        axis.set(title=name, xticks=[], yticks=[])
    for axis in axes.flat[len(points) :]:
        axis.set_visible(False)
    keys = [
        Line2D([], [], color=colors[k], marker=_CLASS_MARKS[i % len(_CLASS_MARKS)], linestyle="", label=labels[k])
        for i, k in enumerate(named)
    ]
    if rest := len(classes) - len(named):
        keys.append(Line2D([], [], color=_OTHERS, marker="o", linestyle="", label=f"{rest} other classes"))
    legend_beside(figure, keys)
    return figure


def _named_classes(targets: Sequence[npt.NDArray[Any]], number: int) -> list[int]:
    """All classes where a legend can name them, else those with most points, in order."""
    if number <= _MOST_IN_LEGEND:
        return list(range(number))
    counts = np.bincount(np.concatenate(list(targets)), minlength=number)
    return sorted(np.argsort(-counts, kind="stable")[:20].tolist())


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
