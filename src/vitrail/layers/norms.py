"""Norms of tokens by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vitrail.layers.checks import check_named


class SimpleNorm(nn.Module):
    """Divide each token by its standard deviation and scale each channel; the mean stays.

    Args:
        dim: Number of channels.
        eps: Added to the variance.

    Source: timm's SimpleNorm.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to the same shape."""
        return x * torch.rsqrt(x.var(dim=-1, keepdim=True) + self.eps) * self.weight

    def extra_repr(self) -> str:
        """Show the width when the model is printed."""
        return f"{len(self.weight)}, eps={self.eps:g}"


NORMS: Mapping[str, Callable[[int, float], nn.Module]] = {
    "layernorm": lambda dim, eps: nn.LayerNorm(dim, eps=eps),
    "rmsnorm": lambda dim, eps: nn.RMSNorm(dim, eps=eps),
    "simplenorm": SimpleNorm,
}


def make_norm(name: str, dim: int, eps: float) -> nn.Module:
    """Make a norm of the last dimension by its name in :data:`NORMS`, those of timm.

    Args:
        name: "layernorm" (Ba et al. 2016, arXiv:1607.06450), "rmsnorm" (Zhang & Sennrich 2019, arXiv:1910.07467) or
            "simplenorm".
        dim: Number of channels.
        eps: Added to the variance or mean square.

    Raises:
        ConfigError: An unknown name.
    """
    check_named("norm_layer", name, NORMS)
    return NORMS[name](dim, eps)
