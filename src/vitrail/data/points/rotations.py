"""Random rotations of point clouds."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

TURNS = ("none", "up", "so3")


def random_rotations(count: int, turn: str, generator: torch.Generator | None = None) -> Tensor:
    """Draw rotation matrices.

    Args:
        count: Number of rotations.
        turn: "so3", uniform over all rotations (by a normalised quaternion of normal numbers), "up", uniform about the
            z axis, or "none".
        generator: Random generator; torch's own when not given.

    Returns:
        Shape ``(count, 3, 3)``, determinant 1; multiply points ``(N, 3)`` from the right by the transpose.

    Source: Shoemake 1992, "Uniform random rotations", Graphics Gems III.
    """
    if turn == "none":
        return torch.eye(3).expand(count, 3, 3)
    if turn == "up":
        angle = 2.0 * torch.pi * torch.rand(count, generator=generator)
        zero, one = torch.zeros(count), torch.ones(count)
        rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero, zero, zero, one]
        return torch.stack(rows, dim=1).view(count, 3, 3)
    w, x, y, z = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1).unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=1).view(count, 3, 3)


def rotate(points: Tensor, rotations: Tensor) -> Tensor:
    """Rotate clouds ``(B, N, 3)`` by matrices ``(B, 3, 3)``."""
    return points @ rotations.to(points).transpose(1, 2)


def rotate_clouds(points: Tensor, numbers: Iterable[int], turn: str, seed: int = 0) -> Tensor:
    """Rotate clouds, each by the rotation of its number, whatever batch it is in.

    Args:
        points: Shape ``(B, N, 3)``.
        numbers: Number of each cloud.
        turn: As of :func:`random_rotations`.
        seed: Seed of the rotations.
    """
    if turn == "none":
        return points
    generators = (torch.Generator().manual_seed(hash((seed, int(i))) % 2**63) for i in numbers)
    return rotate(points, torch.cat([random_rotations(1, turn, generator) for generator in generators]))
