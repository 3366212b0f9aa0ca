"""Which images belong together, when an interval is to say so."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from vitrail.config.data import DataConfig
from vitrail.errors import ConfigError, DataError, closest

NONE = "none"


def groups_of_predictions(table: pd.DataFrame, wanted: str | None, data: DataConfig | None) -> list[str] | None:
    """The group of each image whose prediction was saved.

    Args:
        table: SavedPredictions predictions.
        wanted: A column of the table that lists the images, or a regular expression that is searched in their paths
            and whose first parenthesis (or whole match) is the group; "none" for no groups. When not given: the groups
            that the images had when they were predicted.
        data: Where the images came from; only tables are looked at for a column.

    Returns:
        One for each image; None where there are none.

    Raises:
        ConfigError: Neither a column nor a regular expression.
        DataError: Images that have no group.
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
    strangers = [path for path, match in zip(table["path"], found, strict=True) if match is None]
    if strangers:
        raise DataError(
            f"--groups {wanted!r} is found in {len(found) - len(strangers)} of {len(found)} paths; {strangers[0]} is "
            f"one that has no group{_columns_known(data, wanted)}"
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
        raise DataError(f"{len(lacking)} images have no {wanted!r}, {lacking[0]} is the first; fill the column")
    return groups


def _listing(data: DataConfig | None) -> pd.DataFrame | None:
    """The table that lists the images, all values as text."""
    if data is None or data.source != "table" or data.path is None or not Path(data.path).is_file():
        return None
    if Path(data.path).suffix.lower() in (".parquet", ".pq"):
        table = pd.read_parquet(data.path)
        return table.astype(object).where(table.notna(), "").astype(str)
    return pd.read_csv(data.path, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def _columns_known(data: DataConfig | None, wanted: str) -> str:
    listing = _listing(data)
    return "" if listing is None else f"; it is no column either{closest(wanted, map(str, listing.columns))}"
