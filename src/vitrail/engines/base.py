"""Interface of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


class Engine(Protocol):
    """A loaded model. It runs one batch at a time; threads that run at once need an engine each.

    Attributes:
        precision: Precision of the arithmetic, as the engine reports it: "fp32", "bf16", "fp16", or "int8" of a
            quantised model.
    """

    precision: str

    def operations(self) -> dict[str, int]:
        """Count matrix products and convolutions by precision; empty where the engine does not report them."""
        ...

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run a batch.

        Args:
            inputs: Arrays by name, of the types and shapes in export.json; engines do not check them. Those of one
                entry hold the batch, the others are empty.

        Returns:
            Outputs by name.
        """
        ...
