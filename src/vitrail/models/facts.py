"""Facts that a model states of itself: its inputs, its levels, where its tokens begin and end.

A grid has the axes of the input's modality: rows and columns of an image; frames, rows and columns of a clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vitrail.layers.tap import Grid


class Tiles(NamedTuple):
    """Pixels of the input that belong to each position of a grid, tiles of one stride.

    Attributes:
        stride: Pixels (frames) from one position to the next along each axis of the grid.
        offset: Pixels from the first one of the input to the first tile; negative where it begins in the padding.
    """

    stride: Grid
    offset: Grid

    def token_at(self, pixel: Grid, grid: Grid) -> int:
        """Compute the row-major index of the position whose tile holds a pixel; the nearest where none does."""
        index = 0
        for at, step, first, length in zip(pixel, *self, grid, strict=True):
            index = index * length + min(max((at - first) // step, 0), length - 1)
        return index


class FeatureInfo(dict[str, Any]):
    """One level of a feature pyramid; also timm's dictionary with ``module``, ``num_chs`` and ``reduction``.

    Args:
        name: The module that produces it.
        channels: Its channels.
        stride: Input pixels (frames) per position along each axis of the grid.
        offset: Pixels from the first one of the input to the first position's tile of one stride; not 0 where patches
            overlap, or zeros pad the image on all sides. 0 when not given.
    """

    def __init__(self, name: str, channels: int, stride: Grid, offset: Grid | None = None) -> None:
        super().__init__(module=name, num_chs=channels, reduction=stride[-2:][0])
        self.name, self.channels, self.stride = name, channels, stride
        self.offset = (0,) * len(stride) if offset is None else offset

    @property
    def tiles(self) -> Tiles:
        """Pixels that belong to each position."""
        return Tiles(self.stride, self.offset)

    def __reduce__(self) -> tuple[type[FeatureInfo], tuple[str, int, Grid, Grid], None, None, Iterator[Any]]:
        return FeatureInfo, (self.name, self.channels, self.stride, self.offset), None, None, iter(self.items())


class Stream(NamedTuple):
    """One input of a model.

    Attributes:
        name: Its key in a batch (``"image"``, ``"spectral"``, ``"video"``).
        chans: Bands.
        size: Height and width that the model was built for, with the number of frames before them for a clip; others
            work too.
        channels_last: Whether the bands are the last dimension, as the coordinates of points, instead of the first.
    """

    name: str
    chans: int
    size: Grid
    channels_last: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: ``(chans, *size)``, or ``(*size, chans)``."""
        return (*self.size, self.chans) if self.channels_last else (self.chans, *self.size)

    def size_of(self, x: Tensor) -> Grid:
        """Return the size of a batch of inputs without its batch and channel dimensions."""
        return tuple(x.shape[1:-1] if self.channels_last else x.shape[2:])


def resized_streams(streams: tuple[Stream, ...], img_size: tuple[int, int] | None) -> tuple[Stream, ...]:
    """Return streams at another image size; those of another size than the first one keep theirs.

    Args:
        streams: Streams of a model.
        img_size: Height and width; the streams as they are without it.
    """
    if img_size is None:
        return streams
    own = streams[0].size
    size = (*own[:-2], *img_size)
    return tuple(stream._replace(size=size) if stream.size == own else stream for stream in streams)


class LevelTokens(NamedTuple):
    """Tokens at one level of a feature pyramid.

    Attributes:
        map: Tokens of the grid, shape ``(B, *grid, C)``, ``(B, H, W, C)`` for images.
        prefix: Class and other tokens before the grid, shape ``(B, P, C)``; None without any.
    """

    map: Tensor
    prefix: Tensor | None = None


class Ends(NamedTuple):
    """Widths and strides of the first and last tokens of one stream.

    Attributes:
        stream: Its name.
        first_dim: Width of its first tokens.
        first_stride: Pixels per first token along each axis of the grid.
        last_dim: Width of its last tokens.
        last_stride: Pixels per last token.
    """

    stream: str
    first_dim: int
    first_stride: Grid
    last_dim: int
    last_stride: Grid


def describe(inputs: Sequence[object]) -> str:
    """Describe a model's inputs for an error: the shapes of tensors, the types of other things."""
    said = ("None" if x is None else str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
    return " and ".join(said) or "nothing"
