"""A contact sheet: images side by side, as a model sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from vitrail.figures.display import as_pictures
from vitrail.figures.fonts import save_figure
from vitrail.figures.picture import shorten
from vitrail.outputs import FIGURE_METADATA

if TYPE_CHECKING:
    from vitrail.train.preview import Views

_MOST_CHARACTERS = 24


def draw_contact_sheet(views: Views, out: Path) -> None:
    """Draw a row for each stream of each image: the image as it is, then as training changes it.

    Three bands are shown in their colours, one in gray, others as the mean of all bands, on the scale of the unchanged
    image.

    Args:
        views: The images.
        out: PNG file to write.
    """
    names = list(views.bands)
    columns = len(views.rows[0].labels)
    count = len(views.rows) * len(names)
    height, width = next(iter(views.rows[0].streams.values())).shape[2:]
    lines = max(label.count("\n") + 1 for row in views.rows for label in row.labels)
    cell = 1.4 * height / width if width >= height else 1.4
    size = (1.5 * columns + 0.6, (cell + 0.12) * count + 0.16 * lines * len(views.rows) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(count, columns, squeeze=False)
    for i, row in enumerate(views.rows):
        for j, name in enumerate(names):
            line = axes[i * len(names) + j]
            pictures = as_pictures(row.streams[name], views.bands[name], alike=True)
            for k, axis in enumerate(line):
                axis.imshow(pictures[k], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                if j == 0:
                    told = [shorten(part, _MOST_CHARACTERS) for part in row.labels[k].split("\n")]
                    axis.set_title("\n".join(told), fontsize=7)
            line[0].set_ylabel(_stream_title(name, views.bands[name]), fontsize=7)
    for spine in (s for line in axes for s in line[0].spines.values()):
        spine.set(linewidth=2)
    axes[0, 0].annotate("as it is", (0, 1), xytext=(0, 10 + 9 * lines), xycoords="axes fraction",
                        textcoords="offset points", fontsize=8, fontweight="bold")  # fmt: skip
    if columns > 1:
        axes[0, 1].annotate("as training changes it", (0, 1), xytext=(0, 10 + 9 * lines), xycoords="axes fraction",
                            textcoords="offset points", fontsize=8, fontweight="bold")  # fmt: skip
    save_figure(figure, out, format="png", dpi=110, metadata=FIGURE_METADATA)


def _stream_title(name: str, bands: tuple[str, ...]) -> str:
    if len(bands) in (1, 3):
        return f"{name}\n{shorten(', '.join(bands), _MOST_CHARACTERS)}"
    if {"red", "green", "blue"} <= set(bands):
        return f"{name}\n(red, green, blue of {len(bands)} bands)"
    return f"{name}\n(mean of {len(bands)} bands)"
