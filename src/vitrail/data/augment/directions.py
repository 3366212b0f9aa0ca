"""Flips that would change the class of a clip: its name says left, right, up or down."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.config.augment import augment_settings
from vitrail.data.notes import print_notes, warn_data
from vitrail.errors import few

_TURNS = "clockwise counterclockwise anticlockwise"
# Setting -> words of class names that a flip would make wrong.
_WORDS = {
    "flip_horizontal": frozenset(f"left leftward leftwards right rightward rightwards {_TURNS}".split()),
    "flip_vertical": frozenset(f"up upward upwards down downward downwards {_TURNS}".split()),
}


def classes_with_directions(setting: str, classes: Sequence[str]) -> list[str]:
    """List the classes whose names say a direction that a flip reverses.

    Args:
        setting: "flip_horizontal" or "flip_vertical".
        classes: Names of the classes.
    """
    words = {name: re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()) for name in classes}
    return [name for name in classes if not _WORDS[setting].isdisjoint(words[name])]


def warn_mirrored(tta: str, classes: Sequence[str]) -> None:
    """Warn of test-time augmentation whose mirrored clips belong to another class.

    Args:
        tta: Name of the views.
        classes: Names of the classes.
    """
    named = classes_with_directions("flip_horizontal", classes)
    if named and tta in ("mirror", "flips", "turns"):
        warn_data(
            [f"--tta {tta} averages over mirrored clips, and classes say a direction ({few(named)}); leave it out"]
        )


def keep_directions(preset: str, changes: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Turn off the flips of a preset that would change the class of a clip; a flip that is set stays, with a warning.

    Args:
        preset: Name of the preset (``data.augment``).
        changes: Settings that replace the preset's (``data.augmentation``).
        classes: Names of the classes.

    Returns:
        The settings that replace the preset's, with these flips at 0.
    """
    result = dict(changes)
    for setting in _WORDS:
        named = classes_with_directions(setting, classes)
        probability = getattr(augment_settings(preset, changes), setting)
        if not named or not probability:
            continue
        if setting in changes:
            warn_data([
                f"data.augmentation.{setting} {probability:g} flips clips whose class says a direction, which keep "
                f"that class ({few(named)}); leave it out, or set it to 0"
            ])  # fmt: skip
        else:
            result[setting] = 0.0
            print_notes([
                f"{setting} of data.augment {preset} is off: classes say a direction ({few(named)}); "
                f"data.augmentation.{setting} forces it"
            ])  # fmt: skip
    return result
