"""Normalisation of a checkpoint's images: mean and standard deviation from its files or metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.errors import WeightsError
from vitrail.weights.checkpoint import Checkpoint, as_numbers
from vitrail.weights.locations import Location, read_card

# Means and standard deviations in 0..1, one value a band, by stream.
Normalization = dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
# Names in timm and Hugging Face.
_NAMES = (("mean", "std"), ("image_mean", "image_std"))


def read_normalization(location: Location | None, checkpoint: Checkpoint) -> tuple[Normalization, str]:
    """Find the normalisation of a checkpoint's images.

    Searched in vitrail's ``model.json``, Hugging Face's ``preprocessor_config.json`` and timm's ``config.json``
    beside the weights, then in the metadata of the file, then beside the weights in it (``pretrained_cfg``, ``args``).

    Args:
        location: Location of the weights; None for weights in memory.
        checkpoint: The checkpoint.

    Returns:
        Mean and standard deviation by stream, empty if unknown; and their origin.

    Raises:
        WeightsError: A ``model.json`` is damaged.
    """
    if location is not None and location.card is not None:
        found = _of_card(read_card(location.card))
        if found:
            return found, location.card.name
    for path in location.beside if location is not None else ():
        pair = _pair(_read_json(path))
        if pair is not None:
            return {"image": pair}, path.name
    for key in ("pretrained_cfg", "mean"):
        pair = _pair(_of_metadata(checkpoint.metadata, key))
        if pair is not None:
            return {"image": pair}, "the file's metadata"
    for key, mean in checkpoint.numbers.items():
        for first, second in _NAMES:
            parent, _, name = key.rpartition(".")
            std = checkpoint.numbers.get(f"{parent}.{second}" if parent else second)
            if name == first and std is not None and _fits(mean, std):
                return {"image": (mean, std)}, f"{parent or 'the file'} beside the weights"
    return {}, ""


def _of_card(card: Mapping[str, Any]) -> Normalization:
    streams = card.get("streams")
    pairs = {name: _pair(own) for name, own in streams.items()} if isinstance(streams, Mapping) else {}
    return {name: pair for name, pair in pairs.items() if pair is not None}


def _of_metadata(metadata: Mapping[str, str], key: str) -> Any:
    try:
        if key != "mean":
            return json.loads(metadata.get(key, "null"))
        return {name: json.loads(metadata.get(name, "null")) for name in ("mean", "std")}
    except ValueError:
        return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged ({error}); restore it, or name the file of weights by itself") from error


def _pair(content: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Read both from a mapping, or from its ``pretrained_cfg``."""
    if not isinstance(content, Mapping):
        return None
    if content.get("do_normalize") is False:
        return None
    for first, second in _NAMES:
        mean, std = as_numbers(content.get(first)), as_numbers(content.get(second))
        if mean and std and _fits(mean, std):
            return mean, std
    return _pair(content.get("pretrained_cfg"))


def _fits(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Return whether these are plausible for values in 0..1."""
    return len(mean) == len(std) and all(-1 <= m <= 1 for m in mean) and all(0 < s <= 1 for s in std)


def describe(pair: tuple[tuple[float, ...], tuple[float, ...]]) -> str:
    """Format mean and standard deviation."""
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in pair)
    return f"mean {mean} and std {std}"
