"""What happened when weights were loaded."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LoadReport:
    """The account of one loading, key by key; prints as a short summary.

    Attributes:
        source: Where the checkpoint came from, as detected or given.
        loaded: Our keys that received a tensor.
        renamed: The checkpoint's key -> ours, where they differ.
        resampled: Our key -> what was done to make the tensor fit.
        dropped: The checkpoint's key -> why it was left out.
        missing: Our keys that the checkpoint did not have.
        unexpected: Keys of the checkpoint that no rule or parameter claims.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    resampled: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def note_rename(self, old: str, new: str) -> None:
        """Record a renaming; a key renamed twice keeps its first name."""
        if old == new:
            return
        original = next((first for first, last in self.renamed.items() if last == old), old)
        self.renamed[original] = new

    def __str__(self) -> str:
        """Counts, and every key that is not simply loaded."""
        lines = [
            f"source {self.source}: {len(self.loaded)} loaded, {len(self.renamed)} renamed, "
            f"{len(self.resampled)} resampled, {len(self.dropped)} dropped, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected"
        ]
        lines += [f"  resampled {key}: {how}" for key, how in self.resampled.items()]
        lines += [f"  dropped {key}: {why}" for key, why in self.dropped.items()]
        lines += [f"  missing {key}" for key in self.missing]
        lines += [f"  unexpected {key}" for key in self.unexpected]
        return "\n".join(lines)
