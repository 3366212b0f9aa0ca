"""Settings and inputs of a model with an image stream and a spectral one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitrail.errors import ConfigError, ShapeError, plural
from vitrail.layers.shapes import to_pair
from vitrail.layers.symbolic import is_symbolic
from vitrail.models.checks import check_at_least
from vitrail.models.facts import describe


def check_spectral_settings(config: Any) -> None:
    """Refuse settings of the spectral stream that are out of range or without such a stream; make its sizes pairs.

    Raises:
        ConfigError: Naming the setting, and the value or the remedy.
    """
    for name in ("spectral_img_size", "spectral_patch_size"):
        value = getattr(config, name)
        if value is not None:
            object.__setattr__(config, name, to_pair(value, name))
    for name in ("spectral_embed_dim", "fusion_heads"):
        if getattr(config, name) is not None:
            check_at_least(config, 1, name)
    if not config.spectral_chans:
        defaults = {"spectral_img_size": None, "spectral_patch_size": None, "missing_spectral": "error"}
        for name, default in defaults.items():
            if getattr(config, name) != default:
                raise ConfigError(f"{name} needs a spectral stream; give spectral_chans, its number of bands")


def check_two_streams(image: Any, spectral: Any, bands: int, may_miss: bool) -> tuple[Tensor, Tensor | None]:
    """Check that the inputs are those of the model's streams.

    Args:
        image: Image.
        spectral: Spectral input, or None.
        bands: Bands of the spectral stream; 0 for a model without one.
        may_miss: Whether the spectral input may be left out.

    Returns:
        The image and the spectral input; None where there is no such stream, or its input is missing.

    Raises:
        ShapeError: A stream too few or too many, or two batch sizes.
    """
    inputs = (image, spectral)
    if is_symbolic(image):
        # A symbolic graph has a place for every argument; of one stream the second stays unused.
        return image, spectral if bands else None
    if not isinstance(image, Tensor) or not isinstance(spectral, Tensor | None):
        raise ShapeError(f"expected an image and at most one spectral input, got {describe(inputs)}")
    if not bands:
        if spectral is not None:
            raise ShapeError(
                f"the model has no spectral stream but was given {describe(inputs)}; build it with "
                "spectral_chans equal to the number of bands, or give the image alone"
            )
        return image, None
    if spectral is None:
        if not may_miss:
            raise ShapeError(
                f"expected an image and a spectral input of {plural(bands, 'band')}, got {describe(inputs)}; for "
                "images alone, build with missing_spectral='learned'"
            )
    elif spectral.shape[0] != image.shape[0]:
        raise ShapeError(f"image and spectral input must be of one batch, got {describe(inputs)}")
    return image, spectral


def split_list(image: Any, spectral: Any) -> tuple[Any, Any]:
    """Split a list of both inputs, given in place of the image, into the two.

    Raises:
        ShapeError: A list beside a spectral input, or one with something else than tensors.
    """
    if not isinstance(image, list | tuple):
        return image, spectral
    if spectral is not None or not all(isinstance(x, Tensor | None) or is_symbolic(x) for x in image):
        given = describe((*image, spectral))
        raise ShapeError(f"expected an image and a spectral input, as two arguments or in a list, got {given}")
    first, second = (*image, None)[:2]
    return first, second
