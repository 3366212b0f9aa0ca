"""Time of an export: which optional steps still fit into its budget, and which are left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vitrail.durations import format_duration

# Share of the budget after which nothing more is converted or quantised: the rest is for timed calls and comparisons.
BUILDING = 0.6
# Seconds of a conversion over those to OpenVINO: ONNX took 1.6 (ViT-S) to 3.6 (Swin-T) times as long, and the compiler
# 7 minutes for a ViT-Ti.
_OVER_OPENVINO = {"openvino": 1.0, "onnx": 2.5, "torch": 0.2, "inductor": 20.0}


@dataclass(frozen=True)
class LeftOut:
    """A step that was left out.

    Attributes:
        what: The step.
        seconds: Expected time, from steps of its kind; None before any was seen.
    """

    what: str
    seconds: float | None

    def __str__(self) -> str:
        return self.what if self.seconds is None else f"{self.what} (about {format_duration(self.seconds)})"


class Budget:
    """Time for the optional steps of an export, from its construction on.

    Args:
        seconds: Time for all; infinite for no limit.
        now: The clock.

    Attributes:
        left_out: Steps that were left out, in order.
        longest: Longest time of each kind of step.
        converted: Whether a candidate has been converted: the first one always is.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._now, self._begun = now, now()
        self.left_out: list[LeftOut] = []
        self.longest: dict[str, float] = {}
        self.converted = False

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return self._now() - self._begun

    def left(self, share: float = 1.0) -> float:
        """Return the seconds that are left of a share of the budget, at least 0."""
        return max(0.0, share * self.seconds - self.spent)

    def fits(self, seconds: float | None = None, share: float = 1.0) -> bool:
        """Return whether a step of this duration ends within a share of the budget; unknown counts as 0."""
        return (seconds or 0.0) < self.left(share)

    @contextmanager
    def step(self, kind: str) -> Iterator[None]:
        """Time a step."""
        begun = self._now()
        try:
            yield
        finally:
            self.longest[kind] = max(self.longest.get(kind, 0.0), self._now() - begun)

    def leave_out(self, what: str, seconds: float | None) -> str:
        """Record a step that is left out, and return the reason in words."""
        left_out = LeftOut(what, seconds)
        if left_out not in self.left_out:
            self.left_out.append(left_out)
        return f"left out, --budget {format_duration(self.seconds)} is spent: {left_out}"

    def of_conversion(self, engine: str) -> float | None:
        """Expect the seconds of a conversion to an engine, from those seen; None before any."""
        seen = {other: self.longest.get(conversion(other)) for other in _OVER_OPENVINO}
        own = seen[engine]
        if own is not None:
            return own
        others = [taken / _OVER_OPENVINO[other] for other, taken in seen.items() if taken is not None]
        return max(others) * _OVER_OPENVINO[engine] if others else None

    def overrun(self) -> str:
        """Describe the overrun of the budget and the longest step; empty where it was kept."""
        if self.spent <= self.seconds or not self.longest:
            return ""
        name, taken = max(self.longest.items(), key=lambda one: one[1])
        return (
            f"the export took {format_duration(self.spent)} of --budget {format_duration(self.seconds)}: the first "
            f"candidate is completed, and a step that has begun ends; the longest was {name} "
            f"({format_duration(taken)})"
        )

    def to_json(self) -> dict[str, Any]:
        """Describe the budget for export.json."""
        return {"seconds": self.seconds, "spent": self.spent, "left_out": [vars(one) for one in self.left_out]}


def conversion(engine: str) -> str:
    """Return the kind of step that converts to an engine."""
    return f"conversion to {engine}"
