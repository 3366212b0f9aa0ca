"""Means, maxima and batch norm over the points of clouds of different sizes, whose padding a mask leaves out."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _over(mask: Tensor, x: Tensor) -> Tensor:
    """View a mask ``(B, N)`` with as many dimensions as ``x``, shape ``(B, N, ...)``."""
    return mask.view(*mask.shape, *[1] * (x.ndim - mask.ndim))


def masked_mean(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the mean over the points.

    Args:
        x: Shape ``(B, N, ...)``.
        mask: True for real points, shape ``(B, N)``; all of them when not given.

    Returns:
        Shape ``(B, ...)``; 0 for a cloud without points.
    """
    if mask is None:
        return x.mean(dim=1)
    weights = _over(mask, x).to(x.dtype)
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)


def masked_max(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the largest value over the points; arguments and result are those of :func:`masked_mean`."""
    if mask is None:
        return x.amax(dim=1)
    largest = x.masked_fill(~_over(mask, x), float("-inf")).amax(dim=1)
    return largest.masked_fill(~mask.any(dim=1).view(-1, *[1] * (x.ndim - 2)), 0.0)


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm of the last dimension, whose statistics leave out masked points.

    Equal to ``BatchNorm1d`` and ``BatchNorm2d`` over the same numbers with channels first; its parameters have the same
    names.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.shape[-1] != self.num_features:
            super()._check_input_dim(input)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            input: Shape ``(B, ..., C)``.
            mask: True for real points, shape of the first dimensions of ``input``; all of them when not given.

        Returns:
            Shape of ``input``.
        """
        if mask is None or not self.training:
            return super().forward(input.flatten(0, -2)).view(input.shape)
        weights = _over(mask, input).to(input.dtype).expand(*input.shape[:-1], 1)
        dims = tuple(range(input.ndim - 1))
        count = weights.sum().clamp_min(1.0)
        mean = (input * weights).sum(dims) / count
        var = ((input - mean).square() * weights).sum(dims) / count
        self._track(mean.detach(), (var * count / (count - 1.0).clamp_min(1.0)).detach())
        return (input - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias

    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards those of a batch, as torch does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_(var.to(self.running_var.dtype), rate)
