"""One input with its prediction and explanations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vitrail.errors import plural
from vitrail.evaluate.parts import PointLabels
from vitrail.explain.methods.maps import Explanation
from vitrail.figures.film_strip import flat_maps
from vitrail.files import replacing

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Explained:
    """One image with its prediction and explanations.

    Attributes:
        key: Key of the image.
        index: Index into the data.
        pictures: Stream -> picture, shape ``(H, W)`` or ``(H, W, 3)``, in 0..1; the points ``(N, 3)`` of a cloud.
        true: True class; empty where it is unknown.
        predicted: The most probable class; empty for a model without classes.
        probability: Probability of the predicted class.
        explanations: Method -> explanation of the batch of this image.
        row: Index of the image in that batch.
        labels: Parts of the points of a cloud, for a model that labels points.
        frames: Frames of a clip, shape ``(T, H, W)`` or ``(T, H, W, 3)``, in 0..1; None for other inputs.
    """

    key: str
    index: int
    pictures: dict[str, Array]
    true: str
    predicted: str
    probability: float
    explanations: dict[str, Explanation] = field(repr=False)
    row: int = 0
    frames: Array | None = field(default=None, repr=False)
    labels: PointLabels | None = field(default=None, repr=False)

    def values(self, method: str) -> Array:
        """Return a method's map of the first stream: ``(H, W)``, of a clip ``(T, H, W)``, of a cloud ``(N,)``."""
        return as_array(self.explanations[method].map[self.row])

    def maps(self, method: str) -> dict[str, Array]:
        """Return a method's maps in the layout of the pictures: stream -> ``(H, W)``."""
        found = self.explanations[method]
        return {name: as_array(flat_maps(stream.map[self.row][None]))[0] for name, stream in found.items()}

    def target(self, method: str, classes: Sequence[str]) -> str | None:
        """Name the class that a method explains; a part with the number of points that are predicted as it."""
        target = self.explanations[method].target
        if target is None:
            return None
        name = classes[int(target[self.row])]
        return name if self.labels is None else f"{name} ({plural(self.labels.counts().get(name, 0), 'point')})"

    def prediction(self) -> str:
        """State the predicted class with its probability, and the true class; of a cloud's points their parts."""
        if self.labels is not None:
            return self.labels.describe()
        text = f"{self.predicted} {self.probability:.0%}" if self.predicted else "no classes"
        if not self.true or not self.predicted:
            return f"{text} (true: {self.true})" if self.true else text
        return text + (" (correct)" if self.true == self.predicted else f"\n(true: {self.true})")

    def caption(self) -> str:
        """State the file name and :meth:`prediction` in one line."""
        return f"{Path(self.key).name}: {self.prediction()}".replace("\n", " ")

    def entry(self, panel: str) -> dict[str, Any]:
        """Begin the entry in explanations.json; its methods are added later.

        Args:
            panel: Path of the panel from the folder.
        """
        entry: dict[str, Any] = {"path": self.key, "true": self.true or None, "panel": panel, "methods": {}}
        if self.labels is not None:
            return entry | {"points": self.labels.counts(), "accuracy": self.labels.accuracy()}
        if self.predicted:
            entry |= {"predicted": self.predicted, "probability": round(self.probability, 6)}
        return entry


def as_array(values: Tensor) -> Array:
    """Return a tensor of any device and precision as a float32 array."""
    array: Array = values.detach().float().cpu().numpy()
    return array


def write_values(file: Path, values: Array) -> None:
    """Write the values of an explanation as float32 (.npy), whole or not at all."""
    with replacing(file) as temporary, temporary.open("wb") as opened:
        np.save(opened, values.astype(np.float32))
