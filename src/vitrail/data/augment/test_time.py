"""Views of the test inputs: of an image, or of all frames of a clip, for test-time augmentation; of rotated clouds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from vitrail.errors import ConfigError, closest

View = Callable[[Tensor], Tensor]


def _crop(vertical: int, horizontal: int) -> View:
    """Crop seven eighths of height and width, at one of three positions along each axis (0, 1, 2)."""

    def view(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        h, w = max(1, round(height * 7 / 8)), max(1, round(width * 7 / 8))
        top, left = (height - h) * vertical // 2, (width - w) * horizontal // 2
        return x[..., top : top + h, left : left + w]

    return view


def _turn(quarters: int, flip: bool = False) -> View:
    return lambda x: (x.flip(-1) if flip else x).rot90(quarters, (-2, -1))


def _same(x: Tensor) -> Tensor:
    return x


# Test-time augmentations: the views whose probabilities are averaged.
VIEWS: Mapping[str, tuple[View, ...]] = {
    "none": (_same,),
    "mirror": (_same, lambda x: x.flip(-1)),
    "flips": (_same, lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.flip(-2, -1)),
    "turns": tuple(_turn(quarters, flip) for flip in (False, True) for quarters in range(4)),
    "crops": (_same, *(_crop(*position) for position in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1)))),
}


# Views of point clouds: each turned once at random, by a rotation about z or by any, which tests a model on rotations.
TURNED = ("up", "so3")


def tta_views(name: str) -> tuple[View, ...]:
    """Return the views of a name, the image itself first; of the names in :data:`TURNED` the cloud as it is given.

    Raises:
        ConfigError: No such name.
    """
    if name in TURNED:
        return VIEWS["none"]
    if name not in VIEWS:
        raise ConfigError(f"unknown test-time augmentation {name!r}{closest(name, [*VIEWS, *TURNED])}")
    return VIEWS[name]
