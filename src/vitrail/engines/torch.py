"""Run an export with PyTorch: a program of ``torch.export``, which needs no code of vitrail."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from vitrail.engines.base import Arrays
from vitrail.engines.inputs import takes_any_size
from vitrail.errors import ConfigError, ShapeError

# File inside of model.pt2 with the description of the model.
RECORD = "vitrail.json"


class TorchEngine:
    """Program of ``torch.export``, run operator by operator.

    Args:
        file: The program, model.pt2.
        precision: "fp32".
        threads: Number of threads of this process; unchanged by default.

    Raises:
        ConfigError: Another precision.
    """

    def __init__(self, file: Path, precision: str = "fp32", threads: int | None = None) -> None:
        if precision != "fp32":
            raise ConfigError(f"precision {precision} is not supported for programs of PyTorch; use fp32, or openvino")
        if threads is not None:
            torch.set_num_threads(threads)
        record = {RECORD: ""}
        program = torch.export.load(file, extra_files=record)
        self.precision = precision
        # The program's own names are those of the arguments of forward.
        inputs = json.loads(record[RECORD])["inputs"]
        self._names = [entry["name"] for entry in inputs]
        # Guards refuse sizes whose memory layout is not the example's. An export of pixels of any size was compared
        # with the run without them, and `Export` checks sizes.
        self.module = program.module(check_guards=not takes_any_size(inputs))

    def operations(self) -> dict[str, int]:
        """Return nothing: the engine does not report them."""
        return {}

    @torch.no_grad()
    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run a batch; see :class:`vitrail.engines.base.Engine`.

        Raises:
            ShapeError: A shape that the program was not made for.
        """
        try:
            outputs = self.module(*(torch.from_numpy(inputs[name]) for name in self._names))
        except AssertionError as error:  # a guard of the program
            raise ShapeError(f"the program does not take inputs of these shapes: {error}") from error
        return {name: tensor.numpy() for name, tensor in outputs.items()}
