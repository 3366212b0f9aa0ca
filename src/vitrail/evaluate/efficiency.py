"""What a model costs."""

from __future__ import annotations

import functools
from typing import Any

import torch

from vitrail.evaluate.speed import Spread, alternate
from vitrail.models.profile import count_multiply_adds, count_parameters
from vitrail.runs.trained import TrainedModel

_ROUNDS = 5


def measure_efficiency(trained: TrainedModel, batch_size: int = 64, seconds: float = 2.0) -> dict[str, Any]:
    """Parameters, multiply-adds of one image, and images a second of the forward pass.

    Args:
        trained: The model, on the device to measure.
        batch_size: Images a pass.
        seconds: How long to measure after the warm-up, at least.

    Returns:
        ``parameters``, ``gmacs``, ``inference_images_per_second`` (the median), ``batch_size``, ``device``.
    """
    model = trained.model
    device = trained.device
    images = {
        name: torch.rand(batch_size, len(stream.bands), *stream.img_size, device=device)
        for name, stream in trained.card.streams.items()
    }
    step = functools.partial(trained.classify, images)
    (times,) = alternate([step], device, rounds=_ROUNDS, least=seconds / _ROUNDS)
    return {
        "parameters": count_parameters(model),
        "gmacs": count_multiply_adds(model) / 1e9,
        "inference_images_per_second": batch_size / Spread.of(times).median,
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
    }
