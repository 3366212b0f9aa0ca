"""Groups of images that a split keeps together."""

from __future__ import annotations

import re

from vitrail.data.sources.base import ImageSource
from vitrail.errors import ConfigError, DataError, plural


def groups_of(source: ImageSource, pattern: str | None) -> list[str]:
    """Return the group of each image.

    Args:
        source: The images.
        pattern: A regular expression that is searched in the keys, whose first parenthesis (or whole match) is the
            group; the source's own groups when not given, or when the source took it for the name of a column.

    Raises:
        DataError: The source has no groups, or keys in which nothing is found.
        ConfigError: Not a regular expression.
    """
    if source.groups is not None:
        empty = [key for key, group in zip(source.keys, source.groups, strict=True) if group == ""]
        if empty:
            raise DataError(
                f"{plural(len(empty), 'image has', 'images have')} no group, {empty[0]} is the first; fill the column, "
                "or split without regard to groups (data.split stratified)"
            )
        return list(source.groups)
    if pattern is None:
        raise DataError(
            "data.split grouped needs a column 'group' in a table, or data.splitting.group, a regular expression"
        )
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"data.splitting.group {pattern!r} is not a valid regular expression ({error})") from error
    found = [compiled.search(key) for key in source.keys]
    strangers = [key for key, match in zip(source.keys, found, strict=True) if match is None]
    if strangers:
        raise DataError(
            f"data.splitting.group {pattern!r} is not a column, and is found in {len(found) - len(strangers)} of "
            f"{plural(len(found), 'path')}; {strangers[0]} is one that has no group"
        )
    return [(m.group(1) or "" if m.re.groups else m.group()) for m in found if m is not None]
