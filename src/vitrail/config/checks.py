"""Range checks that every part of a recipe uses."""

from __future__ import annotations

import os

from vitrail.errors import ConfigError


def require(condition: bool, name: str, wanted: str, value: object) -> None:
    """Raise an error that names the setting, the wanted values and the given one, unless a condition holds.

    Raises:
        ConfigError: The condition is false.
    """
    if not condition:
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")


def expand_home(name: str, path: str) -> str:
    """Replace a leading ``~`` by the home folder, as a shell does.

    Args:
        name: Name of the setting, for errors.
        path: A path.

    Raises:
        ConfigError: The home folder is not known: ``~someone`` of nobody on this machine.
    """
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        folder = path.split(os.sep)[0]
        raise ConfigError(
            f"{name} {path!r} begins with {folder!r}, and nobody of that name has a home folder here; write ./{path} "
            "for a file or folder of that name"
        )
    return expanded


def expand_homes(part: str, config: object, names: tuple[str, ...]) -> None:
    """Replace a leading ``~`` in path settings of a frozen dataclass by the home folder.

    Args:
        part: The part of the recipe, for errors.
        config: The dataclass, while it is made.
        names: Its settings that are paths; those without a value are left.

    Raises:
        ConfigError: A home folder that is not known.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str):
            object.__setattr__(config, name, expand_home(f"{part}.{name}", value))
