"""Label the points of cloud files with a trained run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitrail.data.dataset import ImageData
from vitrail.data.points.source import PointSource
from vitrail.evaluate.parts import PointLabels
from vitrail.figures.cloud_page import MOST_CLOUDS, PREDICTED, write_cloud_page
from vitrail.figures.clouds import turntable_figure
from vitrail.figures.write import write_figure
from vitrail.runs.trained import Classifier


@dataclass(frozen=True)
class LabelledCloud:
    """Parts of the points that a model sees of a cloud.

    Attributes:
        key: Key of the cloud.
        points: Coordinates as in the file, shape ``(N, 3)``.
        upright: The same points centred, scaled and with z up, shape ``(N, 3)``.
        labels: Their predicted parts.
        probability: Probability of each point's part, shape ``(N,)``.
    """

    key: str
    points: npt.NDArray[Any]
    upright: npt.NDArray[Any]
    labels: PointLabels
    probability: npt.NDArray[np.float32]

    @property
    def caption(self) -> str:
        """Name of the file, and the most frequent parts."""
        return f"{Path(self.key).name}: {self.labels.describe()}"


def label_clouds(classifier: Classifier, clouds: ImageData, batch_size: int = 32) -> Iterator[LabelledCloud]:
    """Label the points of clouds.

    Args:
        classifier: A run or an export that labels points.
        clouds: Clouds from :func:`vitrail.deploy.open_files`.
        batch_size: Clouds of a forward pass.
    """
    source, names = clouds.source, classifier.card.classes
    assert isinstance(source, PointSource)
    for batch in clouds.batches(clouds.indices("all"), batch_size):
        found = classifier.classify(batch)[0].softmax(dim=-1).max(dim=-1)
        probability, parts = found.values.cpu().numpy(), found.indices.cpu().numpy()
        for row, index in enumerate(batch["index"].tolist()):
            points = source.in_file(index)
            real: npt.NDArray[np.bool_] = np.isfinite(points[:, 0])
            yield LabelledCloud(
                key=source.keys[index],
                points=points[real],
                upright=batch["points"][row].numpy()[real],
                labels=PointLabels(parts[row][real], None, names),
                probability=probability[row][real],
            )


def part_table(labelled: Sequence[LabelledCloud]) -> pd.DataFrame:
    """Build the table of labelled clouds.

    Returns:
        One row per point: ``path``, coordinates ``x``, ``y`` and ``z`` as in the file, ``class`` and ``probability``.
    """
    tables = []
    for cloud in labelled:
        table = pd.DataFrame(cloud.points, columns=["x", "y", "z"])
        table.insert(0, "path", cloud.key)
        table["class"] = np.array(cloud.labels.names)[cloud.labels.predicted]
        table["probability"] = cloud.probability.round(6)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def write_part_pictures(labelled: Sequence[LabelledCloud], files: Sequence[Path], folder: Path) -> None:
    """Write clouds with their points coloured by part.

    Args:
        labelled: The clouds.
        files: Picture of each, seen from six directions.
        folder: Folder of clouds.html, an interactive page of the first clouds.
    """
    for cloud, file in zip(labelled, files, strict=True):
        names, parts = cloud.labels.names, cloud.labels.predicted
        write_figure(turntable_figure([cloud.upright], [parts], [cloud.caption], names=names), file, 130, tight=True)
    shown = [(one.caption, one.upright, {PREDICTED: one.labels.predicted}) for one in labelled[:MOST_CLOUDS]]
    write_cloud_page(folder, shown, labelled[0].labels.names)
