"""Report of loading weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vitrail.errors import plural

# Maximum number of keys of a kind in a printed report.
_SHOWN = 12

# Maximum number of keys named for one reason.
_NAMED = 4


@dataclass
class LoadReport:
    """Outcome for each key of a checkpoint; prints as a short summary.

    Attributes:
        source: Library of the checkpoint, detected or given.
        loaded: Model keys that were loaded.
        renamed: Checkpoint key -> model key, where they differ.
        resampled: Model key -> how the tensor was resampled.
        dropped: Checkpoint key -> reason why it was dropped; the outputs are unaffected.
        changes_outputs: Checkpoint key -> reason why it was dropped although it affects the outputs.
        missing: Model keys that the checkpoint lacks; they keep their values.
        new_head: Model keys of the classifier, kept because a new head was asked for.
        unexpected: Checkpoint keys that match no rule or parameter.
        copied: Model key -> model key whose tensor it received too, on request.
        not_finite: Model key -> number of infinite or NaN values.
        notes: Conversions, and choices among files and candidates.
        key: Path and prefix of the weights in the checkpoint.
        normalization: Mean and standard deviation of the checkpoint's images in 0..1, by stream; empty if unknown.
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
    new_head: list[str] = field(default_factory=list)
    normalization: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)

    def note_rename(self, old: str, new: str) -> None:
        """Record a renaming; a key renamed twice keeps its first name."""
        if old == new:
            return
        original = next((first for first, last in self.renamed.items() if last == old), old)
        self.renamed[original] = new

    def to_dict(self) -> dict[str, Any]:
        """Convert the report to plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Format counts, and the keys that were not simply loaded."""
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
        lines += [f"  new head: the model keeps its own {', '.join(self.new_head)}"] if self.new_head else []
        lines += _shortened([f"  missing {key}" for key in self.missing])
        lines += _shortened([f"  unexpected {key}" for key in self.unexpected])
        lines += _shortened(
            [f"  warning: {plural(count, 'value')} of {key} not finite" for key, count in self.not_finite.items()]
        )
        return "\n".join(lines)


def _by_reason(kind: str, reasons: dict[str, str]) -> list[str]:
    """Format one line per reason, with its keys."""
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
