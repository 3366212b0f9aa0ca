"""Results of explanation methods: maps by stream, and their interpolation to pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import UnknownNameError, closest
from vitrail.models.facts import Tiles


@dataclass(frozen=True, eq=False)
class StreamMap:
    """Relevance of one input.

    Attributes:
        map: Shape ``(B, H, W)``, at the input's resolution.
        tokens: Shape ``(B, h, w)``, on the method's own grid; those of a rollout sum to one.
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


def upsample(tokens: Tensor, size: tuple[int, int], tiles: Tiles | None = None) -> Tensor:
    """Interpolate maps bilinearly to pixels.

    Args:
        tokens: Maps, shape ``(B, h, w)``.
        size: Height and width of the result.
        tiles: Pixels of each token. Tiles that extend beyond the image's edge are cropped; where they do not reach it
            (overlapping patches), the map's edge is repeated. By default the tokens cover exactly the image.

    Returns:
        Shape ``(B, *size)``.
    """
    if tiles is None:
        return F.interpolate(tokens[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    (height, width), (down, right) = tiles
    full = (tokens.shape[1] * height, tokens.shape[2] * width)
    maps = F.interpolate(tokens[:, None], size=full, mode="bilinear", align_corners=False)
    maps = maps[:, :, max(0, -down) :, max(0, -right) :]
    down, right = max(0, down), max(0, right)
    below, beside = (max(0, size[0] - down - maps.shape[2]), max(0, size[1] - right - maps.shape[3]))
    if down or right or below or beside:
        maps = F.pad(maps, (right, beside, down, below), mode="replicate")
    return maps[:, 0, : size[0], : size[1]]
