"""Learning-rate range test."""

from __future__ import annotations

import copy
import itertools
import math
import sys
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from vitrail.config.schema import TrainerConfig
from vitrail.errors import RunError, plural
from vitrail.tasks.base import Task
from vitrail.tasks.classification import ClassificationTask
from vitrail.train.module import seed_from

_LOW, _HIGH, _STEPS = 1e-6, 1.0, 80
# Decay of the moving average of the loss.
_SMOOTHING = 0.9
# Batches of a trial step, in multiples of a training step's; more if the gradient is too noisy for the loss to fall.
_GATHERED = (1, 4, 16)
# Largest number of images in a trial step: beyond it noise is not the reason.
_MOST_IMAGES = 128


def find_learning_rate(
    task: Task, config: TrainerConfig, batches: Iterable[Mapping[str, Tensor]], seed: int
) -> tuple[float, str]:
    """Train a copy at growing learning rates and choose one at which the loss falls.

    Args:
        task: Task to train; it is not changed.
        config: Weight decay, layer decay, accumulation, clipping and precision.
        batches: Training batches, repeated if there are fewer than steps.
        seed: Seed of augmentation and dropout.

    Returns:
        The learning rate, with two significant digits, and the reason.

    Raises:
        RunError: The loss falls at no learning rate.

    Source: range test: Smith 2017, arXiv:1506.01186, section 3.3; where it falls fastest: Howard & Gugger 2020,
    arXiv:2002.04688, section 2.2; division by the root of the accumulation: Malladi et al. 2022, arXiv:2205.10287,
    square root scaling rule, for the learning rate alone.
    """
    device = next(task.parameters()).device
    images = 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for gathered in _GATHERED:
            batches_a_step = gathered * config.accumulate
            if gathered > 1:
                if batches_a_step * images > _MOST_IMAGES:
                    break
                note = f"the loss fell at no rate; trying again with {_STEPS} steps of {batches_a_step} batches"
                print(f"trainer.learning_rate auto: {note}", file=sys.stderr)
            trial = copy.deepcopy(task).train()
            # Without mixing, whose random shares change the loss more than a step does.
            if isinstance(trial, ClassificationTask):
                trial.mix = None
            rates, losses, images = _range_test(trial, config, batches, seed, batches_a_step)
            del trial
            chosen = _choose(rates, losses)
            if chosen is not None:
                span = f"{plural(len(rates), 'step')} at rates from {rates[0]:.0e} to {rates[-1]:.0e}"
                reason = f"half-way between where the loss fell fastest and where it was lowest in {span}"
                if gathered > 1:
                    reason += (
                        f" of {gathered} times the images (with fewer it fell at none), over the root of {gathered}"
                    )
                return float(f"{chosen / math.sqrt(gathered):.1e}"), reason
    raise RunError(
        f"trainer.learning_rate auto: the loss fell at none of {_STEPS} rates, tried from {_LOW:g} on; give a number, "
        "or take a larger data.batch_size"
    )


def _range_test(
    task: Task, config: TrainerConfig, batches: Iterable[Mapping[str, Tensor]], seed: int, gathered: int
) -> tuple[list[float], list[float], int]:
    """Compute learning rates, the losses at them corrected for the difficulty of each batch, and the batch size.

    The correction subtracts the loss of the untrained task on the same batch, with the same augmentation and dropout,
    and adds its mean: small or strongly augmented batches differ by more than one step changes.
    """
    device = next(task.parameters()).device
    untrained = copy.deepcopy(task)
    groups = task.parameter_groups(config.weight_decay, 1.0, config.layer_decay)
    # Factor of each layer group's learning rate.
    shares = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, lr=_LOW, betas=task.betas)
    rates: list[float] = []
    losses: list[float] = []
    baselines: list[float] = []
    images = 0
    again = itertools.chain.from_iterable(itertools.repeat(batches))
    for step in range(_STEPS):
        rate = _LOW * (_HIGH / _LOW) ** (step / (_STEPS - 1))
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad()
        value = baseline = 0.0
        for number, batch in enumerate(itertools.islice(again, gathered)):
            seed_from(seed, step, number, 0)
            prepared = task.prepare({name: each.to(device) for name, each in batch.items()})
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision.startswith("bf16")):
                seed_from(seed, step, number, 1)
                with torch.no_grad():
                    baseline += float(untrained.loss(untrained(prepared), prepared)) / gathered
                seed_from(seed, step, number, 1)
                loss = task.loss(task(prepared), prepared) / gathered
            images = max(images, len(next(iter(batch.values()))))
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        if config.gradient_clip:
            torch.nn.utils.clip_grad_norm_(task.parameters(), config.gradient_clip)
        optimizer.step()
        if not math.isfinite(value + baseline) or value > 4 * max(min(losses, default=value), 1e-12):
            break
        rates.append(rate)
        losses.append(value)
        baselines.append(baseline)
    mean_baseline = sum(baselines) / max(len(baselines), 1)
    return rates, [loss - baseline + mean_baseline for loss, baseline in zip(losses, baselines, strict=True)], images


def _choose(rates: list[float], losses: list[float]) -> float | None:
    """Compute the geometric mean of the rates with the steepest fall and with the lowest loss.

    The first is safe but several times too small for transformers; at the second training is about to diverge.

    Returns:
        The rate with two significant digits; None if the loss never falls.
    """
    if len(losses) < 10:
        return None
    values = np.array(losses)
    backwards = _smoothed(values)
    # Averaging from both sides removes the lag of a moving average.
    smooth = (backwards + _smoothed(values[::-1])[::-1]) / 2
    slopes = np.gradient(smooth)[: int(smooth.argmin()) + 1]
    # Without the first steps, whose rates are too small to change the loss.
    fastest = int(slopes[3:].argmin()) + 3 if len(slopes) > 3 else 0
    if fastest == 0 or slopes[fastest] >= 0:
        return None
    lowest = max(int(backwards.argmin()), fastest)
    return float(f"{math.sqrt(rates[fastest] * rates[lowest]):.1e}")


def _smoothed(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = _SMOOTHING * average + (1 - _SMOOTHING) * float(value)
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        result.append(average / weight)
    return np.array(result)
