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
from vitrail.engines.split import batch_size, join_outputs, split_batch
from vitrail.errors import ConfigError
from vitrail.extras import import_extra
from vitrail.machine import cores, processor

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

    Batches with an image for each thread or more are split over streams, which run at once and have fewer threads each;
    OpenVINO chooses their number, at most that of threads. The first such batch compiles the model for them. Outputs
    are the same.

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
        self._threads = cores() if threads is None else threads
        self._core, self._model = core, core.read_model(file) if isinstance(file, Path) else file
        self.compiled = self._compile("LATENCY")
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
        self._streams: Any = None
        self._requests: list[Any] = []

    def _compile(self, performance: str) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.floating],
            "PERFORMANCE_HINT": performance,
            "INFERENCE_NUM_THREADS": self._threads,
        }
        return self._core.compile_model(self._model, "CPU", settings)

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
        if 1 < self._threads <= batch_size(inputs):
            return self._run_at_once(inputs)
        self._request.infer(dict(inputs))
        return self._outputs(self._request)

    def _run_at_once(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run parts of a batch in streams of their own."""
        if self._streams is None:
            self._streams = self._compile("THROUGHPUT")
        # Requests of a call that fails may still run: the next call makes others.
        requests, self._requests = self._requests, []
        while len(requests) < self._streams.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"):
            requests.append(self._streams.create_infer_request())
        for request, part in zip(requests, split_batch(inputs, len(requests)), strict=True):
            request.start_async(part)
        for request in requests:
            request.wait()
        self._requests = requests
        return join_outputs([self._outputs(request) for request in requests])

    def _outputs(self, request: Any) -> Arrays:
        return {name: request.get_output_tensor(index).data.copy() for index, name in enumerate(self._names)}


def _floating(core: Any) -> str:
    """Precision of a quantised model's operations in floating point."""
    return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"
