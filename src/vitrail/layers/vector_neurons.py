"""Vector neurons: layers whose features are lists of vectors that turn with the input.

A feature is a matrix V of C vectors, and a layer f is equivariant: ``f(R V) = R f(V)`` for every rotation R. Tensors
are ``(..., S, C)``, for a cloud ``(B, N, S, C)``: channels last, before them the S = 3 coordinates. Attributes of
points that no rotation changes may follow as further coordinates (early fusion, arXiv:2206.04176): S = 3 + F, and R
acts on the first three. On one core with 32 clouds of 256 points and 64 channels a linear layer took 6.8 ms in this
layout, 22 ms as ``(B, C, 3, N)``, the authors' layout, and 79 ms as ``(B, N, C, 3)``.

Sources: Deng et al. 2021, arXiv:2104.12229; parameter names are those of the authors' code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.masked import MaskedBatchNorm

EPS = 1e-6


def squared_lengths(x: Tensor) -> Tensor:
    """Compute the squared length of each vector; ``(..., S, C)`` to ``(..., 1, C)``."""
    return x.square().sum(dim=-2, keepdim=True)


def lengths(x: Tensor) -> Tensor:
    """Compute the length of each vector; ``(..., S, C)`` to ``(..., 1, C)``.

    The gradient of a vector of zeros, the difference of a repeated point, is 0. ``torch.linalg.vector_norm`` over this
    dimension took 40 times as long on a CPU.
    """
    squared = squared_lengths(x)
    return squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()


def clip_along(x: Tensor, direction: Tensor, negative_slope: float) -> Tensor:
    """Remove the part of each vector that points against its direction (arXiv:2104.12229, equations 6 and 7).

    Args:
        x: Vectors, shape ``(..., S, C)``.
        direction: Directions, shape ``(..., S, C)`` or ``(..., S, 1)``.
        negative_slope: Share of that part that stays.
    """
    if x.shape[-2] == 1:
        # Numbers instead of vectors: the difference below, without its cancellation.
        kept = negative_slope + (1.0 - negative_slope) * EPS / (direction.square() + EPS)
        return torch.where(x * direction < 0.0, x * kept, x)
    against = (x * direction).sum(dim=-2, keepdim=True).clamp(max=0.0)
    return x - (1.0 - negative_slope) * against / (squared_lengths(direction) + EPS) * direction


class VNLinear(nn.Module):
    """Linear layer over the channels, ``W V``.

    Args:
        in_channels: Vectors of a point.
        out_channels: Vectors of the result.
        bias_eps: Length of a learned bias vector for each channel; 0 for none. A bias breaks equivariance by an amount
            of its order (arXiv:2206.04176, section 7).
        num_coords: Coordinates of a vector, for the bias.
    """

    def __init__(self, in_channels: int, out_channels: int, bias_eps: float = 0.0, num_coords: int = 3) -> None:
        super().__init__()
        self.map_to_feat = nn.Linear(in_channels, out_channels, bias=False)
        self.bias_eps = bias_eps
        self.bias = None
        if bias_eps:
            bound = in_channels**-0.5
            self.bias = nn.Parameter(torch.empty(num_coords, out_channels).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., S, in_channels)`` to ``(..., S, out_channels)``."""
        out: Tensor = self.map_to_feat(x)
        return out if self.bias is None else out + self.bias_eps * F.normalize(self.bias, dim=0)


class VNBatchNorm(nn.Module):
    """Batch norm of the lengths of vectors; directions stay.

    Args:
        dim: Number of channels.

    Source: arXiv:2104.12229, section 3.4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn = MaskedBatchNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise ``(B, ..., S, C)``; ``mask`` is true for real points, as of :class:`MaskedBatchNorm`."""
        length = lengths(x) + EPS
        normed: Tensor = self.bn(length.squeeze(-2), mask)
        return x * (normed.unsqueeze(-2) / length)


class VNLayerNorm(nn.Module):
    """Layer norm of the lengths of a point's vectors over its channels; directions stay.

    Args:
        dim: Number of channels.

    Source: Assaad et al. 2022, arXiv:2206.04176, section 4.3.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., S, C)``."""
        length = lengths(x) + EPS
        normed: Tensor = self.norm(length)
        return x * (normed / length)


class VNLeakyReLU(nn.Module):
    """Leaky ReLU along learned directions: vectors lose (part of) their component against them.

    Args:
        dim: Number of channels.
        negative_slope: Share of that part that stays; 0 for a ReLU.
        share_direction: Whether all channels have one direction.
    """

    def __init__(self, dim: int, negative_slope: float = 0.2, share_direction: bool = False) -> None:
        super().__init__()
        self.map_to_dir = nn.Linear(dim, 1 if share_direction else dim, bias=False)
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., S, dim)`` to the same shape."""
        return clip_along(x, self.map_to_dir(x), self.negative_slope)


class VNLinearLeakyReLU(nn.Module):
    """Linear layer, batch norm and leaky ReLU, whose directions are a linear map of the layer's input.

    Args:
        in_channels: Vectors of a point.
        out_channels: Vectors of the result.
        negative_slope: As of :class:`VNLeakyReLU`.
        share_direction: Whether all channels have one direction.
    """

    def __init__(
        self, in_channels: int, out_channels: int, negative_slope: float = 0.2, share_direction: bool = False
    ) -> None:
        super().__init__()
        self.map_to_feat = nn.Linear(in_channels, out_channels, bias=False)
        self.batchnorm = VNBatchNorm(out_channels)
        self.map_to_dir = nn.Linear(in_channels, 1 if share_direction else out_channels, bias=False)
        self.negative_slope = negative_slope

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map ``(B, ..., S, in_channels)`` to ``(B, ..., S, out_channels)``; ``mask`` is for the batch norm."""
        return clip_along(self.batchnorm(self.map_to_feat(x), mask), self.map_to_dir(x), self.negative_slope)


