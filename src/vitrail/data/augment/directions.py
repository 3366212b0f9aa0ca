"""Changes that would change the class of a clip: its name says left, right, up, down or a sense of rotation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.config.augment import AugmentSettings, augment_settings
from vitrail.data.notes import print_notes, warn_data
from vitrail.errors import few

_SENSES = frozenset("clockwise counterclockwise anticlockwise".split())
_SIDES = frozenset("left leftward leftwards right rightward rightwards".split())
_HEIGHTS = frozenset("up upward upwards down downward downwards".split())
# Setting -> words of class names that the change would make wrong.
_WORDS = {
    "flip_horizontal": _SIDES | _SENSES,
    "flip_vertical": _HEIGHTS | _SENSES,
    "quarter_turns": _SIDES | _HEIGHTS,
    "rotate": _SIDES | _HEIGHTS,
    "auto": _SIDES | _HEIGHTS,
}
# Degrees beyond which a rotated direction is nearer to another one.
_MOST_DEGREES = 45.0
# What to do with a change that is set; without one here, 0 turns it off.
_REMEDIES = {
    "rotate": f"use {_MOST_DEGREES:g} at most",
    "auto": "use randaugment, which rotates by 30 degrees at most",
}
# Test-time augmentation -> the changes of its views.
_OF_VIEWS = {
    "mirror": ("flip_horizontal",),
    "flips": ("flip_horizontal", "flip_vertical"),
    "turns": ("flip_horizontal", "flip_vertical", "quarter_turns"),
}


def classes_with_directions(setting: str, classes: Sequence[str]) -> list[str]:
    """List the classes whose names contain a direction that a change mirrors or rotates.

    Args:
        setting: "flip_horizontal", "flip_vertical", "quarter_turns", "rotate" or "auto".
        classes: Names of the classes.
    """
    words = {name: re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()) for name in classes}
    return [name for name in classes if not _WORDS[setting].isdisjoint(words[name])]


def warn_mirrored(tta: str, classes: Sequence[str]) -> None:
    """Warn of test-time augmentation whose mirrored or rotated clips belong to another class.

    Args:
        tta: Name of the views.
        classes: Names of the classes.
    """
    wrong = {name for setting in _OF_VIEWS.get(tta, ()) for name in classes_with_directions(setting, classes)}
    if wrong:
        what = "mirrored and rotated" if tta == "turns" else "mirrored"
        named = few([name for name in classes if name in wrong])
        warn_data([f"--tta {tta} averages over {what} clips, and classes say a direction ({named}); leave it out"])


def keep_directions(preset: str, changes: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Turn off the changes of a preset that would change the class of a clip; one that is set stays, with a warning.

    Args:
        preset: Name of the preset (``data.augment``).
        changes: Settings that replace the preset's (``data.augmentation``).
        classes: Names of the classes.

    Returns:
        The settings that replace the preset's, with the others of these changes off.
    """
    result = dict(changes)
    settings = augment_settings(preset, changes)
    for setting in _WORDS:
        named = classes_with_directions(setting, classes)
        value = getattr(settings, setting)
        if not named or not _turns_directions(settings, setting):
            continue
        if setting in changes:
            shown = value if isinstance(value, str) else f"{value:g}"
            warn_data([
                f"data.augmentation.{setting} {shown} flips or rotates clips whose class says a direction, which keep "
                f"that class ({few(named)}); {_REMEDIES.get(setting, 'leave it out, or set it to 0')}"
            ])  # fmt: skip
        else:
            result[setting] = getattr(AugmentSettings, setting)
            print_notes([
                f"{setting} of data.augment {preset} is off: classes say a direction ({few(named)}); "
                f"data.augmentation.{setting} forces it"
            ])  # fmt: skip
    return result


def _turns_directions(settings: AugmentSettings, setting: str) -> bool:
    """Return whether a change is on and, of rotations, large enough to make one direction another."""
    value = getattr(settings, setting)
    if setting == "auto":
        return bool(value == "trivialaugment")  # rotates by up to 135 degrees
    return bool(value > (_MOST_DEGREES if setting == "rotate" else 0))
