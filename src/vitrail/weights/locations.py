"""Find weights: a file, a folder with a model (a run or a saved model), or the Hugging Face hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.config.typed import as_tuples
from vitrail.errors import WeightsError
from vitrail.files import LFS_REMEDY, is_lfs_pointer
from vitrail.weights.hub import HUB_PREFIX, WEIGHTS_FILES, fetch_file, fetch_weights, split_hub_name
from vitrail.weights.shards import is_index, read_index, shard_names

# The two files of a saved model, in a folder of its own or in a run folder.
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"
# Files of Hugging Face and timm with the normalisation of the images.
NORMALISATION_FILES = ("preprocessor_config.json", "config.json")
# Suffixes of files of weights with other names.
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.\w+")


@dataclass(frozen=True)
class Location:
    """A file of weights and the files next to it.

    Attributes:
        weights: The file.
        card: Its model.json, if any.
        beside: Files with the normalisation of the images, if any.
        notes: Choice among several files, for the report.
    """

    weights: Path
    card: Path | None = None
    beside: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """List the files of the weights: one, or an index and its shards.

        Raises:
            WeightsError: The index is damaged, or a shard is missing.
        """
        shards = read_index(self.weights) if is_index(self.weights) else ()
        return (self.weights, *(self.weights.parent / name for name in shards))


def find_weights(where: str | Path) -> Location:
    """Find the file of weights for a path or hub name; downloads files of the hub.

    Args:
        where: A file, a folder with ``model.safetensors`` (and ``model.json``), with ``pytorch_model.bin``, with the
            index and shards of either, or with one file of weights of any name; or ``hf://owner/name[/file]``.

    Raises:
        WeightsError: There is none, the choice is ambiguous, or the hub cannot be reached.
    """
    if isinstance(where, str) and where.startswith(HUB_PREFIX):
        weights = fetch_weights(where)
        if is_index(weights):
            folder = split_hub_name(where)[2]
            parent = f"{folder.rpartition('/')[0]}/" if folder and "/" in folder else ""
            for shard in shard_names(weights):
                if fetch_file(where, parent + shard) is None:
                    raise WeightsError(f"{where} on the hub lacks the shard {shard} that {weights.name} names")
        # Only a whole repository can be a saved model.
        if split_hub_name(where)[2]:
            return Location(weights)
        found = (fetch_file(where, name) for name in NORMALISATION_FILES)
        return Location(weights, fetch_file(where, CARD_FILE), tuple(path for path in found if path is not None))
    path = Path(where)
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise WeightsError(f"no file of weights at {path}; check the path (hf://owner/name takes one from the hub)")
    part = _SHARD.fullmatch(path.name)
    if part is not None and (path.parent / f"{part[1]}{path.suffix}.index.json").is_file():
        raise WeightsError(f"{path} is one shard of several; give the folder {path.parent}, whose index names them all")
    return Location(path)


def _in_folder(folder: Path) -> Location:
    known = [folder / name for name in WEIGHTS_FILES if (folder / name).is_file()]
    files = known or sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    if not files:
        raise WeightsError(
            f"the folder {folder} holds no {WEIGHTS_FILE}, nor another file of weights; give a file of weights or a "
            "finished run"
        )
    if not known and (shards := [path.name for path in files if _SHARD.fullmatch(path.name)]):
        raise WeightsError(
            f"the folder {folder} holds shards ({', '.join(shards[:2])}) without their index, whose name ends in "
            ".index.json; download it too"
        )
    if len(files) > 1 and not known:
        raise WeightsError(
            f"the folder {folder} holds {len(files)} files of weights; give one of them: "
            f"{', '.join(p.name for p in files[:4])}"
        )
    notes = []
    if files[0].name != WEIGHTS_FILE or len(files) > 1:
        others = f", not {' or '.join(p.name for p in files[1:])}" if len(files) > 1 else ""
        notes.append(f"took {files[0].name} of the folder{others}")
    card = folder / CARD_FILE
    beside = tuple(p for p in (folder / name for name in NORMALISATION_FILES) if p.is_file())
    return Location(files[0], card if card.is_file() else None, beside, tuple(notes))


def read_card(card: Path) -> dict[str, Any]:
    """Read a model.json.

    Returns:
        Its content, with ``name`` and ``settings``; lists among the settings are tuples.

    Raises:
        WeightsError: It is damaged, or does not describe a model.
    """
    if is_lfs_pointer(card):
        raise WeightsError(f"{card} is a Git LFS pointer instead of the model's description; {LFS_REMEDY}")
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{card} is damaged ({error}); restore it") from error
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        raise WeightsError(f"{card} does not describe a model: it has no name")
    settings = content.get("settings", {})
    if not isinstance(settings, dict):
        raise WeightsError(f"{card} does not describe a model: its settings are {settings!r}")
    return {**content, "settings": as_tuples(settings)}
