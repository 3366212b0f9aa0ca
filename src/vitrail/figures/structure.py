"""Learned structure of a model: filters, positions, attention of its heads, similarity of its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitrail.errors import plural
from vitrail.figures.anatomy.canvas import spread, where
from vitrail.figures.style import PALETTE, head, plain

Array = npt.NDArray[Any]

_COLORS = ("red", "green", "blue")
_COLUMNS = 7
# Rows and columns of a figure that stays readable.
_MOST_BANDS = 12
_MOST_COMPONENTS = 8
_MOST_ROWS = 12
# More layers are numbered only.
_MOST_NAMES = 30


@dataclass(frozen=True)
class Filters:
    """Principal components of one convolution.

    Attributes:
        title: Name of the stream.
        bands: Names of the C bands.
        components: Shape ``(K, C, h, w)``.
        shares: Share of each in the variance, shape ``(K,)``.
    """

    title: str
    bands: Sequence[str]
    components: Array
    shares: Array


@dataclass(frozen=True)
class LayerValues:
    """A value of each head of a layer.

    Attributes:
        name: The layer's name.
        kind: Kind of its attention: "global", "window", "grid" or "cross".
        values: Shape ``(B, heads)``.
        uniform: The value of uniform attention.
    """

    name: str
    kind: str
    values: Array
    uniform: float


@dataclass(frozen=True)
class Focus:
    """Targets of the heads of a layer.

    Attributes:
        name: The layer's name.
        shares: Attention of each head to each target, shape ``(heads, targets)``.
        uniform: The same of uniform attention, shape ``(targets,)``.
    """

    name: str
    shares: Array
    uniform: Array


def draw_filters(filters: Sequence[Filters], note: str) -> Figure:
    """Draw the components of each stream: in true colour or gray, or band by band.

    Args:
        filters: Components of each stream.
        note: Note below the figure.
    """
    grids = [_filter_cells(one) for one in filters]
    heights = [0.82 * len(cells) + 0.3 for cells, _ in grids]
    width = max(max(len(row) for row in cells) for cells, _ in grids) + 0.6
    figure = Figure(figsize=(max(0.95 * width, 5.5), sum(heights) + 0.6), layout="constrained")
    parts = figure.subfigures(len(grids), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, one, (cells, names) in zip(parts, filters, grids, strict=True):
        axes = part.subplots(len(cells), len(cells[0]), squeeze=False)
        for row, line in enumerate(cells):
            for axis, cell in zip(axes[row], line, strict=True):
                axis.set(xticks=[], yticks=[])
                if cell is None:
                    axis.axis("off")
                    continue
                text, picture = cell
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axis.set_ylabel(text, fontsize=7, rotation=0, ha="right", va="center")
        for axis, name in zip(axes[0], names, strict=False):
            axis.set_title(name, fontsize=7)
        if len(grids) > 1:
            part.suptitle(one.title, fontsize=9, x=0.01, ha="left")
    return head(figure, "Principal components of the projection filters", note)


def _filter_cells(filters: Filters) -> tuple[list[list[tuple[str, Array] | None]], list[str]]:
    """Arrange the pictures of one stream; names of the columns where they are bands."""
    components, chans = filters.components, filters.components.shape[1]
    scaled = components / (2 * np.abs(components).max(axis=(1, 2, 3), keepdims=True).clip(1e-12)) + 0.5
    texts = [f"{share:.0%}" if share >= 0.01 else f"{share:.1%}" for share in filters.shares]
    names = [name.lower() for name in filters.bands]
    color = [names.index(name) for name in _COLORS] if set(_COLORS) <= set(names) else None
    if color is None and chans == 3 and not any(name in _COLORS for name in names):
        color = None if _are_named(names) else [0, 1, 2]
    colored = None if color is None else scaled[:, color].transpose(0, 2, 3, 1)
    if chans == 1 or (chans == 3 and colored is not None):
        pictures: list[tuple[str, Array] | None] = list(
            zip(texts, scaled[:, 0] if colored is None else colored, strict=True)
        )
        pictures += [None] * (-len(pictures) % _COLUMNS)
        return [pictures[i : i + _COLUMNS] for i in range(0, len(pictures), _COLUMNS)], []
    cells: list[list[tuple[str, Array] | None]] = []
    shown = range(min(chans, _MOST_BANDS))
    for number, text in enumerate(texts[:_MOST_COMPONENTS]):
        line: list[tuple[str, Array] | None] = [] if colored is None else [("", colored[number])]
        line += [("", scaled[number, band]) for band in shown]
        first = line[0]
        assert first is not None
        cells.append([(text, first[1]), *line[1:]])
    columns = [*([] if colored is None else ["true colour"]), *(str(filters.bands[band]) for band in shown)]
    return cells, columns


def _are_named(names: Sequence[str]) -> bool:
    """Check whether bands have names of their own instead of numbers."""
    return not all(name.removeprefix("band").strip("_ ").isdigit() for name in names)


def draw_by_head(layers: Sequence[LayerValues], title: str, unit: str, note: str) -> Figure:
    """Draw a value of each head by layer: mean and standard deviation over images, beside uniform attention.

    Args:
        layers: Values of each layer, in the order of the model.
        title: Title of the figure.
        unit: Unit of the values.
        note: Note below the figure.
    """
    figure = Figure(figsize=(min(max(5.5, 0.45 * len(layers) + 2), 14), 4.0), layout="constrained")
    axis = figure.subplots()
    plain(axis)
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    for number, layer in enumerate(layers):
        heads = layer.values.shape[1]
        across = number + (np.linspace(-0.28, 0.28, heads) if heads > 1 else np.zeros(1))
        mean, spread = layer.values.mean(axis=0), layer.values.std(axis=0)
        color = PALETTE[kinds.index(layer.kind)]
        axis.errorbar(across, mean, spread, fmt="o", markersize=3.5, linewidth=0.8, color=color)
        axis.plot([number - 0.4, number + 0.4], [layer.uniform] * 2, color="#555555", linewidth=1, linestyle=":")
    _name_layers(axis, [layer.name for layer in layers])
    axis.set_ylabel(unit)
    axis.set_ylim(bottom=0)
    keys = [Line2D([], [], marker="o", linestyle="", markersize=4, color=PALETTE[i], label=f"a head ({kind})")
            for i, kind in enumerate(kinds)]  # fmt: skip
    keys.append(Line2D([], [], color="#555555", linestyle=":", label="uniform attention"))
    axis.legend(handles=keys, fontsize=8, frameon=False, ncols=len(keys), loc="lower left", bbox_to_anchor=(0, 1))
    return head(figure, title, note)


def _name_layers(axis: Any, names: Sequence[str], vertical: bool = False) -> None:
    shown = [where(name) for name in names]
    labels = shown if len(names) <= _MOST_NAMES else [str(i + 1) for i in range(len(names))]
    ticks = range(len(names)) if len(names) <= _MOST_NAMES else range(0, len(names), math.ceil(len(names) / 12))
    if vertical:
        axis.set_yticks(ticks, [labels[i] for i in ticks], fontsize=7)
    else:
        axis.set_xticks(ticks, [labels[i] for i in ticks], fontsize=7, rotation=40, ha="right", rotation_mode="anchor")


# Colours of the targets: prefix tokens, the token itself, its neighbours, others.
_TARGET_COLORS = (PALETTE[3], PALETTE[0], PALETTE[5], "#D9D9D9")


def draw_focus(layers: Sequence[Focus], targets: Sequence[str], note: str) -> Figure:
    """Draw the attention of each head as a stacked bar by target, and that of uniform attention beside each layer.

    Args:
        layers: Values of each layer, in the order of the model.
        targets: Names of the targets.
        note: Note below the figure.
    """
    bars = sum(len(layer.shares) + 2 for layer in layers)
    figure = Figure(figsize=(min(max(6.0, 0.14 * bars + 1.5), 16), 4.0), layout="constrained")
    axis = figure.subplots()
    position, centres = 0.0, []
    for layer in layers:
        heads = layer.shares[np.argsort(-layer.shares[:, :3].sum(axis=1), kind="stable")]
        across = position + np.arange(len(heads) + 1)
        stacked = np.vstack([heads, layer.uniform])
        base = np.zeros(len(stacked))
        for number, color in enumerate(_TARGET_COLORS):
            drawn = axis.bar(across, stacked[:, number], 0.92, bottom=base, color=color)
            drawn[-1].set(hatch="////", edgecolor="#555555", linewidth=0.3)
            base += stacked[:, number]
        centres.append(float(across.mean()))
        position += len(stacked) + 1
    axis.set(ylim=(0, 1), xlim=(-1, position - 1), ylabel="share of the attention")
    axis.spines[["top", "right"]].set_visible(False)
    many = len(layers) > _MOST_NAMES
    axis.set_xticks(centres, [str(i + 1) if many else where(x.name) for i, x in enumerate(layers)], fontsize=7,
                    rotation=40, ha="right", rotation_mode="anchor")  # fmt: skip
    keys = [Line2D([], [], marker="s", linestyle="", color=color, label=target)
            for color, target in zip(_TARGET_COLORS, targets, strict=True)]  # fmt: skip
    axis.legend(handles=keys, fontsize=8, frameon=False, ncols=len(keys), loc="lower left", bbox_to_anchor=(0, 1))
    return head(figure, "Targets of the attention of each head", note)


def draw_position_similarity(name: str, chosen: Array, similarity: Array, note: str) -> Figure:
    """Draw the similarity of some positions to all positions, each as a map at its own place.

    Args:
        name: Name of the table.
        chosen: Row and column of each drawn position, shape ``(rows, columns, 2)``.
        similarity: Cosine similarities, shape ``(rows, columns, h, w)``.
        note: Note below the figure.
    """
    rows, columns = similarity.shape[:2]
    figure = Figure(figsize=(0.62 * columns + 1.6, 0.62 * rows + 1.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    low = min(float(similarity.min()), 0.0)
    shown = None
    for row in range(rows):
        for column in range(columns):
            axis = axes[row, column]
            shown = axis.imshow(similarity[row, column], cmap="viridis", vmin=low, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(str(chosen[row, 0, 0] + 1), fontsize=7, rotation=0, ha="right", va="center")
            if row == rows - 1:
                axis.set_xlabel(str(chosen[0, column, 1] + 1), fontsize=7)
    assert shown is not None
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, aspect=25)
    bar.set_label("cosine similarity", fontsize=8)
    figure.supylabel("row of the position", fontsize=8)
    return head(figure, f"Similarity of positions ({name})", f"{note}\nEach map belongs to the position at its place.")


def draw_relative_tables(tables: Sequence[tuple[str, Array]], note: str) -> Figure:
    """Draw the learned bias by offset of each layer (a row) and head (a column).

    Args:
        tables: Layer and its table, shape ``(heads, 2 wh - 1, 2 ww - 1)``.
        note: Note below the figure.
    """
    rows = spread(len(tables), _MOST_ROWS)
    chosen = [tables[i] for i in rows]
    columns = min(max(len(table) for _, table in chosen), _MOST_BANDS)
    figure = Figure(figsize=(0.95 * columns + 2.4, 0.95 * len(chosen) + 1.1), layout="constrained")
    axes = figure.subplots(len(chosen), columns, squeeze=False)
    for line, (name, table) in zip(axes, chosen, strict=True):
        top = float(np.abs(table).max()) or 1.0
        extent = (-table.shape[2] / 2, table.shape[2] / 2, table.shape[1] / 2, -table.shape[1] / 2)
        shown = None
        for number, axis in enumerate(line):
            if number >= len(table):
                axis.axis("off")
                continue
            shown = axis.imshow(table[number], cmap="RdBu_r", vmin=-top, vmax=top, extent=extent)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(where(name).replace(", ", "\n"), fontsize=7, rotation=0, ha="right", va="center")
        assert shown is not None, "a table has a head"
        bar = figure.colorbar(shown, ax=line, shrink=0.8, aspect=8)
        bar.ax.tick_params(labelsize=6)
    for number, axis in enumerate(axes[0]):
        axis.set_title(f"head {number + 1}", fontsize=7)
    left_out = len(tables) - len(chosen)
    more = f"\n{plural(left_out, 'layer')} between them: in the CSV alone." if left_out else ""
    note = f"{note}\nThe centre is the bias of a token for itself; right: keys to the left of the query.{more}"
    return head(figure, "Relative position bias by offset", note)


def draw_cka(matrix: Array, rows: Sequence[str], columns: Sequence[str], names: tuple[str, str], note: str) -> Figure:
    """Draw the CKA between layers.

    Args:
        matrix: Shape ``(rows, columns)``, 0 to 1.
        rows: Layers of the first model.
        columns: Layers of the second model, or of the same.
        names: Names of both models.
        note: Note below the figure.
    """
    side = 0.3 * max(len(rows), len(columns))
    figure = Figure(figsize=(min(max(4.8, side + 2.2), 12), min(max(4.2, side + 1.8), 11)), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(matrix, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    _name_layers(axis, rows, vertical=True)
    _name_layers(axis, columns)
    axis.set_ylabel(names[0], fontsize=8)
    axis.set_xlabel(names[1], fontsize=8)
    if matrix.size <= 100:
        for (row, column), value in np.ndenumerate(matrix):
            color = "black" if value > 0.6 else "white"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    bar = figure.colorbar(shown, ax=axis, shrink=0.8)
    bar.set_label("linear CKA", fontsize=8)
    return head(figure, "Similarity of the features of layers", note)
