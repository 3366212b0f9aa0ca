"""Split a batch over calls that run at once, with fewer threads each.

The threads of one call wait for each other in every layer; those of several calls wait less. OpenVINO computes batches
faster so (benchmarks/results/export_speed.md). ONNX Runtime computes small models more slowly so, and does not do it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrail.engines.base import Arrays

# Sizes of parts for which models are compiled: few, so that batches of all sizes share them.
_SIZES = (16, 4, 1)


def batch_size(inputs: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return the number of images of a batch; inputs of the entry that is not used are empty."""
    return max(map(len, inputs.values()))


def even_sizes(count: int, parts: int) -> list[int]:
    """Return sizes of parts of a batch that differ by one image at most."""
    return [count // parts + (part < count % parts) for part in range(parts)]


def few_sizes(count: int, most: int) -> list[int]:
    """Return sizes of parts of a batch, 16, 4 or 1 image each, the largest first.

    Args:
        count: Images of the batch.
        most: Most images of a part.
    """
    sizes: list[int] = []
    for size in _SIZES:
        if size <= max(most, 1):
            sizes += [size] * (count // size)
            count %= size
    return sizes


def split_batch(inputs: Mapping[str, npt.NDArray[Any]], sizes: Sequence[int]) -> list[Arrays]:
    """Split a batch into parts of given sizes; empty inputs stay empty in each part."""
    ends = itertools.accumulate(sizes)
    return [
        {name: array[end - size : end] for name, array in inputs.items()} for size, end in zip(sizes, ends, strict=True)
    ]


def join_outputs(parts: Sequence[Arrays]) -> Arrays:
    """Concatenate the outputs of the parts of a batch, in order."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
