"""Names of data settings in earlier versions, and their translation in recipes, options and records."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitrail.errors import ConfigError

# Group -> setting -> name in earlier versions, in the part "data".
EARLIER: dict[str, dict[str, str]] = {
    "images": {
        "resize": "resize", "crop_pct": "crop_pct", "max_pixels": "max_pixels",
        "repeated_files": "repeated_files",
    },
    "bands": {
        "names": "band_names", "files": "band_files", "wavelengths": "wavelengths", "use": "bands",
        "allow_constant": "allow_constant",
    },
    "values": {
        "offset": "offset", "range": "range", "nodata": "nodata", "value_type": "value_type",
        "statistics": "statistics",
    },
    "spectral": {
        "derive": "spectral", "path": "spectral_path", "names": "spectral_band_names",
        "wavelengths": "spectral_wavelengths", "use": "spectral_bands", "scale": "spectral_scale",
        "offset": "spectral_offset", "range": "spectral_range", "nodata": "spectral_nodata",
        "value_type": "spectral_value_type",
    },
    "table": {
        "subset": "subset", "image_column": "image_column", "label_column": "label_column",
        "group_column": "group_column", "split_column": "split_column", "separator": "separator", "header": "header",
        "encoding": "encoding", "image_folder": "image_folder", "label_separator": "label_separator",
    },
    "classes": {
        "multi_label": "multi_label", "label_pattern": "label_pattern", "names": "class_names",
        "values": "label_values", "unlabelled_value": "unlabelled_value", "merge": "merge_labels",
        "label_fraction": "label_fraction", "label_seed": "label_seed",
    },
    "arrays": {
        "cube": "cube", "labels": "labels", "layout": "layout", "grid": "grid", "patch": "patch", "stride": "stride",
        "block": "block",
    },
    "leaves": {"num_images": "num_images", "seed": "seed"},
    "splitting": {
        "group": "group", "group_pattern": "group_pattern", "fold": "fold", "num_folds": "num_folds",
        "val_fraction": "val_fraction", "test_fraction": "test_fraction", "check_copies": "check_copies",
    },
    "loader": {"num_workers": "num_workers", "cache": "cache", "sampling": "sampling"},
    "errors": {"on_unreadable": "on_unreadable", "on_band_mismatch": "on_band_mismatch"},
}  # fmt: skip
# Name in earlier versions -> name, both dotted. The settings of the augmentation are a group of their own.
RENAMED = {
    **{f"data.{old}": f"data.{group}.{name}" for group, names in EARLIER.items() for name, old in names.items()},
    "data.augment_settings": "data.augmentation",
}
_OLD = {new: old for old, new in RENAMED.items()}


def rename(dotted: str, value: Any = None) -> str:
    """Translate a dotted name of an earlier version; other names stay.

    Args:
        dotted: Name, for example "data.val_fraction" or "data.augment_settings.mixup".
        value: Its value: a mapping (or its text) makes "data.bands" and "data.spectral" groups, not settings.
    """
    part, *names = dotted.split(".")
    if not names:
        return dotted
    old, rest = f"{part}.{names[0]}", names[1:]
    of_group = names[0] in EARLIER and (rest or isinstance(value, Mapping) or str(value).lstrip().startswith("{"))
    return dotted if of_group or old not in RENAMED else ".".join([RENAMED[old], *rest])


def earlier(dotted: str) -> str:
    """Translate a dotted name into that of earlier versions, in which records and hashes of suites are written."""
    for name in (dotted, dotted.rpartition(".")[0]):
        if name in _OLD:
            return _OLD[name] + dotted.removeprefix(name)
    return dotted


def rename_changes(changes: Mapping[str, Any], where: str = "") -> tuple[dict[str, Any], list[str]]:
    """Translate dotted settings.

    Args:
        changes: Dotted name -> value.
        where: Origin of the settings, for errors; ends in ": ".

    Returns:
        The settings by their names, and a line for each that was renamed.

    Raises:
        ConfigError: A setting is given by both names.
    """
    result: dict[str, Any] = {}
    notes: list[str] = []
    for dotted, value in changes.items():
        name = rename(dotted, value)
        if name in result or (name != dotted and name in changes):
            raise ConfigError(f"{where}{earlier(name)} and {name} are the same setting; keep {name}")
        if name != dotted:
            notes.append(f"{dotted} is now {name}")
        result[name] = value
    return result, notes


def rename_options(words: Sequence[str]) -> list[str]:
    """Translate the options among the words of a command line, and report those that were renamed.

    Args:
        words: Arguments, for example ``["runs/x", "--data.on_unreadable", "skip"]``.

    Raises:
        ConfigError: A setting is given by both names.
    """
    given = {word.partition("=")[0].removeprefix("--"): None for word in words if word.startswith("--data.")}
    renamed, notes = rename_changes(given)
    print_renamed(notes)
    names = {f"--{old}": f"--{new}" for old, new in zip(given, renamed, strict=True)}
    split = [word.partition("=") for word in words]
    return ["".join([names.get(option, option), equals, value]) for option, equals, value in split]


def rename_content(content: Mapping[str, Any], where: str = "") -> tuple[dict[str, Any], list[str]]:
    """Translate the part "data" of a recipe.

    Args:
        content: Part -> setting -> value.
        where: Origin of the recipe, for errors; ends in ": ".

    Returns:
        The recipe with nested groups, and a line for each setting that was renamed.

    Raises:
        ConfigError: A setting is given by both names.
    """
    data = content.get("data")
    if not isinstance(data, Mapping):
        return dict(content), []
    result: dict[str, Any] = {}
    notes: list[str] = []
    for key, value in data.items():
        name = rename(f"data.{key}", value)
        if name != f"data.{key}":
            notes.append(f"data.{key} is now {name}")
        group, _, leaf = name.removeprefix("data.").partition(".")
        given = {leaf: value} if leaf else value
        known = result.get(group)
        if isinstance(given, Mapping) and isinstance(known, dict):
            for twice in sorted(set(given) & set(known)):
                new = f"data.{group}.{twice}"
                raise ConfigError(f"{where}{earlier(new)} and {new} are the same setting; keep {new}")
            known.update(given)
        elif group in result and known is not None and given is not None:
            wrong = given if isinstance(known, dict) else known
            raise ConfigError(f"{where}data.{group} must hold settings (key: value), got {wrong!r}")
        elif known is None:
            result[group] = dict(given) if isinstance(given, Mapping) else given
    return {**content, "data": result}, notes


def print_renamed(notes: Iterable[str]) -> None:
    """Report renamed settings in one line on stderr.

    Args:
        notes: Lines of :func:`rename_changes` or :func:`rename_content`; repeated ones are printed once.
    """
    if text := "; ".join(dict.fromkeys(notes)):
        print(f"warning: {text}", file=sys.stderr)
