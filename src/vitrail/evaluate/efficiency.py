"""What a model costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from vitrail.models.profile import count_multiply_adds, count_parameters
from vitrail.runs.trained import TrainedModel


def measure_efficiency(trained: TrainedModel, batch_size: int = 64, seconds: float = 2.0) -> dict[str, Any]:
    """Parameters, multiply-adds of one image, and images a second of the forward pass.

    Args:
        trained: The model, on the device to measure.
        batch_size: Images a pass.
        seconds: How long to measure after the warm-up.

    Returns:
        ``parameters``, ``gmacs``, ``inference_images_per_second`` (the median pass), ``batch_size``, ``device``.
    """
    model = trained.model
    device = trained.device
    images = {
        name: torch.rand(batch_size, len(stream.bands), *stream.img_size, device=device)
        for name, stream in trained.card.streams.items()
    }
    for _ in range(2):
        _one_pass(trained, images)
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        times.append(_one_pass(trained, images))
    return {
        "parameters": count_parameters(model),
        "gmacs": count_multiply_adds(model) / 1e9,
        "inference_images_per_second": batch_size / sorted(times)[len(times) // 2],
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
    }


def _one_pass(trained: TrainedModel, images: Mapping[str, torch.Tensor]) -> float:
    start = time.perf_counter()
    trained.classify(images)
    if trained.device.type == "cuda":
        torch.cuda.synchronize(trained.device)
    return time.perf_counter() - start
