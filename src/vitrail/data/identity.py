"""Recognition of images by content, independent of path and name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from vitrail.data.sources.base import ImageSource

# The split of images that a run has not seen, where others of the same data were.
NEW = "new"
# Of copies of one image, the first of these splits counts where a copy is of none in particular.
_MOST_SEEN = ("train", "unlabelled", "val", "test", "")


@dataclass(frozen=True)
class KnownImages:
    """Images of a run.

    Attributes:
        digests: Hash of the content of each; see :meth:`ImageSource.digest`.
        keys: Name of each.
        splits: The split of each, "" where it was in none.
        labels: The label of each, as :meth:`ImageSource.label` gives it; None where they were not recorded.
    """

    digests: tuple[bytes, ...]
    keys: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def recognise(self, source: ImageSource) -> Recognition:
        """Find the images of the run among others.

        Copies of one image are told apart by their keys; without those, each takes the next of the known copies.

        Args:
            source: Images to search.
        """
        rows_of: dict[bytes, list[int]] = {}
        for row in sorted(range(len(self)), key=lambda row: _MOST_SEEN.index(self.splits[row])):
            rows_of.setdefault(self.digests[row], []).append(row)
        exact = {(digest, key): row for row, (digest, key) in enumerate(zip(self.digests, self.keys, strict=True))}
        digests = source.digests()
        found = np.full(len(source), -1, dtype=np.int64)
        taken: set[int] = set()
        for index, (digest, key) in enumerate(zip(digests, source.keys, strict=True)):
            row = exact.get((digest, key), -1)
            if row >= 0:
                found[index] = row
                taken.add(row)
        for index in np.flatnonzero(found < 0).tolist():
            rows = rows_of.get(digests[index])
            if rows is not None:
                found[index] = next((row for row in rows if row not in taken), rows[0])
                taken.add(int(found[index]))
        return Recognition(self, found, tuple(source.keys))


@dataclass(frozen=True)
class Recognition:
    """Images of a source that belong to a run.

    Attributes:
        known: Images of the run.
        rows: Index of each image among the known, -1 for new ones, shape ``(N,)``.
        keys: Present names of the images.
    """

    known: KnownImages
    rows: npt.NDArray[np.int64]
    keys: tuple[str, ...]

    @property
    def num_known(self) -> int:
        """Number of known images."""
        return int((self.rows >= 0).sum())

    @property
    def complete(self) -> bool:
        """Whether all images are known."""
        return bool((self.rows >= 0).all())

    @property
    def num_missing(self) -> int:
        """Number of images of the run that are not in the source."""
        return len(self.known) - len(set(self.rows[self.rows >= 0].tolist()))

    def splits(self) -> list[str]:
        """Return the recorded split of each image, :data:`NEW` for unknown images."""
        return [self.known.splits[row] if row >= 0 else NEW for row in self.rows.tolist()]

    def counts(self, indices: Sequence[int]) -> Counter[str]:
        """Count the given images by recorded split, new ones included."""
        splits = self.splits()
        return Counter(splits[i] for i in indices)

    def has_all_of(self, split: str) -> bool:
        """Return whether the source has all images of a split of the run."""
        wanted = {row for row, name in enumerate(self.known.splits) if name == split}
        return wanted <= set(self.rows.tolist())

    def count_namesakes(self) -> int:
        """Count new images with the name of a known one, suffix apart: edited copies, or coincidence."""
        names = {_without_suffix(key) for key in self.known.keys}
        rows = self.rows.tolist()
        return sum(_without_suffix(key) in names for key, row in zip(self.keys, rows, strict=True) if row < 0)

    def relabelled(self, source: ImageSource) -> list[int]:
        """List the known images whose label differs from the recorded one.

        Args:
            source: The images, of the run's classes.
        """
        if self.known.labels is None or not source.classes:
            return []
        labels: dict[bytes, set[str]] = {}  # copies of one image may have several
        for digest, label in zip(self.known.digests, self.known.labels, strict=True):
            labels.setdefault(digest, set()).add(label)
        known = enumerate(self.rows.tolist())
        return [i for i, row in known if row >= 0 and source.label(i) not in labels[self.known.digests[row]]]

    def sort_by_run(self, indices: Sequence[int]) -> list[int]:
        """Sort images into the order of the run, new ones last."""
        last = len(self.known)
        rows = self.rows.tolist()
        return sorted(indices, key=lambda i: (rows[i] if rows[i] >= 0 else last, i))


def _without_suffix(key: str) -> str:
    return PurePosixPath(key).with_suffix("").as_posix() if PurePosixPath(key).name else key
