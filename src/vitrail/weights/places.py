"""Where weights lie: a file, a folder with a model (a run's, or one that was saved), or the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.errors import WeightsError
from vitrail.files import LFS_REMEDY, is_lfs_pointer
from vitrail.weights.hub import HUB_PREFIX, fetch_file, fetch_weights, split_hub_name

# The two files of a saved model, in a folder of its own or in a run folder.
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"


@dataclass(frozen=True)
class Place:
    """A file of weights, and what stands beside it.

    Attributes:
        weights: The file.
        card: Its model.json; None where there is none.
    """

    weights: Path
    card: Path | None = None


def find_weights(where: str | Path) -> Place:
    """Find the file of weights that a path or a hub name stands for; downloads what lies on the hub.

    Args:
        where: A file, a folder with ``model.safetensors`` (and ``model.json``), or ``hf://owner/name[/file]``.

    Raises:
        WeightsError: There is none, or the hub cannot be reached.
    """
    if isinstance(where, str) and where.startswith(HUB_PREFIX):
        weights = fetch_weights(where)
        # A file named by itself stands for itself; only a whole repository may be a saved model.
        return Place(weights, None if split_hub_name(where)[2] else fetch_file(where, CARD_FILE))
    path = Path(where)
    if path.is_dir():
        weights, card = path / WEIGHTS_FILE, path / CARD_FILE
        if not weights.is_file():
            raise WeightsError(f"the folder {path} holds no {WEIGHTS_FILE}; give a file of weights or a finished run")
        return Place(weights, card if card.is_file() else None)
    if not path.is_file():
        raise WeightsError(f"no file of weights at {path}; check the path (hf://owner/name takes one from the hub)")
    return Place(path)


def read_card(card: Path) -> dict[str, Any]:
    """What a model.json says.

    Returns:
        Its content; ``name`` and ``settings`` are there, lists of settings as tuples.

    Raises:
        WeightsError: It is damaged, or no model's.
    """
    if is_lfs_pointer(card):
        raise WeightsError(f"{card} is a Git LFS pointer in the place of the model's description; {LFS_REMEDY}")
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{card} is damaged ({error}); restore it") from error
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        raise WeightsError(f"{card} does not describe a model: it has no name")
    settings = content.get("settings", {})
    if not isinstance(settings, dict):
        raise WeightsError(f"{card} does not describe a model: its settings are {settings!r}")
    return {**content, "settings": {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}}
