"""Parameter groups for weight decay and layer-wise learning rates, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from vitrail.errors import ConfigError
from vitrail.models.base import VisionModel


def parameter_groups(
    model: VisionModel, weight_decay: float, learning_rate: float = 1e-3, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Group trainable parameters by weight decay and, with layer-wise learning-rate decay, by layer.

    One-dimensional parameters (biases, norms) and those of ``model.no_weight_decay()`` (positions, class tokens) have
    no weight decay.

    Args:
        model: Model to train.
        weight_decay: Weight decay of all other parameters.
        learning_rate: Learning rate of the classifier; the group k layers below it has ``layer_decay ** k`` times this.
        layer_decay: Layer-wise learning-rate decay, above 0 and at most 1.

    Returns:
        Non-empty groups for an optimiser, highest learning rate first.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101; exemptions: Touvron et al. 2021, arXiv:2012.12877; layer
    decay: Clark et al. 2020, arXiv:2003.10555, section 3.1, and Bao et al. 2022, arXiv:2106.08254, appendix.
    """
    exempt = model.no_weight_decay()
    parameters = dict(model.named_parameters())
    layers = [list(parameters)] if layer_decay == 1.0 else model.layer_groups()
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
        ConfigError: The warm-up takes all steps.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5; warm-up: Goyal et al. 2017, arXiv:1706.02677.
    """
    if warmup_steps >= total_steps:
        raise ConfigError(f"the warm-up of {warmup_steps} steps leaves none of the {total_steps}; shorten it")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor
