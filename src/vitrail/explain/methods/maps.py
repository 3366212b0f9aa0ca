"""Results of explanation methods: maps by stream, and their interpolation to pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import UnknownNameError, closest
from vitrail.layers.tap import Grid
from vitrail.models.facts import Tiles


@dataclass(frozen=True, eq=False)
class StreamMap:
    """Relevance of one input.

    Attributes:
        map: Shape ``(B, H, W)``, at the input's resolution; for a clip ``(B, T, H, W)``.
        tokens: Shape ``(B, h, w)``, on the method's own grid; those of a rollout sum to one. For a clip
            ``(B, t, h, w)``.
        share: This input's share of the total relevance, shape ``(B,)``; None for a method without shares.
        parts: Maps of the parts (heads, learned tokens), shape ``(B, parts, h, w)``; None for a method without parts.
    """

    map: Tensor
    tokens: Tensor
    share: Tensor | None = None
    parts: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Explanation(Mapping[str, StreamMap]):
    """Maps by stream, with the method that computed them.

    Attributes:
        streams: Stream -> its maps.
        method: Name of the method.
        target: Explained class of each image, shape ``(B,)``; None for a method that explains no class.
        settings: Settings of the method, defaults included.
    """

    streams: dict[str, StreamMap]
    method: str
    target: Tensor | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, stream: str) -> StreamMap:
        if stream not in self.streams:
            raise UnknownNameError(f"no map of the stream {stream!r}{closest(stream, self.streams)}")
        return self.streams[stream]

    def __iter__(self) -> Iterator[str]:
        return iter(self.streams)

    def __len__(self) -> int:
        return len(self.streams)

    @property
    def map(self) -> Tensor:
        """Map of the first stream, shape ``(B, H, W)``."""
        return next(iter(self.streams.values())).map

    @property
    def tokens(self) -> Tensor:
        """Tokens of the first stream, shape ``(B, h, w)``."""
        return next(iter(self.streams.values())).tokens


def as_streams(names: Sequence[str], maps: Sequence[Tensor]) -> dict[str, StreamMap]:
    """Wrap maps of pixels, ``(B, H, W)``, which are their own tokens, in single precision."""
    maps = [x.float() for x in maps]
    return {name: StreamMap(x, x) for name, x in zip(names, maps, strict=True)}


# Linear interpolation along as many axes.
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def upsample(tokens: Tensor, size: Grid, tiles: Tiles | None = None) -> Tensor:
    """Interpolate maps linearly along each axis to pixels.

    Args:
        tokens: Maps, shape ``(B, h, w)``, of a clip ``(B, t, h, w)``.
        size: Size of the result, of as many axes.
        tiles: Pixels of each token. Tiles that extend beyond the image's edge are cropped; where they do not reach it
            (overlapping patches), the map's edge is repeated. By default the tokens cover exactly the image.

    Returns:
        Shape ``(B, *size)``.
    """
    grid = tokens.shape[1:]
    full = size if tiles is None else tuple(count * step for count, step in zip(grid, tiles.stride, strict=True))
    maps = F.interpolate(tokens[:, None], size=full, mode=_LINEAR[len(grid)], align_corners=False)
    if tiles is None:
        return maps[:, 0]
    maps = maps[(slice(None), slice(None), *(slice(max(0, -first), None) for first in tiles.offset))]
    before = [max(0, first) for first in tiles.offset]
    after = [
        max(0, wanted - first - length) for wanted, first, length in zip(size, before, maps.shape[2:], strict=True)
    ]
    if any(before) or any(after):
        sides = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
        maps = F.pad(maps, sides, mode="replicate")
    return maps[:, 0][(slice(None), *(slice(length) for length in size))]
