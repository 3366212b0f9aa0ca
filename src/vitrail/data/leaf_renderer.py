"""Render synthetic leaves in eight bands: outline, veins, light, background and damage.

They are made up. Reflectances follow what is known of leaves in words (chlorophyll takes red and blue, cells throw
near infrared back, water takes short-wave infrared), not a measured model; results on them say nothing about plants.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

# All float32; NumPy's inferred types are looser.
Array = npt.NDArray[Any]

# Name -> wavelength in nm; those of Sentinel-2's bands 4, 3, 2, 5, 6, 8A, 11 and 12.
IMAGE_BANDS = {"red": 665.0, "green": 560.0, "blue": 490.0}
SPECTRAL_BANDS = {"red_edge_1": 705.0, "red_edge_2": 740.0, "nir": 865.0, "swir_1": 1610.0, "swir_2": 2190.0}
BANDS = (*IMAGE_BANDS, *SPECTRAL_BANDS)
CLASSES = ("healthy", "early_stress", "leaf_spot", "rust", "blight", "mildew")

# Reflectance of lesions by band.
_DEAD = np.array([0.30, 0.22, 0.13, 0.33, 0.36, 0.40, 0.46, 0.38], dtype=np.float32)
_RIM = np.array([0.13, 0.09, 0.06, 0.16, 0.22, 0.28, 0.30, 0.24], dtype=np.float32)
_RUST = np.array([0.52, 0.27, 0.07, 0.50, 0.52, 0.55, 0.42, 0.34], dtype=np.float32)
_MILDEW = np.array([0.62, 0.64, 0.60, 0.62, 0.64, 0.66, 0.40, 0.30], dtype=np.float32)
_SOIL = np.array([0.26, 0.20, 0.15, 0.28, 0.30, 0.34, 0.44, 0.40], dtype=np.float32)


@dataclass(frozen=True)
class Leaf:
    """Rendered leaf.

    Attributes:
        bands: Shape ``(8, H, W)`` in the order of :data:`BANDS`, in 0..1.
        mask: Mask of the lesions or the stress, shape ``(H, W)``; empty for a healthy leaf.
        leaf: Mask of the leaf, shape ``(H, W)``.
    """

    bands: Array
    mask: npt.NDArray[np.bool_]
    leaf: npt.NDArray[np.bool_]


def leaf_class(seed: int, index: int) -> int:
    """Return the class of an image: six consecutive images have one of each class, in random order."""
    block, offset = divmod(index, len(CLASSES))
    return int(np.random.default_rng((seed, 3, block)).permutation(len(CLASSES))[offset])


def draw_leaf(seed: int, index: int, size: tuple[int, int], ailment: int | None = None) -> Leaf:
    """Render one leaf.

    Its appearance depends on seed and number alone; another size shows the same leaf. The ailment is drawn
    from random numbers of its own, so that the same leaf can be drawn with another one. Early stress changes nothing in
    red, green and blue: there it is a healthy leaf bit for bit.

    Args:
        seed: Seed of the data set.
        index: Number of the image.
        size: Height and width.
        ailment: Its class; :func:`leaf_class` when not given.
    """
    kind = CLASSES[leaf_class(seed, index) if ailment is None else ailment]
    scene, sick, noise = (np.random.default_rng((seed, stream, index)) for stream in range(3))
    canvas = _Canvas(size, scene)
    water = _field(scene, size, 4, scene.normal(0.75, 0.06), 0.05)
    cells = _field(scene, size, 4, scene.normal(0.95, 0.06), 0.04)
    green = np.clip(_field(scene, size, 6, scene.uniform(0.6, 0.95), 0.1) - canvas.yellowing, 0, 1)
    # Drawn for every class, so that the random numbers of light and background are the same.
    light = _light(scene, size)
    ground = _ground(scene, size)
    specks = _blobs(scene, canvas, int(scene.integers(0, 6)), (0.012, 0.03), 0.5)
    mask = np.zeros(size, dtype=np.float32)
    if kind == "early_stress":
        mask = _region(sick, canvas)
        strength = sick.uniform(0.5, 1.0)
        water = water - 0.30 * strength * mask
        cells = cells * (1 - 0.20 * strength * mask)
    bands = _leaf_bands(green, cells, water, canvas.veins)
    if kind not in ("healthy", "early_stress"):
        mask = _LESIONS[kind](sick, canvas, bands)
    _lay(bands, specks, _SOIL * 0.8)
    bands = ground * (1 - canvas.leaf) + bands * canvas.leaf
    bands *= light
    bands += noise.normal(0, 0.012, bands.shape).astype(np.float32)
    inside = canvas.leaf > 0.5
    return Leaf(np.clip(bands, 0, 1), (mask > 0.5) & inside, inside)


class _Canvas:
    """Outline and veins of a leaf, in coordinates along and across it.

    Args:
        size: Height and width in pixels.
        rng: Random numbers.
    """

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        height, width = size
        y, x = np.meshgrid(
            ((np.arange(height) + 0.5) / height * 2 - 1).astype(np.float32),
            ((np.arange(width) + 0.5) / width * 2 - 1).astype(np.float32),
            indexing="ij",
        )
        self.x, self.y = x, y
        angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25)
        left, top = rng.uniform(-0.1, 0.1, 2)
        length = rng.uniform(0.7, 0.92)
        u = ((x - left) * np.cos(angle) + (y - top) * np.sin(angle)) / length
        v = (-(x - left) * np.sin(angle) + (y - top) * np.cos(angle)) / length - bend * (u**2 - 0.5)
        along = np.clip((u + 1) / 2, 0, 1)
        broad, shape = rng.uniform(0.35, 0.6), rng.uniform(0.65, 0.95)
        teeth, depth = rng.integers(12, 30), rng.uniform(0.0, 0.03)
        profile = np.sin(np.pi * along**shape) ** 0.8 * broad
        profile = profile * (1 + depth * np.abs(np.sin(teeth * np.pi * along)))
        soft = 3.0 / min(size)
        self.leaf: Array = np.clip((profile - np.abs(v)) / soft, 0, 1).astype(np.float32) * (np.abs(u) < 1)
        self.edge: Array = (np.abs(v) / np.maximum(profile, 1e-3)).astype(np.float32)
        ribs, slant = rng.uniform(5, 9), rng.uniform(0.5, 1.0)
        phase = (ribs * (u - slant * np.abs(v))) % 1.0
        side = np.exp(-(((phase - 0.5) / 0.06) ** 2)) * (1 - 0.6 * np.clip(self.edge, 0, 1))
        rib = np.exp(-((v / 0.02) ** 2))
        self.veins: Array = np.maximum(0.6 * side, rib).astype(np.float32)
        # Many leaves are a little yellow at the tip or the margin, whatever ails them.
        amount = rng.uniform(0, 0.5) * (rng.random() < 0.5)
        self.yellowing: Array = (amount * np.clip(along * 3 - 2 + 0.5 * self.edge, 0, 1)).astype(np.float32)

    def random_positions(self, rng: np.random.Generator, number: int) -> list[tuple[float, float]]:
        """Sample positions on the leaf: x and y in -1..1."""
        weights = self.leaf.ravel().cumsum()
        picks = np.searchsorted(weights, rng.random(number) * weights[-1])
        return [(float(self.x.ravel()[i]), float(self.y.ravel()[i])) for i in np.minimum(picks, weights.size - 1)]


@lru_cache(maxsize=64)
def _weights(length: int, cells: int) -> Array:
    """Compute the weight of each knot of a smooth curve at each pixel, shape ``(length, cells)``."""
    position = (np.arange(length) + 0.5) / length * (cells - 1)
    low = np.minimum(position.astype(int), cells - 2)
    share = (1 - np.cos(np.pi * (position - low))) / 2
    result = np.zeros((length, cells), dtype=np.float32)
    result[np.arange(length), low] = 1 - share
    result[np.arange(length), low + 1] = share
    return result


def _waves(rng: np.random.Generator, size: tuple[int, int], cells: int) -> Array:
    """Generate smooth noise with a standard deviation of about 1."""
    knots = rng.normal(0, 1, (cells, cells)).astype(np.float32)
    wave: Array = _weights(size[0], cells) @ knots @ _weights(size[1], cells).T
    return wave


def _field(rng: np.random.Generator, size: tuple[int, int], cells: int, mean: float, spread: float) -> Array:
    field: Array = (mean + spread * _waves(rng, size, cells)).astype(np.float32)
    return field


def _leaf_bands(green: Array, cells: Array, water: Array, veins: Array) -> Array:
    """Compute the reflectance of a leaf from chlorophyll, cell scatter and water, about 0..1."""
    pale = 1 - green
    near = 0.52 * cells
    bands = np.stack(
        [
            0.05 + 0.34 * pale,
            0.11 + 0.32 * pale,
            0.035 + 0.09 * pale,
            near * (0.28 + 0.30 * pale),
            near * (0.78 + 0.10 * pale),
            near,
            0.08 + 0.42 * (1 - water),
            0.03 + 0.34 * (1 - water),
        ]
    )
    result: Array = (bands * (1 + 0.35 * veins)).astype(np.float32)
    return result


def _light(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """Generate the illumination: brightness, direction and shadows."""
    strength, slope = rng.uniform(0.75, 1.25), rng.uniform(-0.25, 0.25, 2)
    y, x = np.linspace(-1, 1, size[0])[:, None], np.linspace(-1, 1, size[1])[None]
    light = strength * (1 + slope[0] * y + slope[1] * x + 0.08 * _waves(rng, size, 5))
    clipped: Array = np.clip(light, 0.3, 1.7).astype(np.float32)
    return clipped


def _ground(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """Render soil, straw or a gray table under the leaf."""
    base = _SOIL if rng.random() < 0.6 else np.full(len(BANDS), rng.uniform(0.15, 0.5), dtype=np.float32)
    base = base * rng.uniform(0.6, 1.4)
    rough = sum(_waves(rng, size, cells) / (i + 1) for i, cells in enumerate((4, 9, 20)))
    ground: Array = (base[:, None, None] * np.clip(1 + 0.18 * rough, 0.3, 2)[None]).astype(np.float32)
    return ground


def _blobs(
    rng: np.random.Generator, canvas: _Canvas, number: int, radii: tuple[float, float], softness: float
) -> Array:
    """Compute the coverage of pixels by round spots, 0..1."""
    cover = np.zeros_like(canvas.leaf)
    for left, top in canvas.random_positions(rng, number):
        radius, stretch, turn = rng.uniform(*radii), rng.uniform(0.75, 1.3), rng.uniform(0, np.pi)
        dx, dy = canvas.x - left, canvas.y - top
        far = np.hypot(
            (dx * np.cos(turn) + dy * np.sin(turn)) * stretch, (dy * np.cos(turn) - dx * np.sin(turn)) / stretch
        )
        np.maximum(cover, np.clip((1 + softness - far / radius) / softness, 0, 1), out=cover)
    return cover


def _lay(bands: Array, cover: Array, color: npt.NDArray[Any]) -> None:
    """Paint a colour over the bands, in place."""
    bands += cover * (color[:, None, None] - bands)


def _spots(rng: np.random.Generator, canvas: _Canvas, bands: Array) -> Array:
    """Draw round dead spots with a dark rim."""
    number, radii = int(rng.integers(2, 11)), (0.03, rng.uniform(0.05, 0.11))
    state = rng.bit_generator.state
    rim = _blobs(rng, canvas, number, radii, 0.5)
    rng.bit_generator.state = state  # the same positions again, smaller
    heart = _blobs(rng, canvas, number, (radii[0] * 0.6, radii[1] * 0.6), 0.4)
    _lay(bands, rim * 0.9, _RIM)
    _lay(bands, heart * 0.9, _DEAD)
    return rim


def _rust(rng: np.random.Generator, canvas: _Canvas, bands: Array) -> Array:
    """Draw many small orange pustules, denser in one part of the leaf."""
    cover = _blobs(rng, canvas, int(rng.integers(6, 40)), (0.012, 0.035), 0.6)
    _lay(bands, cover * rng.uniform(0.6, 0.95), _RUST)
    return cover


def _blight(rng: np.random.Generator, canvas: _Canvas, bands: Array) -> Array:
    """Draw a dead part that grows inwards from the margin, with a ragged border."""
    ((left, top),) = canvas.random_positions(rng, 1)
    near = 1 - np.hypot(canvas.x - left, canvas.y - top) / rng.uniform(0.3, 0.8)
    growth = near + 0.5 * canvas.edge - 0.35 + 0.18 * _waves(rng, canvas.leaf.shape, 9)
    cover: Array = np.clip(growth / 0.08, 0, 1).astype(np.float32)
    _lay(bands, cover * 0.9, _DEAD * np.float32(rng.uniform(0.7, 1.1)))
    return cover


def _mildew(rng: np.random.Generator, canvas: _Canvas, bands: Array) -> Array:
    """Draw white powder in soft patches."""
    cover = _blobs(rng, canvas, int(rng.integers(2, 7)), (0.08, 0.2), 1.2)
    cover = np.clip(cover * (0.8 + 0.35 * _waves(rng, canvas.leaf.shape, 14)), 0, 1).astype(np.float32)
    _lay(bands, cover * rng.uniform(0.35, 0.7), _MILDEW)
    return cover


def _region(rng: np.random.Generator, canvas: _Canvas) -> Array:
    """Compute a smooth mask of about half of the leaf."""
    wave = _waves(rng, canvas.leaf.shape, 4)
    border = np.quantile(wave[canvas.leaf > 0.5], rng.uniform(0.25, 0.6)) if (canvas.leaf > 0.5).any() else 0.0
    part: Array = np.clip((wave - border) / 0.3 + 0.5, 0, 1).astype(np.float32)
    return part


_LESIONS = {"leaf_spot": _spots, "rust": _rust, "blight": _blight, "mildew": _mildew}
