"""Which parameters decay, and how the learning rate moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from vitrail.errors import ConfigError
from vitrail.models.base import VisionModel


def parameter_groups(model: VisionModel, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into those that decay and those that do not.

    Biases, norms (all parameters of one dimension) and what the model names (positions, class tokens) do not.

    Args:
        model: The model.
        weight_decay: Of the others.

    Returns:
        Two groups for an optimiser, empty ones left out.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101; what is exempt: Touvron et al. 2021, arXiv:2012.12877.
    """
    exempt = model.no_weight_decay()
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name in exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def warmup_cosine(total_steps: int, warmup_steps: int, floor: float) -> Callable[[int], float]:
    """Factor on the learning rate: linear rise over the warm-up, then half a cosine down to ``floor``.

    Args:
        total_steps: Optimiser steps of the whole training.
        warmup_steps: Of which for the rise; fewer than the total.
        floor: Factor at the end, 0 to 1.

    Returns:
        A function of the step, for :class:`torch.optim.lr_scheduler.LambdaLR`.

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
