"""Sharded checkpoints: a JSON index names the file of each tensor (Hugging Face's layout)."""

from __future__ import annotations

import json
from pathlib import Path

from vitrail.errors import WeightsError, plural

_SUFFIX = ".index.json"


def is_index(path: Path) -> bool:
    """Check by name whether a file is the index of a sharded checkpoint."""
    return path.name.endswith(_SUFFIX)


def shard_names(index: Path) -> list[str]:
    """Return the shards' file names in the order of the index.

    Raises:
        WeightsError: It is damaged, or names files outside of its folder.
    """
    return list(_read(index))


def read_index(index: Path) -> dict[str, list[str]]:
    """Read the mapping of tensors to shards.

    Args:
        index: The ``.index.json`` file; its shards lie beside it.

    Returns:
        File name of a shard -> its keys in the index.

    Raises:
        WeightsError: It is damaged, names files outside of its folder, or a shard is missing.
    """
    shards = _read(index)
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(
            f"{index} names {plural(len(shards), 'shard')}, but the folder lacks {len(missing)}: "
            f"{', '.join(missing[:3])}; download all of them"
        )
    return shards


def _read(index: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{index} is truncated or foreign ({error}); download it again") from error
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise WeightsError(f"{index} is foreign: it has no weight_map of tensors to files")
    shards: dict[str, list[str]] = {}
    for key, name in files.items():
        if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\:\0"):
            raise WeightsError(
                f"{index} places {key} in {name!r}, which is not a file name in its folder; other folders are not read"
            )
        if is_index(Path(name)):
            raise WeightsError(f"{index} places {key} in {name!r}, another index; it is damaged")
        shards.setdefault(name, []).append(key)
    return shards
