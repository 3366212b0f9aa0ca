"""Finding a learning rate by trying a range of them."""

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
from vitrail.errors import RunError
from vitrail.tasks.base import Task
from vitrail.tasks.classification import ClassificationTask
from vitrail.train.module import seed_from

_LOW, _HIGH, _STEPS = 1e-6, 1.0, 80
# Of the moving average of the loss, which a batch's luck moves less.
_SMOOTHING = 0.9
# Times the batches of a training step. More where their gradient is too much a matter of luck for the loss to fall.
_GATHERED = (1, 4, 16)
# Up to so many images a step: with more, luck was not the reason.
_MOST_IMAGES = 128


def find_learning_rate(
    task: Task, config: TrainerConfig, batches: Iterable[Mapping[str, Tensor]], seed: int
) -> tuple[float, str]:
    """Train a copy for a few steps at rates that grow from step to step, and see where the loss falls.

    Args:
        task: What is to be trained; it is not changed.
        config: Weight decay, layer decay, accumulation, clipping and precision.
        batches: Training batches, taken from the start again where there are fewer than steps.
        seed: Of augmentation and dropout.

    Returns:
        The rate, of two significant digits, and why.

    Raises:
        RunError: The loss falls at none of the rates.

    Source: range test: Smith 2017, arXiv:1506.01186, section 3.3; where it falls fastest: Howard & Gugger 2020,
    arXiv:2002.04688, section 2.2; less by the root of what was gathered: Malladi et al. 2022, arXiv:2205.10287, square
    root scaling rule, of which only the rate is changed.
    """
    device = next(task.parameters()).device
    images = 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for gathered in _GATHERED:
            batches_a_step = gathered * config.accumulate
            if gathered > 1:
                if batches_a_step * images > _MOST_IMAGES:
                    break
                said = f"the loss fell at no rate; trying again with {_STEPS} steps of {batches_a_step} batches"
                print(f"trainer.learning_rate auto: {said}", file=sys.stderr)
            trial = copy.deepcopy(task).train()
            # How much of which image is in a mixed one moves the loss more than a step does.
            if isinstance(trial, ClassificationTask):
                trial.mix = None
            rates, losses, images = _range_test(trial, config, batches, seed, batches_a_step)
            del trial
            chosen = _choose(rates, losses)
            if chosen is not None:
                span = f"{len(rates)} steps at rates from {rates[0]:.0e} to {rates[-1]:.0e}"
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
    """Rates, the losses at them without what is due to the batches being easy or hard, and the images of a batch.

    The loss that the untrained task has on the same batches, augmented and dropped out alike, is taken away, and its
    mean added: batches differ by more than a step changes, above all small and strongly augmented ones.
    """
    device = next(task.parameters()).device
    untrained = copy.deepcopy(task)
    groups = task.parameter_groups(config.weight_decay, 1.0, config.layer_decay)
    # Each group's share of the rate, by layer.
    shares = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, lr=_LOW, betas=task.betas)
    rates: list[float] = []
    losses: list[float] = []
    chances: list[float] = []
    images = 0
    again = itertools.chain.from_iterable(itertools.repeat(batches))
    for step in range(_STEPS):
        rate = _LOW * (_HIGH / _LOW) ** (step / (_STEPS - 1))
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad()
        value = chance = 0.0
        for number, batch in enumerate(itertools.islice(again, gathered)):
            seed_from(seed, step, number, 0)
            prepared = task.prepare({name: each.to(device) for name, each in batch.items()})
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision.startswith("bf16")):
                seed_from(seed, step, number, 1)
                with torch.no_grad():
                    chance += float(untrained.loss(untrained(prepared), prepared)) / gathered
                seed_from(seed, step, number, 1)
                loss = task.loss(task(prepared), prepared) / gathered
            images = max(images, len(next(iter(batch.values()))))
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        if config.gradient_clip:
            torch.nn.utils.clip_grad_norm_(task.parameters(), config.gradient_clip)
        optimizer.step()
        if not math.isfinite(value + chance) or value > 4 * max(min(losses, default=value), 1e-12):
            break
        rates.append(rate)
        losses.append(value)
        chances.append(chance)
    usual = sum(chances) / max(len(chances), 1)
    return rates, [loss - chance + usual for loss, chance in zip(losses, chances, strict=True)], images


def _choose(rates: list[float], losses: list[float]) -> float | None:
    """Half-way, by its logarithm, between the rate at which the loss falls fastest and that at which it is lowest.

    The first is safe and, for transformers that train for more than a few steps, several times too small; at the second
    training is about to break.

    Returns:
        Two significant digits; None where the loss never falls.
    """
    if len(losses) < 10:
        return None
    values = np.array(losses)
    backwards = _smoothed(values)
    # A moving average sees a step late; one from each side sees it in time.
    smooth = (backwards + _smoothed(values[::-1])[::-1]) / 2
    slopes = np.gradient(smooth)[: int(smooth.argmin()) + 1]
    # Not among the first steps, whose rates move nothing and whose slope is the batches' luck.
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
