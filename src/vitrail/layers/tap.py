"""The tap: reports the mixing weights of a layer to a consumer, at no cost without one.

A tap is a plain object on a layer: it has no parameters and leaves no key in a state dict. While a consumer
is set the tap is *armed*: the layer computes its mixing weights explicitly and reports them together with
a :class:`TokenLayout`, which describes their rows and columns. :mod:`vitrail.explain` arms and disarms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

# Positions along each axis: rows and columns, of a clip frames (or tubelets) first. Whole numbers; typed so that code
# for images alone can take one where it needs a pair.
Grid = tuple[Any, ...]
LayoutKind = Literal["global", "window", "grid", "cross", "pool", "mix", "fuse", "merge", "slices", "match"]


@dataclass(frozen=True)
class TokenLayout:
    """Rows (queries) and columns (keys) of a matrix of mixing weights.

    Attributes:
        kind: ``global`` self-attention; ``window`` or ``grid`` self-attention inside groups of tokens;
            ``cross`` attention from one stream to another; ``pool``, each row a weighting of all tokens
            (TokenLearner); ``mix``, each row the learned tokens that one of as many others was made of, by size,
            and ``fuse``, each row how much of each of those one token took up (TokenFuser); ``merge``, each row the
            neighbours that one token was made of; ``slices``, each row the tokens of one slice of time that one token
            was made of, those of its prefix first; ``match``, each row the tokens without prefix that one token was
            averaged from (token merging).
        query_grid: Height and width of the queries' grid without prefix tokens, for a clip time first; None when they
            have no grid.
        key_grid: The same for the keys.
        num_prefix: Class and other tokens before the grid, in rows and columns alike; before each group of a
            ``window`` layout.
        window: Height and width of a group, for ``window`` and ``grid``; for a clip time first.
        shift: Rows and columns by which the windows were shifted.
        padding: Rows and columns appended at the bottom and right before grouping.
        pad_after_shift: Whether they were appended after the shift.
    """

    kind: LayoutKind
    query_grid: Grid | None = None
    key_grid: Grid | None = None
    num_prefix: int = 0
    window: Grid | None = None
    shift: Grid = (0, 0)
    padding: Grid = (0, 0)
    pad_after_shift: bool = False


Consumer = Callable[[Tensor, TokenLayout], None]


class AttentionTap:
    """Reports a layer's mixing weights to its consumer, if it has one."""

    __slots__ = ("consumer",)

    def __init__(self) -> None:
        self.consumer: Consumer | None = None

    @property
    def armed(self) -> bool:
        """Whether there is a consumer."""
        return self.consumer is not None

    def report(self, weights: Tensor, layout: TokenLayout) -> None:
        """Report the weights; does nothing without a consumer.

        Args:
            weights: Shape ``(B, heads, queries, keys)`` for attention (``B`` times the number of groups for
                ``window`` and ``grid``), ``(B, queries, keys)`` for the other kinds.
            layout: Description of the rows and columns.
        """
        if self.consumer is not None:
            self.consumer(weights, layout)

    def __deepcopy__(self, memo: dict[int, object]) -> AttentionTap:
        # The copy of an armed tap is not armed.
        return AttentionTap()

    def __reduce__(self) -> tuple[type[AttentionTap], tuple[()]]:
        return AttentionTap, ()


def named_taps(module: nn.Module) -> dict[str, AttentionTap]:
    """Return the taps of a module and of all modules in it, by the names of the layers that own them."""
    taps = {name: getattr(layer, "tap", None) for name, layer in module.named_modules()}
    return {name: tap for name, tap in taps.items() if isinstance(tap, AttentionTap)}
