"""An interactive page of point clouds."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrail.figures.clouds import interactive_clouds
from vitrail.files import write_text

Array = npt.NDArray[Any]
_PAGE = "clouds.html"
# Clouds on the page, which holds their points.
MOST_CLOUDS = 12
# Names of the parts of points, beside other values.
PREDICTED, TRUE = "predicted parts", "true parts"


def write_cloud_page(
    folder: Path, shown: Sequence[tuple[str, Array, Mapping[str, Array]]], names: Sequence[str] = ()
) -> None:
    """Write an interactive page of some clouds, which works offline.

    Args:
        folder: The folder.
        shown: Caption, points ``(N, 3)`` and values of the points of each, as
            :func:`~vitrail.figures.clouds.interactive_clouds` takes them.
        names: Names of the parts.
    """
    parts = []
    for number, (caption, cloud, values) in enumerate(shown):
        real: Array = np.asarray(np.isfinite(cloud).all(axis=1))
        colors = {kind: own[real] for kind, own in values.items()}
        plot = interactive_clouds(cloud[real], colors, names).to_html(full_html=False, include_plotlyjs=number == 0)
        parts.append(f"<h2>{html.escape(caption)}</h2>\n{plot}")
    text = "\n".join(parts)
    write_text(
        folder / _PAGE,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Point clouds</title>\n{text}\n</html>\n',
    )
