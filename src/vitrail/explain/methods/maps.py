"""Results of explanation methods: maps by stream, and their interpolation to pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import UnknownNameError, closest


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


def upsample(tokens: Tensor, size: tuple[int, int], stride: tuple[int, int] | None = None) -> Tensor:
    """Interpolate maps bilinearly to pixels.

    Args:
        tokens: Maps, shape ``(B, h, w)``.
        size: Height and width of the result.
        stride: Pixels per token. The last tokens of an image whose size is not a multiple of the stride extend beyond
            its edge, and are cropped. Overlapping patches reach beyond their strides: the map is centred, and its
            edges repeated. By default the tokens cover exactly the image.

    Returns:
        Shape ``(B, *size)``.
    """
    full = size if stride is None else (tokens.shape[1] * stride[0], tokens.shape[2] * stride[1])
    maps = F.interpolate(tokens[:, None], size=full, mode="bilinear", align_corners=False)[:, 0]
    short = [max(0, length - got) for length, got in zip(size, full, strict=True)]
    if any(short):
        (down, right), (tall, wide) = (length // 2 for length in short), short
        maps = F.pad(maps[:, None], (right, wide - right, down, tall - down), mode="replicate")[:, 0]
    return maps[:, : size[0], : size[1]]
