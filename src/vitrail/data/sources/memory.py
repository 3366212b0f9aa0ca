"""Cache the images of a source in memory, decoded once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitrail.data.sources.base import ImageSource, WrappedSource


class InMemory(WrappedSource):
    """Source that caches the stored images of another one at their first use.

    Args:
        source: The other.
    """

    def __init__(self, source: ImageSource) -> None:
        super().__init__(source)
        self.in_memory = True
        self._known = np.zeros(len(source), dtype=bool)
        self._streams: dict[str, Tensor] = {}

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Read images at the model's size; see :meth:`ImageSource.read`."""
        wanted = np.asarray(indices, dtype=np.int64)
        new = np.unique(wanted[~self._known[wanted]])
        for part in np.array_split(new, max(1, len(new) // 256)):
            if len(part):
                self._keep(part, self.inner.read(part.tolist()))
        rows = torch.from_numpy(wanted)
        return {name: x[rows] for name, x in self._streams.items()}

    def read_clips(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Read inputs from memory where they have one view alone; see :meth:`ImageSource.read_clips`."""
        return self.inner.read_clips(indices, seeds) if self.draws or self.views > 1 else self.read(indices)

    def _keep(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]], streams: dict[str, Tensor]) -> None:
        for name, x in streams.items():
            kept = self._streams.get(name)
            if kept is None:
                self._streams[name] = kept = x.new_empty(len(self), *x.shape[1:])
            elif kept.dtype != x.dtype:
                # Files of 8 bits and of more in one set: all become floats.
                kept = self._streams[name] = kept.float().div_(255) if kept.dtype == torch.uint8 else kept
                x = x.float().div_(255) if x.dtype == torch.uint8 else x
            kept[torch.from_numpy(rows)] = x
        self._known[rows] = True
