"""Range checks that every part of a recipe uses."""

from __future__ import annotations

from vitrail.errors import ConfigError


def require(condition: bool, name: str, wanted: str, value: object) -> None:
    """Raise an error that names the setting, the wanted values and the given one, unless a condition holds.

    Raises:
        ConfigError: The condition is false.
    """
    if not condition:
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")
