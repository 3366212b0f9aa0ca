"""Run an export with OpenVINO on the CPU."""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vitrail.engines.base import Arrays
from vitrail.engines.split import batch_size, even_sizes, few_sizes, join_outputs, split_batch
from vitrail.errors import ConfigError
from vitrail.extras import import_extra
from vitrail.machine import cores, processor

# Our names of precisions -> OpenVINO's.
_HINTS = {"fp32": "f32", "bf16": "bf16"}
INT8 = "int8"
# OpenVINO's hints: one call with all threads, or several at once.
_LATENCY, _THROUGHPUT = "LATENCY", "THROUGHPUT"
# Most bytes of weights of a small model. Dynamic shapes cost small models a part of each call; a Swin-T in int8 (29 MB)
# is still 12 % faster at a fixed size, a ViT-S in fp32 (88 MB) is not.
_SMALL = 32 << 20
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

    Batches with an image for each thread or more are computed in parts, in streams that run at once and have fewer
    threads each; OpenVINO chooses their number. Small models are compiled for fixed sizes of these parts, where inputs
    have a fixed size: they then need 0.5 to 0.8 of the time. Larger ones gain nothing, and each size holds the weights
    again. All are compiled when they are first needed. Outputs do not depend on the batch. Those of a fixed size and
    of photographs of any size are the same in fp32; lower precision rounds at other places.

    Args:
        file: The model, model.xml, or an ``openvino.Model``.
        precision: "fp32", "bf16", or "int8" of a quantised model, whose other operations compute in bf16 where the CPU
            can. The hint is always set: without one, OpenVINO computes in bf16 where it can.
        threads: Number of threads; all cores by default.
        fixed_sizes: Whether to compile small models for fixed sizes. For a few batches the time does not pay.

    Raises:
        ConfigError: The CPU does not compute in this precision. OpenVINO accepts the hint and computes in float32.

    Attributes:
        floating: Precision of the operations in floating point.
    """

    @keep_signal_stack()
    def __init__(
        self, file: Path | Any, precision: str = "fp32", threads: int | None = None, fixed_sizes: bool = True
    ) -> None:
        core = import_extra("openvino", "export").Core()
        self.floating = _floating(core) if precision == INT8 else precision
        self._threads = cores() if threads is None else threads
        self._core, self._model = core, core.read_model(file) if isinstance(file, Path) else file
        self._fixed_sizes = fixed_sizes and _weights(self._model) <= _SMALL
        # Name of each input, in order -> whether all its axes but the batch have one length.
        self._is_fixed = {
            port.get_any_name(): all(axis.is_static for axis in list(port.get_partial_shape())[1:])
            for port in self._model.inputs
        }
        # Hint on performance and number of images in each input (None: any) -> the model compiled for them.
        self._compiled: dict[tuple[str, tuple[int, ...] | None], _Compiled] = {}
        self.precision = precision
        # All CPUs compute in fp32.
        if precision != "fp32":
            self._check(self._compile(_LATENCY).model)

    def _check(self, compiled: Any) -> None:
        """Refuse a compiled model that computes in another precision than the one asked for."""
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        effective = next((ours for ours, own in _HINTS.items() if own == hint), hint)
        if self.precision == INT8 and effective == self.floating and self.operations().get(INT8):
            effective = INT8
        if effective != self.precision:
            raise ConfigError(
                f"precision {self.precision} is not supported by OpenVINO on {processor()}, which computes in "
                f"{effective}; export with --precision {effective}"
            )

    @keep_signal_stack()
    def _compile(self, performance: str, inputs: Arrays | None = None) -> _Compiled:
        """Return the model compiled for a hint, and for the shapes of a part of a batch if there is one."""
        key = (performance, None if inputs is None else tuple(len(inputs[name]) for name in self._is_fixed))
        if key not in self._compiled:
            model = self._model
            if inputs is not None:
                model = model.clone()
                model.reshape({name: inputs[name].shape for name in self._is_fixed})
            settings = {
                "INFERENCE_PRECISION_HINT": _HINTS[self.floating],
                "PERFORMANCE_HINT": performance,
                "INFERENCE_NUM_THREADS": self._threads,
            }
            self._compiled[key] = _Compiled(self._core.compile_model(model, "CPU", settings))
        return self._compiled[key]

    def operations(self) -> dict[str, int]:
        """Count the products and convolutions of the compiled model by their precision: "fp32", "bf16", "int8"."""
        counts: dict[str, int] = {}
        for operation in self._compile(_LATENCY).model.get_runtime_model().get_ops():
            info = operation.get_rt_info()
            if info["layerType"].astype(str) in _PRODUCTS:
                found = info["runtimePrecision"].astype(str)
                precision = _RUNTIME.get(found, found)
                counts[precision] = counts.get(precision, 0) + 1
        return counts

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run a batch; see :class:`vitrail.engines.base.Engine`."""
        count = batch_size(inputs)
        at_once = 1 < self._threads <= count
        performance = _THROUGHPUT if at_once else _LATENCY
        used = (name for name, array in inputs.items() if len(array))
        if not count or not self._fixed_sizes or not all(self._is_fixed[name] for name in used):
            compiled = self._compile(performance)
            sizes = even_sizes(count, min(count, compiled.streams) or 1)
            return join_outputs(compiled.run(split_batch(inputs, sizes)))
        most = -(-count // self._threads) if at_once else count
        outputs: list[Arrays] = []
        for _, group in itertools.groupby(split_batch(inputs, few_sizes(count, most)), key=batch_size):
            equal = list(group)
            outputs += self._compile(performance, equal[0]).run(equal)
        return join_outputs(outputs)


class _Compiled:
    """A compiled model, and a request for each of its streams."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.streams: int = model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._names = [port.get_any_name() for port in model.outputs]
        self._requests: list[Any] = []

    def run(self, parts: Sequence[Arrays]) -> list[Arrays]:
        """Run parts of a batch, as many at once as there are streams; outputs in order."""
        # Requests of a call that fails may still run: the next call makes others.
        requests, self._requests = self._requests, []
        while len(requests) < self.streams:
            requests.append(self.model.create_infer_request())
        outputs: list[Arrays] = []
        for first in range(0, len(parts), self.streams):
            running = list(zip(requests, parts[first : first + self.streams], strict=False))
            for request, part in running:
                request.start_async(part)
            for request, _ in running:
                request.wait()
            outputs += [self._outputs(request) for request, _ in running]
        self._requests = requests
        return outputs

    def _outputs(self, request: Any) -> Arrays:
        return {name: request.get_output_tensor(index).data.copy() for index, name in enumerate(self._names)}


def _weights(model: Any) -> int:
    """Count the bytes of a model's constants."""
    return sum(op.get_byte_size() for op in model.get_ops() if op.get_type_name() == "Constant")


def _floating(core: Any) -> str:
    """Return the precision of a quantised model's operations in floating point."""
    return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"
