"""Run an export with ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vitrail.engines.base import Arrays
from vitrail.errors import ConfigError, RunError, first_line
from vitrail.extras import import_extra

_ERRORS = ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")
# Products and convolutions of an optimised graph -> their precision.
_PRODUCTS = {
    **dict.fromkeys(("Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MultiHeadAttention"), "fp32"),
    **dict.fromkeys(
        ("ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearConv",
         "QLinearMatMul"), "int8",
    ),
}  # fmt: skip


class OnnxEngine:
    """Model of ONNX Runtime.

    Args:
        file: The model, model.onnx.
        precision: "fp32", or "int8" of a quantised model.
        threads: Number of threads; all cores by default.

    Raises:
        ConfigError: Another precision.
        RunError: ONNX Runtime cannot load the file.
    """

    def __init__(self, file: Path, precision: str = "fp32", threads: int | None = None) -> None:
        if precision not in ("fp32", "int8"):
            raise ConfigError(
                f"precision {precision} is not supported by ONNX Runtime on CPUs; use fp32, int8, or openvino"
            )
        self._runtime = import_extra("onnxruntime", "export")
        options = self._options()
        if threads is not None:
            options.intra_op_num_threads = threads
        self.file, self.precision = file, precision
        # Classes of their own, without a common base.
        state = import_extra("onnxruntime.capi.onnxruntime_pybind11_state", "export")
        self._errors = tuple(getattr(state, name) for name in _ERRORS)
        try:
            self.session = self._open(options)
        except self._errors as error:
            raise RunError(f"ONNX Runtime cannot load {file.name}: {first_line(error)}") from error
        self._names = [output.name for output in self.session.get_outputs()]

    def _options(self) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        return options

    def _open(self, options: Any) -> Any:
        return self._runtime.InferenceSession(str(self.file), options, providers=["CPUExecutionProvider"])

    def operations(self) -> dict[str, int]:
        """Count the products and convolutions of the optimised graph by their precision: "fp32", "int8"."""
        onnx = import_extra("onnx", "export")
        options = self._options()
        counts: dict[str, int] = {}
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            self._open(options)
            for node in onnx.load(options.optimized_model_filepath).graph.node:
                if node.op_type in _PRODUCTS:
                    precision = _PRODUCTS[node.op_type]
                    counts[precision] = counts.get(precision, 0) + 1
        return counts

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run a batch; see :class:`vitrail.engines.base.Engine`.

        Raises:
            RunError: ONNX Runtime fails, such as on a shape that the model was not made for.
        """
        try:
            return dict(zip(self._names, self.session.run(None, dict(inputs)), strict=True))
        except self._errors as error:
            raise RunError(f"ONNX Runtime fails: {first_line(error)}") from error
