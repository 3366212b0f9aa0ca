"""Names of a command's inputs in its errors and warnings, which are written for images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrail.errors import VitrailError


def name_inputs(text: str, arguments: Sequence[str]) -> str:
    """Name the inputs of a command by their modality: clips or point clouds.

    Args:
        text: An error or a warning about data.
        arguments: Arguments of the command; its run folders, recipe and settings determine the kind of the inputs.
    """
    if not re.search("image", text, re.IGNORECASE):
        return text

    from vitrail.models.modality import MODALITIES, reword
    from vitrail.runs.folder import RunFolder

    try:
        runs = [run for word in arguments if (run := RunFolder(word)).card.is_file()]
        if runs:
            names = [name for run in runs for name in run.own_names]
            return reword(text, *(run.modality for run in runs), names=frozenset(names))
        source = _source(arguments)
    except (VitrailError, OSError):
        # The text itself is about the damaged file.
        return text
    if source is None:
        return text

    from vitrail.data.sources.opening import first_stream

    return reword(text, MODALITIES[first_stream(source)])


def _source(arguments: Sequence[str]) -> str | None:
    """Return data.source as given by an option, else by the recipe, also that of a suite; None without."""
    option = "--data.source"
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == option or word.startswith(f"{option}="):
            return following if word == option else word.partition("=")[2]
    file = next((Path(word) for word in arguments if word.endswith((".yaml", ".yml"))), None)
    return None if file is None else _source_of(file)


def _source_of(file: Path) -> str | None:
    from vitrail.config.load import read_yaml

    content: Mapping[str, Any] = read_yaml(file)
    data, base = content.get("data"), content.get("recipe")
    if isinstance(data, Mapping):
        return str(data["source"]) if "source" in data else None
    # Recipes of a suite lie relative to its file.
    return _source_of(file.parent / base) if isinstance(base, str) and (file.parent / base) != file else None
