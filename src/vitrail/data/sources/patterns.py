"""Class or group of an image from its path, by a regular expression."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vitrail.data.image_errors import head
from vitrail.errors import ConfigError, DataError, plural


def by_pattern(setting: str, pattern: str, keys: Sequence[str]) -> list[str]:
    """Search a regular expression in each path, and return its first group.

    Args:
        setting: The setting that holds the pattern, for errors.
        pattern: The regular expression; it is searched anywhere in the path.
        keys: Paths relative to the data, with "/" between folders.

    Raises:
        ConfigError: Not a regular expression, or one without a parenthesis.
        DataError: Paths in which nothing is found; they are counted, and the first is named.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{setting} {pattern!r} is not a valid regular expression ({error})") from error
    if not compiled.groups:
        raise ConfigError(f"{setting} {pattern!r} has no parenthesis; put one around what it is to find: ^(\\w+)_")
    found = [match.group(1) if (match := compiled.search(key)) else None for key in keys]
    strangers = [key for key, value in zip(keys, found, strict=True) if not value]
    if strangers:
        raise DataError(
            f"{setting} {pattern!r} finds nothing in {len(strangers)} of {plural(len(keys), 'path')}: "
            f"{head(strangers, 1)}; change the pattern, or rename or remove these files"
        )
    return [value for value in found if value]
