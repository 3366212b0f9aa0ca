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
from vitrail.explain.methods.maps import Explanation
from vitrail.figures.film_strip import flat_maps
from vitrail.files import replacing

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """Parts of the points of one cloud.

    Attributes:
        predicted: Predicted part of each point, shape ``(N,)``; -1 where there is no point.
        true: Its true part, -1 without a label; None where the cloud has none.
        names: Names of the parts.
    """

    predicted: Ints
    true: Ints | None
    names: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Count the points that are predicted as each part, the most frequent part first."""
        counts = np.bincount(self.predicted[self.predicted >= 0], minlength=len(self.names))
        return {self.names[i]: int(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i]}

    def accuracy(self) -> float | None:
        """Compute the share of labelled points whose part is correct; None without labels."""
        if self.true is None or not (known := self.true >= 0).any():
            return None
        return float((self.true == self.predicted)[known].mean())

    def describe(self) -> str:
        """State the most frequent parts, and how many labels are correct."""
        whole = max(1, int((self.predicted >= 0).sum()))
        text = ", ".join(f"{name} {number / whole:.0%}" for name, number in list(self.counts().items())[:3])
        accuracy = self.accuracy()
        return text if accuracy is None else f"{text}; {accuracy:.0%} of labels correct"


@dataclass(frozen=True)
class Explained:
    """One image with its prediction and explanations.

    Attributes:
        key: Key of the image.
        index: Index into the data.
        pictures: Stream -> picture, shape ``(H, W)`` or ``(H, W, 3)``, in 0..1; the points ``(N, 3)`` of a cloud.
        true: True class; empty where it is unknown.
        predicted: The most probable class; empty for a model without classes.
        probability: Of the predicted class.
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
    labels: Labels | None = field(default=None, repr=False)

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