class VNMaxPool(nn.Module):
    """Pool points: each channel takes the vector that is longest along its direction, the first one at ties.

    No gradient reaches a choice, so the map to directions stays as it was initialised, in the authors' code too. Here
    it asks for none, which data-parallel training needs.

    Args:
        dim: Number of channels.

    Source: arXiv:2104.12229, equation 8.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map_to_dir = nn.Linear(dim, dim, bias=False).requires_grad_(False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool ``(..., N, S, C)`` to ``(..., S, C)``; ``mask``, shape ``(..., N)``, is 0 where there is no point."""
        along = (x * self.map_to_dir(x)).sum(dim=-2, keepdim=True)
        if mask is not None:
            along = along.masked_fill((mask == 0)[..., None, None], float("-inf"))
        index = along.argmax(dim=-3, keepdim=True).expand(*x.shape[:-3], 1, *x.shape[-2:])
        return x.gather(-3, index).squeeze(-3)


class VNMeanPool(nn.Module):
    """Pool points by their mean."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool ``(..., N, S, C)`` to ``(..., S, C)``; ``mask``, shape ``(..., N)``, is a mask or weights."""
        if mask is None:
            return x.mean(dim=-3)
        weights = mask.to(x.dtype).unsqueeze(-2)
        mean = weights @ x.flatten(-2) / weights.sum(dim=-1, keepdim=True).clamp_min(1.0)
        return mean.reshape(*x.shape[:-3], *x.shape[-2:])


def make_vector_pool(name: str, dim: int) -> nn.Module:
    """Make a pooling of vectors by its name, "mean" or "max".

    Raises:
        ConfigError: Another name.
    """
    if name not in ("mean", "max"):
        raise ConfigError(f"pooling must be 'mean' or 'max', got {name!r}")
    return VNMeanPool() if name == "mean" else VNMaxPool(dim)


def invariant_products(x: Tensor, frame: Tensor) -> Tensor:
    """Compute the inner products of vectors with an equivariant frame: they are rotation-invariant.

    Args:
        x: Vectors, shape ``(..., S, C)``.
        frame: Vectors, shape ``(..., S, K)``.

    Returns:
        Shape ``(..., C, K)``.

    Source: arXiv:2104.12229, section 3.5.
    """
    return x.transpose(-2, -1) @ frame


def orthonormal_frame(x: Tensor) -> Tensor:
    """Make a right-handed orthonormal frame of two vectors by Gram-Schmidt and a cross product.

    Args:
        x: Shape ``(..., 3, 2)``.

    Returns:
        Shape ``(..., 3, 3)``, vectors in the last dimension.
    """
    first, second = x.unbind(dim=-1)
    first = first / (lengths(first.unsqueeze(-1)).squeeze(-1) + EPS)
    second = second - (second * first).sum(dim=-1, keepdim=True) * first
    second = second / (lengths(second.unsqueeze(-1)).squeeze(-1) + EPS)
    # Without dim, torch.cross takes the first dimension of size 3: the batch, where it has 3 clouds.
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], dim=-1)


class VNStdFeature(nn.Module):
    """Invariant features: inner products with three vectors that a small network derives from the same features.

    Every number is unchanged by rotations and reflections; with ``normalize_frame`` by rotations alone.

    Args:
        in_channels: Vectors of a point.
        negative_slope: As of :class:`VNLeakyReLU`.
        normalize_frame: Whether the three vectors are made orthonormal.

    Source: arXiv:2104.12229, section 3.5 and the authors' code.
    """

    def __init__(self, in_channels: int, negative_slope: float = 0.2, normalize_frame: bool = False) -> None:
        super().__init__()
        self.vn1 = VNLinearLeakyReLU(in_channels, in_channels // 2, negative_slope)
        self.vn2 = VNLinearLeakyReLU(in_channels // 2, in_channels // 4, negative_slope)
        self.vn_lin = nn.Linear(in_channels // 4, 2 if normalize_frame else 3, bias=False)
        self.normalize_frame = normalize_frame

    def frame(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the three vectors, ``(..., S, 3)``, of features ``(..., S, C)``."""
        vectors: Tensor = self.vn_lin(self.vn2(self.vn1(x, mask), mask))
        return orthonormal_frame(vectors) if self.normalize_frame else vectors

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map ``(..., S, C)`` to invariant features ``(..., 3 C)``; ``mask`` is for the batch norms."""
        return invariant_products(x, self.frame(x, mask)).flatten(-2)
