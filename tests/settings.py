"""Data settings by keyword: ``group__name`` stands for ``group.name``."""

from typing import Any

from vitrail.config.data import DataConfig


def data_config(**settings: Any) -> DataConfig:
    """Build the data settings from keywords such as ``source="folder"`` and ``bands__names=("r", "g")``."""
    return DataConfig().changed({name.replace("__", "."): value for name, value in settings.items()})
