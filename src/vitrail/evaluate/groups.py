"""Groups of images, for intervals over groups."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from vitrail.config.data import DataConfig
from vitrail.errors import ConfigError, DataError, closest, plural

NONE = "none"


def groups_of_predictions(table: pd.DataFrame, wanted: str | None, data: DataConfig | None) -> list[str] | None:
    """Determine the group of each image of saved predictions.

    Args:
        table: Saved predictions.
        wanted: A column of the data's table; or a regular expression on paths, whose first group (or whole match) names
            the group; or "none". By default the groups saved with the predictions.
        data: Data settings; a column is looked up in a table only.

    Returns:
        Group of each image; None without groups.

    Raises:
        ConfigError: ``wanted`` is neither a column nor a regular expression.
        DataError: Some images have no group.
    """
    if wanted == NONE:
        return None
    if wanted is None:
        if "group" not in table or (table["group"] == "").any():
            return None
        return [str(group) for group in table["group"]]
    listed = _column(table, wanted, data)
    if listed is not None:
        return listed
    try:
        pattern = re.compile(wanted)
    except re.error as error:
        raise ConfigError(f"--groups {wanted!r} is neither a column nor a regular expression ({error})") from error
    found = [pattern.search(path) for path in table["path"]]
    lacking = [path for path, match in zip(table["path"], found, strict=True) if match is None]
    if lacking:
        raise DataError(
            f"--groups {wanted!r} matches {len(found) - len(lacking)} of {plural(len(found), 'path')}; the first "
            f"without a group is {lacking[0]}{_unknown_column(data, wanted)}"
        )
    return [(match.group(1) or "" if pattern.groups else match.group()) for match in found if match is not None]


def _column(table: pd.DataFrame, wanted: str, data: DataConfig | None) -> list[str] | None:
    listing = _listing(data)
    if listing is None or wanted not in listing or "path" not in listing:
        return None
    root = Path((data.path if data is not None else None) or "").parent.resolve()
    values = {str(root / path): str(value) for path, value in zip(listing["path"], listing[wanted], strict=True)}
    groups = [values.get(str(root / path), "") for path in table["path"]]
    lacking = [path for path, group in zip(table["path"], groups, strict=True) if group == ""]
    if lacking:
        raise DataError(
            f"{plural(len(lacking), 'image has', 'images have')} no {wanted!r} (first: {lacking[0]}); fill the column"
        )
    return groups


def _listing(data: DataConfig | None) -> pd.DataFrame | None:
    """Read the data's table, all values as text."""
    if data is None or data.source != "table" or data.path is None or not Path(data.path).is_file():
        return None
    if Path(data.path).suffix.lower() in (".parquet", ".pq"):
        table = pd.read_parquet(data.path)
        return table.astype(object).where(table.notna(), "").astype(str)
    return pd.read_csv(data.path, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def _unknown_column(data: DataConfig | None, wanted: str) -> str:
    listing = _listing(data)
    return "" if listing is None else f"; no column has this name{closest(wanted, map(str, listing.columns))}"
