"""Parameters, multiply-adds, throughput, latency and memory of a trained model."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.bench.memory import peak_memory
from vitrail.bench.speed import alternate, synchronize
from vitrail.errors import plural
from vitrail.models.profile import count_multiply_adds, count_parameters
from vitrail.runs.trained import TrainedModel, load_classifier

_ROUNDS = 5
# Forward passes that give a 99th percentile, and a time limit in seconds.
_PASSES, _SECONDS = 200, 1.0


def measure_efficiency(
    trained: TrainedModel, batch_size: int = 64, seconds: float = 2.0, memory_of: Path | None = None
) -> dict[str, Any]:
    """Measure parameters, multiply-adds, throughput and latency of the forward pass.

    Args:
        trained: The model, on the device to measure.
        batch_size: Batch size of the throughput.
        seconds: Minimum time of the measurement after the warm-up.
        memory_of: Run folder of the model. If given, peak memory is measured too, in a fresh process.

    Returns:
        ``parameters``; ``gmacs`` of one image; ``inference_images_per_second`` (median), ``batch_size``, ``device``;
        ``latency_ms`` of a single image: ``p50``, ``p90``, ``p99``, ``mean`` and number of ``passes``; and where
        memory is measured and the system supports it, ``memory_mb`` (peak of the process during a forward pass of
        ``batch_size`` images) and ``memory_before_mb`` (before it).
    """
    model = trained.model
    device = trained.device
    step = _classify(trained, batch_size)
    (times,) = alternate([step], device, rounds=_ROUNDS, least=seconds / _ROUNDS)
    result = {
        "parameters": count_parameters(model),
        "gmacs": count_multiply_adds(model) / 1e9,
        "inference_images_per_second": batch_size / statistics.median(times),
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {plural(torch.get_num_threads(), 'thread')}",
        "latency_ms": latency(_classify(trained, 1), device),
    }
    if memory_of is not None:
        memory = peak_memory(functools.partial(_classify_run, memory_of, batch_size, device), device)
        if memory is not None:
            result |= {"memory_mb": memory.peak / 2**20, "memory_before_mb": memory.before / 2**20}
    return result


def latency(step: Callable[[], object], device: torch.device, passes: int = _PASSES) -> dict[str, float]:
    """Measure the latency of a step in milliseconds, synchronised after each pass.

    Args:
        step: The forward pass.
        device: Device of the step.
        passes: Maximum number of passes.
    """
    for _ in range(3):
        step()
    synchronize(device)
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < passes and (len(times) < 10 or time.perf_counter() < end):
        start = time.perf_counter()
        step()
        synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    p50, p90, p99 = np.percentile(times, [50, 90, 99])
    return {
        "p50": float(p50), "p90": float(p90), "p99": float(p99), "mean": statistics.fmean(times), "passes": len(times),
    }  # fmt: skip


def _classify(trained: TrainedModel, batch_size: int) -> Callable[[], object]:
    inputs = zip(trained.card.streams.items(), trained.model.streams, strict=False)
    images = {
        name: torch.rand(batch_size, *of_model._replace(size=stream.img_size).shape, device=trained.device)
        for (name, stream), of_model in inputs
    }
    return functools.partial(trained.classify, images)


def _classify_run(run: Path, batch_size: int, device: torch.device) -> Callable[[], object]:
    return _classify(load_classifier(run).to(device), batch_size)
