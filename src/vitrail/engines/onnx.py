"""Run an export with ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vitrail.engines.base import Arrays
from vitrail.errors import ConfigError, RunError
from vitrail.extras import import_extra

_ERRORS = ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")


class OnnxEngine:
    """Model of ONNX Runtime.

    Args:
        file: The model, model.onnx.
        precision: "fp32".
        threads: Number of threads; all cores by default.

    Raises:
        ConfigError: Another precision.
    """

    def __init__(self, file: Path, precision: str = "fp32", threads: int | None = None) -> None:
        if precision != "fp32":
            raise ConfigError(f"precision {precision} is not supported by ONNX Runtime on CPUs; use fp32, or openvino")
        runtime = import_extra("onnxruntime", "export")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        if threads is not None:
            options.intra_op_num_threads = threads
        self.precision = precision
        # Classes of their own, without a common base.
        state = import_extra("onnxruntime.capi.onnxruntime_pybind11_state", "export")
        self._errors = tuple(getattr(state, name) for name in _ERRORS)
        try:
            self.session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except self._errors as error:
            raise RunError(f"ONNX Runtime cannot load {file.name}: {_first_line(error)}") from error
        self._names = [output.name for output in self.session.get_outputs()]

    def operations(self) -> dict[str, int]:
        """Return nothing: the engine does not report them."""
        return {}

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run a batch; see :class:`vitrail.engines.base.Engine`.

        Raises:
            RunError: ONNX Runtime fails, such as on a shape that the model was not made for.
        """
        try:
            return dict(zip(self._names, self.session.run(None, dict(inputs)), strict=True))
        except self._errors as error:
            raise RunError(f"ONNX Runtime fails: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
