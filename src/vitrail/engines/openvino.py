"""Run an export with OpenVINO on the CPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vitrail.engines.base import Arrays
from vitrail.errors import ConfigError
from vitrail.extras import import_extra
from vitrail.machine import processor

# Our names of precisions -> OpenVINO's.
_HINTS = {"fp32": "f32", "bf16": "bf16"}
INT8 = "int8"
# Layers of a compiled model with matrix products, and OpenVINO's names of their precisions -> ours.
_PRODUCTS = ("Convolution", "FullyConnected", "MatMul", "ScaledDotProductAttention")
_RUNTIME = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}


class _Stack(ctypes.Structure):
    """``stack_t`` of sigaltstack(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Restore this thread's stack for signal handlers after OpenVINO has loaded its plugin for CPUs.

    Each ``openvino.Core`` loads a plugin, which installs a stack of its own. Freed, the plugin unmaps it, and installs
    the one that it replaced if its own is still in use. Of two plugins, the one freed last installs the unmapped stack
    of the first; one that another thread frees leaves its own installed. The next signal that Python handles, of a
    data worker that ends or of Ctrl-C, then kills the process without a message (OpenVINO 2026.4). A plugin whose stack
    is not in use installs none. Use it around all code that creates a ``Core``.
    """
    if sys.platform != "linux":
        yield
        return
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)


class OpenVINOEngine:
    """Model of OpenVINO, compiled for this CPU.

    Args:
        file: The model, model.xml, or an ``openvino.Model``.
        precision: "fp32", "bf16", or "int8" of a quantised model, whose other operations compute in bf16 where the CPU
            can. The hint is always set: without one, OpenVINO computes in bf16 where it can.
        threads: Number of threads; all cores by default.

    Raises:
        ConfigError: The CPU does not compute in this precision. OpenVINO accepts the hint and computes in float32.

    Attributes:
        floating: Precision of the operations in floating point.
    """

    @keep_signal_stack()
    def __init__(self, file: Path | Any, precision: str = "fp32", threads: int | None = None) -> None:
        core = import_extra("openvino", "export").Core()
        self.floating = _floating(core) if precision == INT8 else precision
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.floating],
            "PERFORMANCE_HINT": "LATENCY",
            **({} if threads is None else {"INFERENCE_NUM_THREADS": threads}),
        }
        self.compiled = core.compile_model(file, "CPU", settings)
        effective = self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.precision = next((ours for ours, hint in _HINTS.items() if hint == effective), effective)
        if precision == INT8 and self.precision == self.floating and self.operations().get(INT8):
            self.precision = INT8
        if self.precision != precision:
            raise ConfigError(
                f"precision {precision} is not supported by OpenVINO on {processor()}, which computes in "
                f"{self.precision}; export with --precision {self.precision}"
            )
        self._request = self.compiled.create_infer_request()
        self._names = [port.get_any_name() for port in self.compiled.outputs]

    def operations(self) -> dict[str, int]:
        """Count the products and convolutions of the compiled model by their precision: "fp32", "bf16", "int8"."""
        counts: dict[str, int] = {}
        for operation in self.compiled.get_runtime_model().get_ops():
            info = operation.get_rt_info()
            if info["layerType"].astype(str) in _PRODUCTS:
                found = info["runtimePrecision"].astype(str)
                precision = _RUNTIME.get(found, found)
                counts[precision] = counts.get(precision, 0) + 1
        return counts

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run a batch; see :class:`vitrail.engines.base.Engine`."""
        results = self._request.infer(dict(inputs))
        return {name: results[index].copy() for index, name in enumerate(self._names)}


def _floating(core: Any) -> str:
    """Precision of a quantised model's operations in floating point."""
    return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"
