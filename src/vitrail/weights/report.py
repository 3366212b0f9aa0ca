"""What happened when weights were loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

# A printed report names this many keys of a kind, and counts the rest.
_SHOWN = 12
# Of keys that share a reason, this many are named.
_NAMED = 4


@dataclass
class LoadReport:
    """The account of one loading, key by key; prints as a short summary.

    Attributes:
        source: Where the checkpoint came from, as detected or given.
        loaded: Our keys that received a tensor.
        renamed: The checkpoint's key -> ours, where they differ.
        resampled: Our key -> what was done to make the tensor fit.
        dropped: The checkpoint's key -> why it was left out, which changes no output of the model.
        changes_outputs: The checkpoint's key -> why it was left out, although the checkpoint's model computes with it:
            the outputs differ.
        missing: Our keys that the checkpoint did not have, and that keep what they had.
        unexpected: Keys of the checkpoint that no rule or parameter claims.
        copied: Our key -> our other key whose tensor it received too, because the caller asked for it.
        not_finite: Our key -> how many of its loaded values are infinite or no number.
        notes: What was unpacked or converted on the way.
        key: Path and prefix under which the weights lay in the checkpoint.
        normalization: Mean and standard deviation by which the checkpoint's images were normalised, by stream, in 0..1;
            empty where nothing gives them.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    resampled: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    copied: dict[str, str] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    changes_outputs: dict[str, str] = field(default_factory=dict)
    key: str = ""
    normalization: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)

    def note_rename(self, old: str, new: str) -> None:
        """Record a renaming; a key renamed twice keeps its first name."""
        if old == new:
            return
        original = next((first for first, last in self.renamed.items() if last == old), old)
        self.renamed[original] = new

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Counts, and every key that is not simply loaded (of many that fared alike, the first few)."""
        lines = [
            f"source {self.source}: {len(self.loaded)} loaded, {len(self.renamed)} renamed, "
            f"{len(self.resampled)} resampled, {len(self.dropped) + len(self.changes_outputs)} dropped, "
            f"{len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected"
        ]
        lines += [f"  {note}" for note in self.notes]
        lines += _by_reason("resampled", self.resampled)
        lines += _by_reason("dropped", self.dropped)
        lines += _by_reason("changes outputs: dropped", self.changes_outputs)
        lines += _shortened([f"  copied {key} from {other}" for key, other in self.copied.items()])
        lines += _shortened([f"  missing {key}" for key in self.missing])
        lines += _shortened([f"  unexpected {key}" for key in self.unexpected])
        lines += _shortened(
            [f"  warning: {count} values of {key} are not finite" for key, count in self.not_finite.items()]
        )
        return "\n".join(lines)


def _by_reason(kind: str, reasons: dict[str, str]) -> list[str]:
    """One line a key; keys that share a reason in one line."""
    keys: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        keys.setdefault(reason, []).append(key)
    lines = []
    for reason, group in keys.items():
        shown = group if len(group) <= _NAMED else group[: _NAMED - 1]
        more = f" and {len(group) - len(shown)} more" if len(group) > len(shown) else ""
        lines.append(f"  {kind} {', '.join(shown)}{more}: {reason}")
    return lines


def _shortened(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"    and {len(lines) - _SHOWN} more"]
