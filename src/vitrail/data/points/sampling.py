"""A fixed number of points from clouds and meshes, and their position, scale and up axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def sample_mesh(points: Array, faces: Array, count: int, rng: np.random.Generator) -> Array:
    """Sample points of a mesh, uniform over its area.

    Args:
        points: Vertices, shape ``(N, 3)``.
        faces: Triangles, shape ``(M, 3)``.
        count: Number of points.
        rng: Random generator.

    Returns:
        Shape ``(count, 3)``.
    """
    a, b, c = (points[faces[:, i]] for i in range(3))
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    total = areas.sum()
    chances = areas / total if total > 0 else np.full(len(faces), 1 / len(faces))
    chosen = rng.choice(len(faces), count, p=chances)
    u, v = rng.random((2, count, 1))
    fold = u + v > 1
    u, v = np.where(fold, 1 - u, u), np.where(fold, 1 - v, v)
    sampled: Array = a[chosen] + u * (b - a)[chosen] + v * (c - a)[chosen]
    return sampled


def farthest_points(points: Array, count: int, rng: np.random.Generator) -> Array:
    """Choose points one by one, each the farthest from those before; the first at random.

    Returns:
        Indices, shape ``(count,)``.
    """
    chosen = np.empty(count, dtype=np.int64)
    nearest = np.full(len(points), np.inf)
    chosen[0] = rng.integers(len(points))
    for i in range(1, count):
        nearest = np.minimum(nearest, np.square(points - points[chosen[i - 1]]).sum(axis=1))
        chosen[i] = nearest.argmax()
    return chosen


def choose_points(points: Array, count: int, how: str, rng: np.random.Generator) -> Array:
    """Choose at most ``count`` different points.

    Args:
        points: Coordinates, shape ``(N, 3)``; repeated ones count once.
        count: Maximum number of points.
        how: "farthest" or "random".
        rng: Random generator.

    Returns:
        Indices, in ascending order; all different points where there are not more.
    """
    _, first = np.unique(points, axis=0, return_index=True)
    distinct = np.sort(first)
    if len(distinct) <= count:
        return distinct
    if how == "farthest":
        return np.sort(distinct[farthest_points(points[distinct], count, rng)])
    return np.sort(rng.choice(distinct, count, replace=False))


# Up axis -> places by which the coordinates are rolled so that it is z: a rotation, no mirror image.
ROLLS = {"x": 2, "y": 1, "z": 0}


def turn_up(points: Array, up: str) -> Array:
    """Rotate clouds whose up axis is x or y so that it is z."""
    return np.roll(points, ROLLS[up], axis=1)


def turn_back(points: Array, up: str) -> Array:
    """Undo :func:`turn_up`."""
    return np.roll(points, -ROLLS[up], axis=1)


def scale_of(points: Array, rule: str | float) -> float:
    """Compute the divisor of the coordinates of a centred cloud.

    Args:
        points: Shape ``(N, 3)``, centroid at 0.
        rule: "sphere", the largest distance from the centroid; "rms", the root of the mean squared distance, which
            does not hang on one outlier; "none"; or a length in units of the file.
    """
    if isinstance(rule, int | float):
        return float(rule)
    squares = np.square(points).sum(axis=1)
    length = {"sphere": squares.max() ** 0.5, "rms": squares.mean() ** 0.5, "none": 1.0}[rule]
    return float(length) if length > 0 else 1.0
