"""The answers a page begins with: the training, its result, the cautions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitrail.figures.tables import escaped

# Cautions in sight; the others are folded away below them.
_MOST_IN_SIGHT = 4


@dataclass(frozen=True)
class Answer:
    """One question of a reader and its answer from the records.

    Attributes:
        question: The question.
        lines: Plain sentences.
    """

    question: str
    lines: Sequence[str]

    @property
    def in_sight(self) -> list[str]:
        """The sentences that a page shows at once."""
        return list(self.lines[:_MOST_IN_SIGHT])

    @property
    def folded(self) -> list[str]:
        """The sentences that a page shows on demand."""
        return list(self.lines[_MOST_IN_SIGHT:])


def brief_markdown(answers: Sequence[Answer]) -> str:
    """Format the answers as Markdown."""
    parts = []
    for answer in answers:
        lines = [escaped(line) for line in answer.lines]
        shown = lines[0] if len(lines) == 1 else "\n\n" + "\n".join(f"- {line}" for line in lines)
        parts.append(f"**{answer.question}** {shown}")
    return "\n\n".join(parts)


def per_hundred(share: float, what: str) -> str:
    """Write a share as a frequency: "about 94 of 100 images"; exact at none and all.

    Args:
        share: Share, 0 to 1.
        what: Name of the whole, in the plural ("images").
    """
    if share in (0, 1):
        return f"none of the {what}" if share == 0 else f"all {what}"
    rounded = round(100 * share)
    if rounded in (0, 100):
        return f"fewer than 1 of 100 {what}" if rounded == 0 else f"more than 99 of 100 {what}"
    return f"about {rounded} of 100 {what}"


def per_hundred_between(low: float, high: float) -> str:
    """Write an interval of a share, rounded outwards: "between 91 and 96 of 100".

    Args:
        low: Lower end, from 0 to 1.
        high: Upper end, from 0 to 1.
    """
    # A share that is 0.29 in decimals is a little more or less in binary.
    return f"between {math.floor(round(100 * low, 6))} and {math.ceil(round(100 * high, 6))} of 100"


def lie(number: int) -> str:
    """Return the verb that agrees with a number of things."""
    return "lies" if number == 1 else "lie"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Join names in a sentence, the first of them where there are many."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
