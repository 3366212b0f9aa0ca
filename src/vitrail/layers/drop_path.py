"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn

from vitrail.layers.checks import check_rate
from vitrail.layers.symbolic import one_node


class DropPath(nn.Module):
    """Drop a residual branch for whole samples at random during training, and scale the others up.

    Args:
        rate: Probability of dropping, in 0..1 (1 excluded).

    Raises:
        ConfigError: The rate is outside that range.

    Source: Huang et al. 2016, arXiv:1603.09382, section 3.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        check_rate("drop_path_rate", rate)
        self.rate = rate

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` of shape ``(B, ...)`` with some samples set to zero; unchanged in evaluation."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1.0 - self.rate)
        return x * (keep / (1.0 - self.rate))

    def extra_repr(self) -> str:
        """Show the rate when the model is printed."""
        return f"rate={self.rate:g}"


def drop_path_schedule(rate: float, depth: int) -> list[float]:
    """Return rates that grow linearly from 0 at the first block to ``rate`` at the last (section 3)."""
    if depth <= 1:
        return [rate] * depth
    return [rate * i / (depth - 1) for i in range(depth)]
