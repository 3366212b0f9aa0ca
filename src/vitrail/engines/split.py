"""Split a batch over calls that run at once, with a thread each.

The threads of one call wait for each other in every layer; calls with a thread each do not. OpenVINO computes batches
faster so (benchmarks/results/export_speed.md). ONNX Runtime computes small models more slowly so, and does not do it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrail.engines.base import Arrays


def batch_size(inputs: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return the number of images of a batch; inputs of the entry that is not used are empty."""
    return max(map(len, inputs.values()))


def split_batch(inputs: Mapping[str, npt.NDArray[Any]], parts: int) -> list[Arrays]:
    """Split a batch into parts that differ by one image at most; empty inputs stay empty in each part."""
    pieces = {name: np.array_split(array, parts) for name, array in inputs.items()}
    return [{name: own[part] for name, own in pieces.items()} for part in range(parts)]


def join_outputs(parts: Sequence[Arrays]) -> Arrays:
    """Concatenate the outputs of the parts of a batch, in order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
