"""The contact sheet of a model's most confident mistakes."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vitrail.data.no_data import fill_no_data
from vitrail.data.sources.base import ImageSource
from vitrail.errors import DataError
from vitrail.figures.display import as_pictures
from vitrail.figures.fonts import save_figure
from vitrail.figures.picture import shorten
from vitrail.files import replacing
from vitrail.outputs import FIGURE_METADATA

_COLUMNS = 6
_MOST_CHARACTERS = 20


def draw_mistakes(source: ImageSource, mistakes: pd.DataFrame, out: Path, most: int = 24) -> int:
    """Draw the images of the first mistakes, as the model sees them.

    Args:
        source: The images that were evaluated.
        mistakes: A table with the columns ``path``, ``true``, ``predicted`` and ``confidence``, by falling confidence.
        out: PNG file to write; removed where there is no mistake.
        most: Images at most.

    Returns:
        How many were drawn.

    Raises:
        DataError: An image is not there any more.
    """
    if mistakes.empty:
        out.unlink(missing_ok=True)
        return 0
    figure = mistakes_figure(source, mistakes, most)
    buffer = io.BytesIO()
    save_figure(figure, buffer, format="png", dpi=120, metadata=FIGURE_METADATA)
    with replacing(out) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return min(len(mistakes), most)


def mistakes_figure(source: ImageSource, mistakes: pd.DataFrame, most: int = 24) -> Figure:
    """The images of the first mistakes, at least one, with what was said of them.

    Three bands are shown in their colours, one in gray, others as the mean of all bands.

    Args:
        source: The images that were evaluated.
        mistakes: As :func:`draw_mistakes` takes it.
        most: Images at most.

    Raises:
        DataError: An image is not there any more.
    """
    rows = mistakes.head(most)
    places = {key: i for i, key in enumerate(source.keys)}
    gone = [path for path in rows["path"] if path not in places]
    if gone:
        raise DataError(f"{gone[0]} was evaluated and is not among the images any more")
    columns = min(_COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(1.7 * columns, 2.2 * lines + 0.4), layout="constrained")
    figure.suptitle(f"The {len(rows)} most confident mistakes", fontsize=9)
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, row in zip(axes.flat, rows.itertuples(index=False), strict=False):
        picture = as_pictures(fill_no_data(source.load([places[str(row.path)]])["image"]), source.bands["image"])[0]
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        predicted, true = (shorten(str(name), _MOST_CHARACTERS) for name in (row.predicted, row.true))
        axis.set_title(f"{predicted} {row.confidence:.0%}\ntrue: {true}", fontsize=7, loc="left")
        axis.text(
            0,
            -0.04,
            _end(str(row.path)),
            transform=axis.transAxes,
            fontsize=5,
            va="top",
            color="dimgray",
            clip_on=False,
        )
    return figure


def _end(path: str) -> str:
    """The end of a path is what tells files apart."""
    return path if len(path) <= 34 else "…" + path[-33:]
