"""Parameter groups for weight decay and layer-wise learning rates, and learning-rate schedules."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from vitrail.config.checks import require
from vitrail.config.schema import TrainerConfig
from vitrail.errors import ConfigError, plural
from vitrail.models.base import VisionModel
from vitrail.weights.wrapped import network_inside


def parameter_groups(
    model: nn.Module, weight_decay: float, learning_rate: float = 1e-3, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Group trainable parameters by weight decay and, with layer-wise learning-rate decay, by layer.

    One-dimensional parameters (biases, norms) and those of ``model.no_weight_decay()`` (positions, class tokens) have
    no weight decay.

    Args:
        model: Model to train, an encoder, or a wrapper around one (compiled, data-parallel, a LightningModule) without
            trainable parameters of its own.
        weight_decay: Weight decay of all other parameters, at least 0.
        learning_rate: Learning rate of the classifier, at least 0; the group k layers below it has ``layer_decay ** k``
            times this.
        layer_decay: Layer-wise learning-rate decay, above 0 and at most 1.

    Returns:
        Non-empty groups for an optimiser, highest learning rate first.

    Raises:
        ConfigError: A number out of range, no model of vitrail, or a wrapper with trainable parameters of its own.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101; exemptions: Touvron et al. 2021, arXiv:2012.12877; layer
    decay: Clark et al. 2020, arXiv:2003.10555, section 3.1, and Bao et al. 2022, arXiv:2106.08254, appendix.
    """
    require(0 <= weight_decay < math.inf, "weight_decay", "at least 0", weight_decay)
    require(0 <= learning_rate < math.inf, "learning_rate", "at least 0", learning_rate)
    require(0 < layer_decay <= 1, "layer_decay", "above 0 and at most 1", layer_decay)
    network: VisionModel = network_inside(model, VisionModel, "sorted into groups", alone=False)
    parameters = dict(network.named_parameters())
    own = {id(parameter) for parameter in parameters.values()}
    beside = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in own]
    if beside:
        raise ConfigError(
            f"{beside[0]} is trained beside the model of vitrail in {type(model).__name__}; group the model alone, and "
            "add a group for the others"
        )
    exempt = network.no_weight_decay()
    layers = [list(parameters)] if layer_decay == 1.0 else network.layer_groups()
    groups: list[dict[str, Any]] = []
    for depth, names in enumerate(reversed(layers)):
        rate = learning_rate * layer_decay**depth
        trained = [name for name in names if parameters[name].requires_grad]
        plain = [name for name in trained if parameters[name].ndim <= 1 or name in exempt]
        for chosen, decay in (([name for name in trained if name not in set(plain)], weight_decay), (plain, 0.0)):
            if chosen:
                groups.append({"params": [parameters[n] for n in chosen], "weight_decay": decay, "lr": rate})
    return groups


def warmup_cosine(total_steps: int, warmup_steps: int, floor: float) -> Callable[[int], float]:
    """Build a schedule: linear warm-up, then cosine decay to ``floor``.

    Args:
        total_steps: Optimiser steps of the whole training.
        warmup_steps: Warm-up steps among these, fewer than ``total_steps``.
        floor: Final factor on the learning rate, in 0..1.

    Returns:
        Factor on the learning rate as a function of the step, for :class:`torch.optim.lr_scheduler.LambdaLR`.

    Raises:
        ConfigError: The warm-up takes all steps, or a number out of range.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5; warm-up: Goyal et al. 2017, arXiv:1706.02677.
    """
    _check_schedule(warmup_steps, floor)
    if warmup_steps >= total_steps:
        raise ConfigError(f"the warm-up of {plural(warmup_steps, 'step')} leaves none of the {total_steps}; shorten it")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return _warmup(step, warmup_steps)
        progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def warmup_steps_down(
    milestones: Sequence[int], gamma: float, warmup_steps: int = 0, floor: float = 0.0
) -> Callable[[int], float]:
    """Build a schedule: linear warm-up, and the learning rate times ``gamma`` at each milestone.

    After the warm-up equal to :class:`torch.optim.lr_scheduler.MultiStepLR`; without milestones constant.

    Args:
        milestones: Optimiser steps, increasing.
        gamma: Factor at each milestone, above 0.
        warmup_steps: Warm-up steps.
        floor: Lowest factor on the learning rate, in 0..1.

    Returns:
        As :func:`warmup_cosine`.

    Raises:
        ConfigError: Milestones out of order, or a number out of range.
    """
    _check_schedule(warmup_steps, floor)
    require(0 < gamma < math.inf, "gamma", "above 0 and finite", gamma)
    require(list(milestones) == sorted(milestones), "milestones", "increasing", list(milestones))
    points = list(milestones)

    def factor(step: int) -> float:
        return _warmup(step, warmup_steps) * max(gamma ** bisect.bisect_right(points, step), floor)

    return factor


def _check_schedule(warmup_steps: int, floor: float) -> None:
    require(warmup_steps >= 0, "warmup_steps", "at least 0", warmup_steps)
    require(0 <= floor <= 1, "floor", "from 0 to 1", floor)


def _warmup(step: int, warmup_steps: int) -> float:
    return min((step + 1) / (warmup_steps + 1), 1.0)


def build_schedule(config: TrainerConfig, total_steps: int) -> Callable[[int], float]:
    """Build the schedule of a recipe.

    Args:
        config: Schedule, warm-up and learning rates, in epochs.
        total_steps: Optimiser steps of the whole training.

    Returns:
        Factor on the peak learning rate as a function of the step.
    """
    epoch = total_steps / config.max_epochs
    # Warm-up takes at most half of the steps.
    warmup = min(round(config.warmup_epochs * epoch), total_steps // 2)
    floor = config.min_learning_rate / config.peak_learning_rate
    if config.schedule == "cosine":
        return warmup_cosine(total_steps, warmup, floor)
    points = list(config.milestones)
    if config.schedule == "step":
        assert config.step_size is not None, "checked by the config"
        points = [config.step_size * (i + 1) for i in range(int(config.max_epochs / config.step_size))]
    return warmup_steps_down([round(point * epoch) for point in points], config.gamma or 1.0, warmup, floor)
