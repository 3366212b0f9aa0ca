"""Random numbers for a batch, from torch's generator on the CPU for all devices."""

from __future__ import annotations

import torch
from torch import Tensor


def bernoulli(probability: float, count: int) -> Tensor:
    """Sample booleans of a probability, shape ``(count,)``."""
    return torch.rand(count) < probability


def uniform(low: float, high: float, count: int) -> Tensor:
    """Sample uniformly between two limits, shape ``(count,)``."""
    return low + (high - low) * torch.rand(count)


def uniform_symmetric(most: float, count: int) -> Tensor:
    """Sample uniformly from ``-most`` to ``most``, shape ``(count,)``."""
    return uniform(-most, most, count)


def beta(alpha: float, count: int) -> Tensor:
    """Sample from the symmetric Beta distribution, shape ``(count,)``."""
    return torch.distributions.Beta(alpha, alpha).sample((count,))
