"""Pictures of point clouds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from vitrail.figures.display import as_pictures

Array = npt.NDArray[Any]
_SIDE = 160
_ELEVATION = 20.0
_AZIMUTH = 35.0
# Points without a label: their entry in the legend, and their colour, which is none of a part's.
_NO_LABEL, _GRAY = "no label", "#dcdcdc"


def cloud_picture(points: Array, values: Array | None = None, *, azimuth: float = _AZIMUTH, side: int = _SIDE) -> Array:
    """Draw a cloud in parallel projection, its z axis up; near points cover far ones, which are paler.

    Args:
        points: Shape ``(N, 3)``; NaN where there is no point.
        values: Number of each point in 0..1 for its colour, shape ``(N,)``, or the colour, shape ``(N, 3)``; blue by
            depth when not given.
        azimuth: Angle about the z axis in degrees.
        side: Height and width in pixels.

    Returns:
        Shape ``(side, side, 3)``, in 0..1, on white.
    """
    picture = np.ones((side, side, 3))
    real = np.isfinite(points).all(axis=1)
    if not real.any():
        return picture
    points = points[real] - points[real].mean(axis=0)
    points = points / max(np.linalg.norm(points, axis=1).max(), 1e-9)
    turn, tilt = np.radians(azimuth), np.radians(_ELEVATION)
    right = points @ [-np.sin(turn), np.cos(turn), 0.0]
    towards = points @ [np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.sin(tilt)]
    up = points @ [-np.sin(tilt) * np.cos(turn), -np.sin(tilt) * np.sin(turn), np.cos(tilt)]
    radius = max(1.0, side * 0.35 / np.sqrt(len(points)))
    near = (towards + 1) / 2
    if values is None:
        paint = np.outer(1 - near, [0.75, 0.8, 0.9]) + np.outer(near, [0.05, 0.25, 0.5])
    else:
        full = values[real] if values.ndim == 2 else colormaps["viridis"](np.clip(values[real], 0, 1))[:, :3]
        paint = full * (0.7 + 0.3 * near[:, None]) + 0.3 * (1 - near[:, None])
    center = (side - 1) / 2
    reach = 0.92 * center - radius
    rows, columns = center - up * reach, center + right * reach
    offsets = np.arange(-int(radius), int(radius) + 1)
    dy, dx = (part.ravel() for part in np.meshgrid(offsets, offsets, indexing="ij"))
    inside = dy**2 + dx**2 <= radius**2
    for i in np.argsort(towards):
        y = np.rint(rows[i]).astype(int) + dy[inside]
        x = np.rint(columns[i]).astype(int) + dx[inside]
        shown = (y >= 0) & (y < side) & (x >= 0) & (x < side)
        picture[y[shown], x[shown]] = paint[i]
    return picture


def point_ranks(values: Array, real: Array) -> Array:
    """Compute the share of a cloud's points with smaller values, 0 to 1; 0 where there is no point.

    Args:
        values: Shape ``(N,)``.
        real: True for real points, shape ``(N,)``.
    """
    result = np.zeros(len(values))
    own = values[real]
    result[real] = np.searchsorted(np.sort(own), own) / max(1, len(own) - 1)
    return result.clip(0, 1)


def turntable_figure(
    clouds: Sequence[Array],
    values: Sequence[Array] | None,
    titles: Sequence[str],
    views: int = 6,
    names: Sequence[str] = (),
) -> Figure:
    """Draw each cloud in a row, from directions that go around it.

    Args:
        clouds: Shape ``(N, 3)`` each.
        values: Values of each point, shape ``(N,)`` each: a number in 0..1, or as whole numbers a part (-1: no label);
            nothing for clouds coloured by depth.
        titles: Titles of the rows.
        views: Number of directions.
        names: Names of the parts.
    """
    colors = [part_colors(own, names) if own.dtype.kind == "i" else own for own in values or ()]
    present = [
        own[np.isfinite(cloud).all(axis=1)]
        for cloud, own in zip(clouds, values or (), strict=False)
        if own.dtype.kind == "i"
    ]
    figure = Figure(figsize=(1.4 * views, 1.6 * len(clouds)), layout="constrained")
    axes = figure.subplots(len(clouds), views, squeeze=False)
    for row, (cloud, title) in enumerate(zip(clouds, titles, strict=True)):
        for column in range(views):
            azimuth = _AZIMUTH + 360.0 * column / views
            axis = axes[row, column]
            picture = cloud_picture(cloud, colors[row] if colors else None, azimuth=azimuth)
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
        axes[row, 0].set_title(title, loc="left", fontsize=8)
    if present:
        add_part_legend(figure, np.concatenate(present), names)
    return figure


def part_colors(parts: Array, names: Sequence[str]) -> Array:
    """Choose the colours of parts.

    Args:
        parts: Shape ``(N,)``; -1 for unlabelled points.
        names: Names of all parts; more than 10 have 20 colours.

    Returns:
        Shape ``(N, 3)``, in 0..1.
    """
    map_name, number = ("tab10", 10) if len(names) <= 10 else ("tab20", 20)
    colors: Array = colormaps[map_name](parts % number)[:, :3]
    colors[parts < 0] = to_rgb(_GRAY)
    return colors


def _legend(parts: Array, names: Sequence[str]) -> dict[int, tuple[str, str]]:
    """Return name and colour of each part that occurs, points without a label last."""
    found = sorted(np.unique(parts).tolist(), key=lambda part: (part < 0, part))
    colors = part_colors(np.array(found, dtype=np.int64), names)
    return {
        part: (names[part] if part >= 0 else _NO_LABEL, to_hex(color))
        for part, color in zip(found, colors, strict=True)
    }


def add_part_legend(figure: Figure, parts: Array, names: Sequence[str]) -> None:
    """Name the colours of parts below a figure.

    Args:
        figure: The figure.
        parts: Parts of all points that it shows; -1 for unlabelled points.
        names: Names of all parts.
    """
    entries = _legend(parts, names).values()
    marks = [Line2D([], [], marker="o", linestyle="", color=color) for _, color in entries]
    figure.legend(marks, [name for name, _ in entries], loc="outside lower center", ncols=4, fontsize=7)


def parts_figure(
    clouds: Sequence[Array], parts: tuple[Sequence[Array], Sequence[Array]], names: Sequence[str], titles: Sequence[str]
) -> Figure:
    """Draw the true and the predicted parts of clouds, each pair in a row from two directions.

    Args:
        clouds: Shape ``(N, 3)`` each.
        parts: True and predicted part of each point, shape ``(N,)`` each; -1 for unlabelled points.
        names: Names of the parts.
        titles: Titles of the rows.
    """
    figure = Figure(figsize=(5.6, 1.5 * len(clouds) + 0.3 * (len(names) // 4 + 1)), layout="constrained")
    axes = figure.subplots(len(clouds), 4, squeeze=False)
    for row, (cloud, title) in enumerate(zip(clouds, titles, strict=True)):
        for column in range(4):
            what, turned = divmod(column, 2)
            colors = part_colors(parts[what][row], names)
            picture = cloud_picture(cloud, colors, azimuth=_AZIMUTH + 120.0 * turned)
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].set_axis_off()
        axes[row, 0].set_title(f"{title}, true", loc="left", fontsize=7)
        axes[row, 2].set_title("predicted", loc="left", fontsize=7)
    add_part_legend(figure, np.concatenate([*parts[0], *parts[1]]), names)
    return figure


def interactive_clouds(points: Array, values: Mapping[str, Array], names: Sequence[str] = ()) -> Any:
    """Draw a cloud that the reader can rotate, with a button for each kind of values; a plotly figure.

    Args:
        points: Shape ``(N, 3)``, all finite.
        values: Name -> values of the points, shape ``(N,)``: numbers in 0..1, or as whole numbers parts (-1: no
            label).
        names: Names of the parts.
    """
    import plotly.graph_objects as go

    traces: list[tuple[str, Any]] = []
    for name, own in values.items():
        if own.dtype.kind != "i":
            marker = {"color": own, "colorscale": "Viridis", "cmin": 0, "cmax": 1, "showscale": True}
            traces.append((name, _trace(go, points, name, marker)))
            continue
        for part, (shown, color) in _legend(own, names).items():
            traces.append((name, _trace(go, points[own == part], shown, {"color": color})))
    for kind, trace in traces:
        trace.visible = kind == next(iter(values))
    buttons = [
        {"label": name, "method": "update", "args": [{"visible": [kind == name for kind, _ in traces]}]}
        for name in values
    ]
    figure = go.Figure([trace for _, trace in traces])
    figure.update_layout(
        scene={"aspectmode": "data"}, height=500, margin={"l": 0, "r": 0, "t": 40, "b": 0}, legend={"y": 0.9},
        updatemenus=[{"buttons": buttons, "type": "buttons", "direction": "right", "x": 0, "y": 1.01,
                      "xanchor": "left", "yanchor": "bottom"}],
    )  # fmt: skip
    return figure


def _trace(go: Any, points: Array, name: str, marker: Mapping[str, Any]) -> Any:
    """Make a plotly trace of points; those of a colour scale need no entry in the legend."""
    x, y, z = points.T
    return go.Scatter3d(
        x=x, y=y, z=z, mode="markers", name=name, marker={"size": 3, **marker}, showlegend="colorscale" not in marker
    )


def show_inputs(streams: Mapping[str, Tensor], bands: Mapping[str, Sequence[str]]) -> Array:
    """Make a picture of each input: an image as its bands show it, frames of a clip, a cloud in projection.

    Args:
        streams: Inputs in 0..1, images ``(n, C, H, W)``, clips ``(n, C, T, H, W)`` or clouds ``(n, N, 3)``.
        bands: Names of the bands of each stream.

    Returns:
        Shape ``(n, H, W)`` or ``(n, H, W, 3)``, in 0..1.
    """
    if "points" in streams:
        return np.stack([cloud_picture(cloud) for cloud in streams["points"].cpu().numpy()])
    first = next(iter(bands))
    return as_pictures(streams[first], bands[first])
