"""Durations as text."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Format a duration for display: ``45 s``, ``12 min`` or ``3.4 h``.

    Args:
        seconds: Duration in seconds, at least 0.
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
