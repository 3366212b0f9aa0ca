"""Checks of settings that the config classes of several families share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.errors import ConfigError
from vitrail.layers.checks import check_rate


def as_config(kind: type[Any], config: Any) -> Any:
    """Build a config from a mapping of settings, as files of Hugging Face's hub hold; return a config as it is."""
    return kind(**config) if isinstance(config, Mapping) else config


def check_at_least(config: object, minimum: int, *names: str) -> None:
    """Refuse settings that are not whole numbers or too small.

    Raises:
        ConfigError: Naming the setting, the minimum and the value.
    """
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ConfigError(f"{name} must be a whole number of at least {minimum}, got {value!r}")


def check_rates(config: object, *names: str) -> None:
    """Refuse dropout rates outside of 0..1 (1 excluded).

    Raises:
        ConfigError: Naming the setting and the value.
    """
    for name in names:
        check_rate(name, getattr(config, name))


def check_mlp_ratio(ratio: float, dim: int) -> None:
    """Refuse an MLP without width.

    Args:
        ratio: Hidden width over the token width.
        dim: The token width.

    Raises:
        ConfigError: Naming the value.
    """
    if not 0 < ratio < math.inf or int(dim * ratio) < 1:
        raise ConfigError(f"mlp_ratio must be above 0 and give a width of at least 1, got {ratio}")


def check_stages(config: object, *names: str) -> None:
    """Refuse settings that are not lists of whole numbers of at least 1, one per stage; make them tuples.

    Raises:
        ConfigError: Naming the setting and the value, or settings of different lengths.
    """
    for name in names:
        values = getattr(config, name)
        whole = isinstance(values, Sequence) and all(isinstance(v, int) and not isinstance(v, bool) for v in values)
        if not whole or not values or min(values) < 1:
            raise ConfigError(f"{name} must be whole numbers of at least 1, one per stage, got {values!r}")
        object.__setattr__(config, name, tuple(values))
    if len({len(getattr(config, name)) for name in names}) > 1:
        counts = " and ".join(f"{len(getattr(config, name))} {name}" for name in names)
        raise ConfigError(f"{' and '.join(names)} must have one value a stage each, got {counts}")
