"""Inputs of an export from a batch of the data pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.engines.base import Arrays
from vitrail.errors import DataError


def takes_any_size(inputs: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether an export takes pixels of any size that it neither crops nor resizes.

    Args:
        inputs: Descriptions of its inputs, as in export.json.
    """
    return any(entry["prepared"] and None in entry["shape"][1:] for entry in inputs)


def to_inputs(record: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Arrays:
    """Convert a batch of the data pipeline to the inputs of an export that take prepared ones.

    Args:
        record: Content of export.json.
        batch: Streams, float32: images in 0..1 at the model's size, shape ``(B, C, H, W)`` each, clips or clouds.

    Raises:
        DataError: Pixels between the levels of 8 bits for an input of uint8.
    """
    arrays: Arrays = {}
    for entry in record["inputs"]:
        if not entry["prepared"]:
            continue
        unit = batch[entry["stream"]]
        arrays[entry["name"]] = unit.numpy() if entry["dtype"] == "float32" else _to_levels(unit)
    return arrays


def _to_levels(unit: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    levels = unit * 255
    rounded = levels.round()
    if not bool((levels - rounded).abs().max() < 1e-3):
        raise DataError(
            "pixels without data, or values of more than 8 bits, cannot be given to this export, which takes uint8; "
            "predict with the run folder"
        )
    return rounded.to(torch.uint8).numpy()
