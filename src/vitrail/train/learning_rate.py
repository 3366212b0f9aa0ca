"""Finding a learning rate by trying a range of them."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from vitrail.config.schema import TrainerConfig
from vitrail.errors import RunError
from vitrail.tasks.classification import ClassificationTask
from vitrail.tasks.optim import parameter_groups

_LOW, _HIGH, _STEPS = 1e-6, 1.0, 80
# Of the moving average of the loss, which a batch's luck moves less.
_SMOOTHING = 0.9


def find_learning_rate(
    task: ClassificationTask, config: TrainerConfig, batches: Iterable[Mapping[str, Tensor]], seed: int
) -> tuple[float, str]:
    """Train a copy for a few steps at rates that grow from step to step, and see where the loss falls fastest.

    Args:
        task: What is to be trained; it is not changed.
        config: Weight decay, layer decay, clipping and precision.
        batches: Training batches, taken from the start again where there are fewer than steps.
        seed: Of augmentation and dropout.

    Returns:
        The rate, of two significant digits, and why.

    Raises:
        RunError: The loss falls at none of the rates.

    Source: range test: Smith 2017, arXiv:1506.01186, section 3.3; where it falls fastest: Howard & Gugger 2020,
    arXiv:2002.04688, section 2.2.
    """
    device = next(task.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        trial = copy.deepcopy(task).train()
        # How much of which image is in a mixed one moves the loss more than a step does.
        trial.mix = None
        rates, losses = _range_test(trial, config, batches, device)
    chosen = _fastest_fall(rates, losses)
    if chosen is None:
        raise RunError(
            f"trainer.learning_rate auto: the loss fell at none of {len(rates)} rates, tried from {_LOW:g} on; give "
            "a number"
        )
    return chosen, f"the loss fell fastest there, of {len(rates)} steps at rates from {rates[0]:.0e} to {rates[-1]:.0e}"


def _range_test(
    task: ClassificationTask, config: TrainerConfig, batches: Iterable[Mapping[str, Tensor]], device: torch.device
) -> tuple[list[float], list[float]]:
    groups = parameter_groups(task.model, config.weight_decay, 1.0, config.layer_decay)
    # Each group's share of the rate, by layer.
    shares = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, lr=_LOW)
    rates: list[float] = []
    losses: list[float] = []
    for step, batch in zip(range(_STEPS), itertools.chain.from_iterable(itertools.repeat(batches)), strict=False):
        rate = _LOW * (_HIGH / _LOW) ** (step / (_STEPS - 1))
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        prepared = task.prepare({name: value.to(device) for name, value in batch.items()})
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision.startswith("bf16")):
            loss = task.loss(task(prepared), prepared)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if config.gradient_clip:
            torch.nn.utils.clip_grad_norm_(task.parameters(), config.gradient_clip)
        optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value) or value > 4 * max(min(losses, default=value), 1e-12):
            break
        rates.append(rate)
        losses.append(value)
    return rates, losses


def _fastest_fall(rates: list[float], losses: list[float]) -> float | None:
    """The rate at which the smoothed loss falls fastest by its logarithm, before its lowest; None where it never falls.

    Smoothing looks back, so that a step is seen late; looking both ways makes up for that.
    """
    if len(losses) < 10:
        return None
    values = np.array(losses)
    smooth = (_smoothed(values) + _smoothed(values[::-1])[::-1]) / 2
    lowest = int(smooth.argmin())
    slopes = np.gradient(smooth)[: lowest + 1]
    # Not among the first steps, whose rates move nothing and whose slope is the batches' luck.
    best = int(slopes[3:].argmin()) + 3 if len(slopes) > 3 else 0
    if best == 0 or slopes[best] >= 0:
        return None
    return float(f"{rates[best]:.1e}")


def _smoothed(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = _SMOOTHING * average + (1 - _SMOOTHING) * float(value)
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        result.append(average / weight)
    return np.array(result)
