"""Streams of selected bands, in a given order."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence, Set

import torch
from torch import Tensor

from vitrail.data.sources.base import ImageSource, WrappedSource, to_unit
from vitrail.data.stored_values import join_bands
from vitrail.errors import ConfigError, closest


class ChosenBands(WrappedSource):
    """Source whose streams are selected bands of another source.

    Args:
        source: The other.
        image: Names of the image stream's bands, in order; all of the source's own when not given.
        spectral: Names of the spectral stream's; those of the source's own when not given, no stream when empty. In
            both a name with * or ? stands for all that match and are not taken yet.

    Raises:
        ConfigError: A band that the images do not have, or that two streams of the source have.
    """

    def __init__(self, source: ImageSource, image: Sequence[str] | None, spectral: Sequence[str] | None) -> None:
        super().__init__(source)
        positions: dict[str, tuple[str, int]] = {}
        for stream, names in source.bands.items():
            for i, name in enumerate(names):
                if name in positions:
                    raise ConfigError(f"the band {name!r} is in both files of an image; give it two names")
                positions[name] = (stream, i)
        # A band named explicitly belongs to its stream; patterns select from the rest.
        taken = {name for name in (*(image or ()), *(spectral or ())) if not _is_pattern(name)}
        own = source.bands.get("spectral", ())
        chosen = {"image": () if image is None else _choose(image, positions, taken)}
        if spectral:
            # Without a choice for the image, its own bands are not there for patterns to take from a second file's.
            kept = set(source.bands["image"]) - taken if image is None and own else set()
            chosen["spectral"] = _choose(spectral, positions, taken, kept)
        elif own and spectral is None:
            chosen["spectral"] = tuple(band for band in own if band not in taken)
        if image is None:
            chosen["image"] = tuple(band for band in source.bands["image"] if band not in taken)
        if not all(chosen.values()):
            raise ConfigError("no band is left for one of the streams; check data.bands.use and data.spectral.use")
        self.bands = chosen
        self._positions = {stream: [positions[name] for name in names] for stream, names in chosen.items()}
        waves = {
            name: nm
            for stream, values in source.wavelengths.items()
            for name, nm in zip(source.bands[stream], values, strict=True)
        }
        self.wavelengths = {
            stream: tuple(waves[name] for name in names)
            for stream, names in chosen.items()
            if all(name in waves for name in names)
        }

        self.values = {
            stream: join_bands([source.values[origin].chosen([i]) for origin, i in own])
            for stream, own in self._positions.items()
            if all(origin in source.values for origin, _ in own)
        }

    def change(self, streams: dict[str, Tensor]) -> dict[str, Tensor]:
        """Select the bands."""
        return {stream: _gather(streams, positions) for stream, positions in self._positions.items()}


def _is_pattern(name: str) -> bool:
    return "*" in name or "?" in name


def _choose(
    wanted: Sequence[str], known: dict[str, tuple[str, int]], taken: set[str], kept: Set[str] = frozenset()
) -> tuple[str, ...]:
    """Resolve names in order; patterns add their bands to ``taken`` and skip those in ``kept``."""
    names: list[str] = []
    for name in wanted:
        if not _is_pattern(name):
            if name not in known:
                same = [band for band in known if band.casefold() == name.casefold()]
                near = f"; did you mean {same[0]!r}?" if same else closest(name, known)
                raise ConfigError(f"the images have no band {name!r}{near}")
            names.append(name)
            continue
        matches = [band for band in known if fnmatch.fnmatchcase(band, name) and band not in taken | kept]
        if not matches:
            raise ConfigError(f"no band is left that matches {name!r}{closest(name, known)}")
        names += matches
        taken.update(matches)
    return tuple(names)


def _gather(streams: dict[str, Tensor], positions: list[tuple[str, int]]) -> Tensor:
    origins = {stream for stream, _ in positions}
    if len(origins) == 1:
        x = streams[origins.pop()]
        rows = [i for _, i in positions]
        return x if rows == list(range(x.shape[1])) else x[:, rows]
    mixed = {streams[stream].dtype for stream in origins} != {torch.uint8}
    parts = {stream: to_unit(streams[stream]) if mixed else streams[stream] for stream in origins}
    return torch.stack([parts[stream][:, i] for stream, i in positions], dim=1)
