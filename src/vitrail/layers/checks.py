"""Checks of settings that layers share."""

from __future__ import annotations

from collections.abc import Mapping

from vitrail.errors import ConfigError, did_you_mean


def check_named(setting: str, name: object, known: Mapping[str, object]) -> None:
    """Refuse a name that a registry of layers does not have.

    Args:
        setting: The setting, for the error.
        name: The name.
        known: The registry.

    Raises:
        ConfigError: Naming the setting, the value and the known names.
    """
    if not isinstance(name, str) or name not in known:
        hint = did_you_mean(name, known) if isinstance(name, str) else ""
        raise ConfigError(f"{setting} must be one of {', '.join(known)}; got {name!r}{hint}")


def check_rate(setting: str, rate: object) -> None:
    """Refuse a dropout rate outside of 0..1 (1 excluded).

    Raises:
        ConfigError: Naming the setting and the value.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 <= rate < 1.0:
        raise ConfigError(f"{setting} must be at least 0 and below 1, got {rate!r}")
