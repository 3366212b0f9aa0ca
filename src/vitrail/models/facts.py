"""Facts that a model states of itself: its inputs, its levels, where its tokens begin and end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

Pair = tuple[int, int]


class Tiles(NamedTuple):
    """Pixels of the image that belong to each position of a grid, tiles of one stride.

    Attributes:
        stride: Pixels from one position to the next, height and width.
        offset: Pixels from the image's top left corner to the first tile; negative where it begins in the padding.
    """

    stride: Pair
    offset: Pair = (0, 0)

    def token_at(self, row: int, column: int, grid: Pair) -> int:
        """Row-major index on a grid of the position whose tile holds a pixel; the nearest where none does."""
        at = ((pixel - first) // step for pixel, step, first in zip((row, column), *self, strict=True))
        y, x = (min(max(place, 0), length - 1) for place, length in zip(at, grid, strict=True))
        return y * grid[1] + x


class FeatureInfo(dict[str, Any]):
    """One level of a feature pyramid; also timm's dictionary with ``module``, ``num_chs`` and ``reduction``.

    Args:
        name: The module that produces it.
        channels: Its channels.
        stride: Input pixels per position, height and width.
        offset: Pixels from the image's top left corner to the first position's tile of one stride; not 0 where
            patches overlap, or zeros pad the image on all sides.
    """

    def __init__(self, name: str, channels: int, stride: Pair, offset: Pair = (0, 0)) -> None:
        super().__init__(module=name, num_chs=channels, reduction=stride[0])
        self.name, self.channels, self.stride, self.offset = name, channels, stride, offset

    @property
    def tiles(self) -> Tiles:
        """Pixels that belong to each position."""
        return Tiles(self.stride, self.offset)

    def __reduce__(self) -> tuple[type[FeatureInfo], tuple[str, int, Pair, Pair], None, None, Iterator[Any]]:
        return FeatureInfo, (self.name, self.channels, self.stride, self.offset), None, None, iter(self.items())


class Stream(NamedTuple):
    """One input of a model.

    Attributes:
        name: Its key in a batch (``"image"``, ``"spectral"``).
        chans: Bands.
        size: Height and width that the model was built for; others work too.
    """

    name: str
    chans: int
    size: tuple[int, int]


class LevelTokens(NamedTuple):
    """Tokens at one level of a feature pyramid.

    Attributes:
        map: Those of the grid, shape ``(B, H, W, C)``.
        prefix: Class and other tokens before the grid, shape ``(B, P, C)``; None without any.
    """

    map: Tensor
    prefix: Tensor | None = None


class Ends(NamedTuple):
    """Where the tokens of one stream begin and where they end.

    Attributes:
        stream: Its name.
        first_dim: Width of its first tokens.
        first_stride: Pixels per first token, height and width.
        last_dim: Width of its last tokens.
        last_stride: Pixels per last token.
    """

    stream: str
    first_dim: int
    first_stride: tuple[int, int]
    last_dim: int
    last_stride: tuple[int, int]


def describe(inputs: Sequence[object]) -> str:
    """What a model was given, for an error: the shapes of tensors, the types of other things."""
    said = ("None" if x is None else str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
    return " and ".join(said) or "nothing"
