"""Random numbers for a batch, from torch's generator on the CPU, whatever device the images are on."""

from __future__ import annotations

import torch
from torch import Tensor


def bernoulli(probability: float, count: int) -> Tensor:
    """Which of ``count`` images something happens to, shape ``(count,)``, bool."""
    return torch.rand(count) < probability


def uniform(low: float, high: float, count: int) -> Tensor:
    """Evenly between two limits, shape ``(count,)``."""
    return low + (high - low) * torch.rand(count)


def uniform_symmetric(most: float, count: int) -> Tensor:
    """Evenly between ``-most`` and ``most``, shape ``(count,)``."""
    return uniform(-most, most, count)


def beta(alpha: float, count: int) -> Tensor:
    """From the symmetric Beta distribution, shape ``(count,)``."""
    return torch.distributions.Beta(alpha, alpha).sample((count,))
