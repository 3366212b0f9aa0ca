"""Tokens: the patches that they come from, their attention, and the selection maps of learned tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vitrail.errors import plural
from vitrail.figures.anatomy.canvas import (
    INK,
    Array,
    View,
    blank,
    label,
    lines,
    panels,
    ratio_of,
    show_image,
    spread,
    star,
    where,
    write,
)
from vitrail.figures.style import PALETTE, head

_MOST_PULLED_APART = 64
_FIRST_IN_ROW, _LAST_IN_ROW = 9, 2
_MOST_PREFIX = 5
_MOST_LAYERS = 4
_MOST_HEADS = 3
_MOST_MAPS = 8


@dataclass(frozen=True)
class PatchGrid:
    """Patches of one input.

    Attributes:
        stream: Index of the input.
        patch: Height and width of a patch in pixels.
        stride: Pixels from one patch to the next.
        padding: Rows and columns of zeros on each side of the image.
        grid: Patches along both sides.
        prefix: Names of the tokens before those of the patches.
        positions: Kinds of positions, for the title.
        stem: Whether patches are cut of a stem's feature map.
    """

    stream: int
    patch: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    grid: tuple[int, int]
    prefix: tuple[str, ...] = ()
    positions: str = ""
    stem: bool = False

    @property
    def overlaps(self) -> bool:
        """Whether neighbours share pixels."""
        return self.stride != self.patch

    @property
    def extent(self) -> tuple[int, int]:
        """Pixels that the patches cover, height and width, padding included."""
        rows, columns = (
            (count - 1) * step + size for count, step, size in zip(self.grid, self.stride, self.patch, strict=True)
        )
        return rows, columns


@dataclass(frozen=True)
class QueryAttention:
    """Attention of one query token in one layer.

    Attributes:
        name: Name of the layer.
        kind: "global", "window" or "grid".
        window: Height and width of a group; None for global attention.
        shift: Rows and columns of the cyclic shift.
        stride: Pixels from one token to the next.
        query: Index of the query token, row-major on the grid; None for prefix tokens.
        token: Name of a query that is not a token of the grid.
        maps: Weight of each token of the grid by head, shape ``(heads, H, W)``.
    """

    name: str
    kind: str
    window: tuple[int, int] | None
    shift: tuple[int, int]
    stride: tuple[int, int]
    query: int | None
    token: str
    maps: Array


def draw_patches(patches: Sequence[PatchGrid], views: Sequence[View], note: str) -> Figure:
    """Draw the grid of patches over each input, the patches pulled apart, and their row of tokens."""
    tall = 4.2 * max(ratio_of(views[patch.stream].size) for patch in patches) + 3.0
    figure = Figure(figsize=(9.4, tall * len(patches) + 0.4), layout="constrained")
    parts = figure.subfigures(len(patches), 1, squeeze=False)[:, 0]
    for patch, part in zip(patches, parts, strict=True):
        view = views[patch.stream]
        axes = part.subplot_mosaic([["grid", "apart"], ["row", "row"]], height_ratios=[3.4, 1])
        show_image(axes["grid"], view, patch.stride, patch.grid)
        lines(axes["grid"], patch.grid, (1, 1), "white", 0.9)
        text = f"patches of {_by(patch.patch)} pixels"
        if patch.overlaps:
            text += f", one every {_by(patch.stride)}; the central one is outlined"
            _outline_patch(axes["grid"], patch, view)
        label(axes["grid"], f"{view.title}: {_by(view.size)} pixels{_zeros(patch, view)}\n{text}", "patch")
        _draw_apart(axes["apart"], patch, view)
        _draw_row(axes["row"], patch, view)
    return head(figure, "From pixels to tokens", note)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _zeros(patch: PatchGrid, view: View) -> str:
    """Describe the zeros around an image; empty without any."""
    around = [f"+ {_by(patch.padding)} zeros on each side"] if any(patch.padding) else []
    end = [full - 2 * p - s for full, p, s in zip(patch.extent, patch.padding, view.size, strict=True)]
    after = (
        [f"+ {plural(end[0], 'row')}, {plural(end[1], 'column')} of zeros"] if any(value > 0 for value in end) else []
    )
    return f" ({', '.join([*around, *after])})" if around or after else ""


def _outline_patch(axis: Any, patch: PatchGrid, view: View) -> None:
    """Outline the pixels of the central patch, in units of tokens."""
    height, width = (size / step for size, step in zip(patch.patch, patch.stride, strict=True))
    top, left = (
        count // 2 - (first + pad) / step
        for count, first, pad, step in zip(patch.grid, view.offset, patch.padding, patch.stride, strict=True)
    )
    axis.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=PALETTE[1], linewidth=2.0))


def _draw_apart(axis: Any, patch: PatchGrid, view: View) -> None:
    rows, columns = (min(g, _MOST_PULLED_APART) for g in patch.grid)
    axis.imshow(pull_apart(cut(view.pixels, patch)[:rows, :columns]), cmap="gray", vmin=0, vmax=1)
    axis.set_axis_off()
    count = f"{patch.grid[0]} × {patch.grid[1]} = {plural(patch.grid[0] * patch.grid[1], 'patch')}"
    cropped = "" if (rows, columns) == patch.grid else f" (the first {rows} × {columns} are shown)"
    how = "cut of the stem's feature map, and" if patch.stem else "each"
    axis.set_title(f"{count}{cropped},\n{how} projected to one token by one shared linear map", fontsize=9)


def pull_apart(pieces: Array) -> Array:
    """Join patches ``(rows, columns, ph, pw)``, with colours, to one picture with white gaps of a sixth of a patch."""
    rows, columns, ph, pw = pieces.shape[:4]
    # Small patches are magnified, so that the gap stays narrower than a patch.
    times = max(1, -(-6 // min(ph, pw)))
    pieces = pieces.repeat(times, axis=2).repeat(times, axis=3)
    gap = times * min(ph, pw) // 6
    inside = ((0, 0), (0, 0), (gap, gap), (gap, gap), *((0, 0) for _ in pieces.shape[4:]))
    framed = np.pad(pieces, inside, constant_values=1.0)
    height, width = framed.shape[2:4]
    picture: Array = framed.swapaxes(1, 2).reshape(rows * height, columns * width, *pieces.shape[4:])
    return picture


def _draw_row(axis: Any, patch: PatchGrid, view: View) -> None:
    count = patch.grid[0] * patch.grid[1]
    flat = cut(view.pixels, patch).reshape(count, *patch.patch, *view.pixels.shape[2:])
    numbers = list(range(count))
    if count > _FIRST_IN_ROW + _LAST_IN_ROW + 1:
        numbers = [*numbers[:_FIRST_IN_ROW], -1, *numbers[-_LAST_IN_ROW:]]
    left = 0.0
    names = patch.prefix
    if len(names) > _MOST_PREFIX:
        names = (*names[: _MOST_PREFIX - 1], "", names[-1])
    for name in names:
        if not name:
            axis.text(left + 0.35, 0.5, "…", ha="center", va="center", fontsize=14)
            left += 0.8
            continue
        axis.add_patch(Rectangle((left, 0), 1, 1, facecolor=PALETTE[1], edgecolor=INK))
        write(axis, 0.5, left + 0.5, name.replace(" ", "\n"), 8 if len(name) <= 5 else 7)
        axis.text(left + 0.5, 1.25, "learned", ha="center", va="center", fontsize=7)
        left += 1.3
    for number in numbers:
        if number < 0:
            axis.text(left + 0.35, 0.5, "…", ha="center", va="center", fontsize=14)
            left += 0.8
            continue
        _piece(axis, flat[number], (left, left + 1, 1, 0))
        axis.text(left + 0.5, 1.25, f"patch {number + 1}", ha="center", va="center", fontsize=7)
        left += 1.15
    axis.set(xlim=(-0.2, left), ylim=(1.6, -0.2))
    axis.set_aspect("equal")
    axis.set_axis_off()
    positions = f"; {patch.positions}" if patch.positions else ""
    axis.set_title(f"{plural(count + len(patch.prefix), 'token')}, read line by line{positions}", fontsize=9)


def _piece(axis: Any, pixels: Array, extent: tuple[float, float, float, float]) -> None:
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    left, right, bottom, top = extent
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#888888", linewidth=0.4))


def cut(pixels: Array, patch: PatchGrid) -> Array:
    """Cut pixels into patches: shape ``(rows, columns, ph, pw)`` and colours; zeros where the layer pads with zeros."""
    top, left = patch.padding
    padded = np.zeros((*patch.extent, *pixels.shape[2:]), dtype=np.float64)
    shown = pixels[: padded.shape[0] - top, : padded.shape[1] - left]
    padded[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
    pieces = np.lib.stride_tricks.sliding_window_view(padded, patch.patch, axis=(0, 1))
    pieces = pieces[:: patch.stride[0], :: patch.stride[1]]
    # Windows are the last axes; colours follow them.
    return pieces if pixels.ndim == 2 else np.moveaxis(pieces, 2, -1)


def draw_attention(layers: Sequence[QueryAttention], view: View, note: str) -> Figure:
    """Draw attention: a row for each of a few layers or queries, the mean over heads and single heads.

    Args:
        layers: One token in the layers of a model, in order; or several tokens in one layer.
        view: The image.
        note: Note below the figure: the model and its weights.
    """
    chosen = choose_layers(layers)
    heads = min(_MOST_HEADS, max(len(layer.maps) for layer in chosen))
    figure, axes = panels(len(chosen), heads + 1 if heads > 1 else 1, 2.9, ratio_of(view.size))
    for row, layer in enumerate(chosen):
        maps = layer.maps
        shown = [("mean over heads" if len(maps) > 1 else "one head", maps.mean(axis=0))]
        shown += [(f"head {i + 1} of {len(maps)}", maps[i]) for i in range(min(heads, len(maps))) if len(maps) > 1]
        top = 100 * max(float(values.max()) for _, values in shown)
        scale = Normalize(0, top)
        for column, (title, values) in enumerate(shown):
            axis = axes[row, column]
            show_image(axis, view, layer.stride, values.shape, alpha=0.45)
            _overlay(axis, 100 * values, scale)
            if layer.query is not None:
                y, x = divmod(layer.query, values.shape[1])
                star(axis, y + 0.5, x + 0.5)
            label(axis, f"{_describe(layer)}, {title}" if column == 0 else f"\n{title}")
            if column:
                axis.set_ylabel("")
        for column in range(len(shown), axes.shape[1]):
            blank(axes[row, column])
        bar = figure.colorbar(ScalarMappable(scale, "inferno"), ax=axes[row, :], shrink=0.85, aspect=18)
        bar.set_label("% of the attention", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return head(figure, f"What {_query(chosen)} to", note)


def _query(layers: Sequence[QueryAttention]) -> str:
    if len({layer.token for layer in layers}) > 1:
        return "class and register tokens attend"
    if layers[0].query is not None:
        return "the starred token attends"
    return f"the {layers[0].token} token attends"


def choose_layers(layers: Sequence[QueryAttention]) -> list[QueryAttention]:
    """Choose a few layers: one of each kind, grid and shift; layers that are all alike, evenly over the depth."""
    first = {(layer.kind, layer.maps.shape[1:], layer.shift): layer for layer in reversed(layers)}
    chosen = [layer for layer in layers if any(layer is other for other in first.values())][:_MOST_LAYERS]
    if len(chosen) == 1:
        chosen = [layers[i] for i in spread(len(layers), _MOST_LAYERS)]
    return chosen


def _describe(layer: QueryAttention) -> str:
    if layer.window is None:
        return f"{where(layer.name)}\n{layer.token or 'all tokens'}"
    shifted = "shifted " if layer.kind == "window" and layer.shift != (0, 0) else ""
    return f"{where(layer.name)}\n{shifted}{layer.kind} {layer.window[0]} × {layer.window[1]}"


def _overlay(axis: Any, values: Array, scale: Normalize) -> None:
    """Overlay a map on the image; pixels without attention stay clear."""
    shown = np.ma.masked_equal(values, 0.0)
    axis.imshow(
        shown, cmap="inferno", norm=scale, extent=(0, values.shape[1], values.shape[0], 0), alpha=0.8,
        interpolation="nearest", zorder=1.2, aspect=axis.get_aspect(),
    )  # fmt: skip


def draw_learned(maps: Array, spread: Array | None, view: View, stride: tuple[int, int], note: str) -> Figure:
    """Draw the selection map of each learned token, and the positions that TokenFuser distributes it to.

    Args:
        maps: Selection of each learned token, each map sums to one, shape ``(S, h, w)``.
        spread: Share of each learned token at each position after TokenFuser, same shape; None without TokenFuser.
        view: The image.
        stride: Pixels from one token to the next.
        note: Note below the figure: the model and its weights.
    """
    maps = maps * maps[0].size
    sections = [(maps, "selects", "weight, multiples of even spread")]
    if spread is not None:
        sections.append((spread, "is taken up", "how much a position takes up"))
    shown = min(len(maps), _MOST_MAPS)
    columns = min(shown, 4) + 1
    rows = -(-shown // 4)
    figure, axes = panels(rows * len(sections), columns, 2.2, 0.85 * ratio_of(view.size))
    for number, (values, verb, unit) in enumerate(sections):
        block = axes[number * rows : (number + 1) * rows]
        scale = Normalize(0, float(np.quantile(values, 0.995)) or 1.0)
        for axis in block.flat:
            blank(axis)
        _plain(block[0, 0], view, stride, values.shape[1:], view.title)
        for token in range(shown):
            axis = block[token // 4, token % 4 + 1]
            _plain(axis, view, stride, values.shape[1:], f"token {token + 1} {verb}", 0.6)
            _overlay(axis, values[token], scale)
        bar = figure.colorbar(ScalarMappable(scale, "inferno"), ax=block, shrink=0.85, aspect=18)
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    h, w = maps.shape[1:]
    more = f", the first {shown} shown" if shown < len(maps) else ""
    return head(figure, f"TokenLearner: {h} × {w} tokens become {len(maps)}{more}", note)


def _plain(
    axis: Any, view: View, stride: tuple[int, int], grid: tuple[int, int], title: str, alpha: float = 1.0
) -> None:
    axis.set_axis_on()
    show_image(axis, view, stride, grid, alpha=alpha)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
