"""Feature spaces of runs side by side: figures, tables, and a page that shows the image of a point."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd

from vitrail.analyze.features import LAYOUTS, Space, separation
from vitrail.errors import ConfigError, plural
from vitrail.figures.clouds import show_inputs
from vitrail.figures.display import jpeg_uri
from vitrail.figures.feature_space import feature_space, interactive_feature_space
from vitrail.figures.write import write_both
from vitrail.files import write_text
from vitrail.report.rendering import render

# Images in memory at a time; longer side of a thumbnail in pixels.
_BATCH, _SIDE = 64, 72


def write_features(spaces: Sequence[Space], layouts: Sequence[str], out: Path) -> pd.DataFrame:
    """Write figures, tables and a page of feature spaces side by side.

    ``LAYOUT.png`` and ``.svg``; ``features.csv`` (class separation), ``coordinates.csv`` (every point);
    ``features.html``, which shows the image of a point and needs no network.

    Args:
        spaces: One for each run.
        layouts: Names of :data:`vitrail.analyze.features.LAYOUTS`.
        out: The folder.

    Returns:
        The table of features.csv.

    Raises:
        ConfigError: Runs of different classes, or of the same name.
        RunError: A file that cannot be written.
    """
    classes = spaces[0].data.source.classes
    labels = [space.label for space in spaces]
    for space in spaces[1:]:
        if space.data.source.classes != classes:
            raise ConfigError(
                f"{spaces[0].label} has the classes {', '.join(classes)} and {space.label} has "
                f"{', '.join(space.data.source.classes)}: a colour must mean one thing; draw them one by one"
            )
    if len(set(labels)) != len(labels):
        raise ConfigError(f"runs side by side need different folder names, got {', '.join(labels)}")
    rows, titles = [], []
    for space in spaces:
        silhouette, accuracy = separation(space.features, space.targets)
        rows.append(
            {
                "run": space.label, "layer": space.layer, "split": space.split, "images": len(space.indices),
                "dimensions": space.features.shape[1], "silhouette": silhouette, "knn_accuracy": accuracy,
            }
        )  # fmt: skip
        text = "a class has one image" if accuracy is None else f"silhouette {silhouette:.2f}, kNN {accuracy:.1%}"
        titles.append(f"{space.label}\n{text}")
    table = pd.DataFrame(rows)
    points = {name: [LAYOUTS[name][1](space.features) for space in spaces] for name in layouts}
    for name, placed in points.items():
        shown = {title: (xy, s.targets) for title, s, xy in zip(titles, spaces, placed, strict=True)}
        write_both(feature_space(shown, classes), out, name)
    write_text(out / "features.csv", table.to_csv(index=False))
    write_text(out / "coordinates.csv", _coordinates(spaces, points).to_csv(index=False))
    write_text(out / "features.html", _page(spaces, points, titles))
    return table


def _coordinates(spaces: Sequence[Space], points: Mapping[str, Sequence[npt.NDArray[Any]]]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {
                "run": space.label, "layer": space.layer, "split": space.split, "layout": name,
                "index": space.indices, "path": space.keys,
                "class": [space.data.source.classes[i] for i in space.targets],
                "x": xy[:, 0], "y": xy[:, 1],
            }
        )
        for name, placed in points.items() for space, xy in zip(spaces, placed, strict=True)
    ]  # fmt: skip
    return pd.concat(parts)


def _page(spaces: Sequence[Space], points: Mapping[str, Sequence[npt.NDArray[Any]]], titles: Sequence[str]) -> str:
    """Render the interactive page, self-contained."""
    from plotly.offline import get_plotlyjs

    thumbnails: list[str] = []
    numbers: list[range] = []  # of each space, the numbers of its thumbnails
    images = []
    classes = spaces[0].data.source.classes
    for space in spaces:
        numbers.append(range(len(thumbnails), len(thumbnails) + len(space.indices)))
        thumbnails += _thumbnails(space)
        images += [
            {"path": key, "label": classes[int(target)], "run": space.label}
            for key, target in zip(space.keys, space.targets, strict=True)
        ]
    panels = [
        [
            (f"{LAYOUTS[name][0]}: {title}", xy, space.targets, own)
            for title, xy, space, own in zip(titles, placed, spaces, numbers, strict=True)
        ]
        for name, placed in points.items()
    ]
    space = spaces[0]
    return render(
        "features.html.j2",
        "Feature space of " + ", ".join(s.label for s in spaces),
        brief=(),
        words={},
        told=f"What the layer {space.layer!r} makes of {plural(len(space.indices), f'{space.split} image')}.",
        library=get_plotlyjs(),
        figure=_for_script(interactive_feature_space(panels, classes).to_json()),
        images=_for_script(json.dumps({"thumbnails": thumbnails, "told": images})),
    )


def _for_script(text: str) -> str:
    """Escape JSON for a script element, whatever names it holds."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _thumbnails(space: Space) -> list[str]:
    result = []
    for start in range(0, len(space.indices), _BATCH):
        inputs = space.data.load(space.indices[start : start + _BATCH])
        for picture in show_inputs(inputs, space.data.source.bands):
            height, width = picture.shape[:2]
            scale = _SIDE / max(height, width)
            result.append(jpeg_uri(picture, (max(1, round(width * scale)), max(1, round(height * scale))), quality=80))
    return result
