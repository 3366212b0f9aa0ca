"""Solids made by code: points on the surfaces of simple bodies, with noise and occlusion."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
CLASSES = ("box", "cone", "cylinder", "ellipsoid", "pyramid", "torus")
# Parts of the surface that no rotation exchanges, of each class.
PARTS = (
    "box", "cone base", "cone side", "cylinder cap", "cylinder side", "ellipsoid", "pyramid base", "pyramid side",
    "torus inside", "torus outside",
)  # fmt: skip


class Solid(NamedTuple):
    """A solid.

    Attributes:
        points: Shape ``(N, 3)``.
        target: Index of its class.
        parts: Index of the part of each point, shape ``(N,)``.
    """

    points: Array
    target: int
    parts: Array


def make_solid(seed: int, index: int, count: int, noise: float, occlusion: float) -> Solid:
    """Sample the surface of a solid of random proportions, at a random rotation about its up axis.

    It depends on seed and index alone.

    Args:
        seed: Seed of the data set.
        index: Number of the solid; its class is the remainder by the number of classes.
        count: Number of points.
        noise: Standard deviation of the error of each coordinate, in lengths of the half diagonal.
        occlusion: Share of the surface that is occluded, on the side away from a random viewpoint.
    """
    rng = np.random.default_rng((seed, index))
    target = index % len(CLASSES)
    wanted = int(np.ceil(count / (1 - occlusion))) + 1
    points, is_second = _SURFACES[CLASSES[target]](rng, wanted)
    points = points * rng.uniform(0.6, 1.4, 3)
    points -= (points.max(axis=0) + points.min(axis=0)) / 2
    points /= np.linalg.norm(points, axis=1).max()
    view = rng.normal(size=3)
    seen = np.argsort(points @ (view / np.linalg.norm(view)))[-count:]
    points = points[seen]
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    points = points @ turn.T + rng.normal(scale=noise, size=points.shape) if noise else points @ turn.T
    order = rng.permutation(count)
    first = next(i for i, name in enumerate(PARTS) if name.startswith(CLASSES[target]))
    return Solid(points[order], target, first + is_second[seen][order].astype(np.int64))


def _disc(rng: np.random.Generator, count: int, height: float) -> Array:
    radius, angle = np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(count, height)], axis=1)


def _box(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    points = rng.uniform(-1, 1, (count, 3))
    axis, side = rng.integers(3, size=count), rng.choice((-1.0, 1.0), count)
    points[np.arange(count), axis] = side
    return points, np.zeros(count, dtype=bool)


def _ellipsoid(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    points = rng.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True), np.zeros(count, dtype=bool)


def _cylinder(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    on_side = rng.random(count) < 2 / 3
    angle = rng.uniform(0, 2 * np.pi, count)
    side = np.stack([np.cos(angle), np.sin(angle), rng.uniform(-1, 1, count)], axis=1)
    caps = _disc(rng, count, 1.0) * np.stack([np.ones(count), np.ones(count), rng.choice((-1.0, 1.0), count)], axis=1)
    return np.where(on_side[:, None], side, caps), on_side


def _cone(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    on_side = rng.random(count) < np.sqrt(5) / (1 + np.sqrt(5))
    side = _disc(rng, count, 0.0)
    side[:, 2] = 2 - 2 * np.linalg.norm(side[:, :2], axis=1)
    return np.where(on_side[:, None], side, _disc(rng, count, 0.0)), on_side


def _pyramid(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    on_side = rng.random(count) < np.sqrt(5) / (1 + np.sqrt(5))
    base = np.concatenate([rng.uniform(-1, 1, (count, 2)), np.zeros((count, 1))], axis=1)
    side = base.copy()
    side[:, 2] = 2 - 2 * np.abs(base[:, :2]).max(axis=1)
    return np.where(on_side[:, None], side, base), on_side


def _torus(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    radius = 0.35
    # Rejection, since the outside of the tube has more area than its inside.
    around = rng.uniform(0, 2 * np.pi, 4 * count)
    around = around[rng.random(len(around)) < (1 + radius * np.cos(around)) / (1 + radius)][:count]
    angle = rng.uniform(0, 2 * np.pi, count)
    ring = 1 + radius * np.cos(around)
    points = np.stack([ring * np.cos(angle), ring * np.sin(angle), radius * np.sin(around)], axis=1)
    return points, np.cos(around) >= 0


_SURFACES = {
    "box": _box, "cone": _cone, "cylinder": _cylinder, "ellipsoid": _ellipsoid, "pyramid": _pyramid, "torus": _torus,
}  # fmt: skip
