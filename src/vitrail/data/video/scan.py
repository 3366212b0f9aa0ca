"""Frames of clips decoded once, each to its end: damage, and thumbnails for the search of copies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from vitrail.data.threads import map_in_threads
from vitrail.data.thumbnails import SIDE, Thumbnails, thumbnail_of_stored
from vitrail.data.video.decode import each_frame_checked
from vitrail.data.video.source import VideoSource, has_times
from vitrail.errors import DataError

# Thumbnails of a clip: at most so many, fewer where all clips together would exceed the other number, never fewer than
# the last.
_MOST, _ALTOGETHER, _LEAST = 256, 1 << 19, 16
# Grey levels by which thumbnails of a clip without motion may differ.
_STILL = 2
# Seconds: what rounding may add to a time.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ScannedClip:
    """Content of a clip, decoded to its end.

    Attributes:
        times: Seconds of each thumbnail from the start of the clip, in order, shape ``(F,)``.
        small: Gray thumbnails at equal distances in time, shape ``(F, 32, 32)``.
        duration: Length in seconds.
        rate: Mean frames a second of its file; None where it has no times of its own, and none are given.
        fault: Damage; "" where all frames are sound.
    """

    times: npt.NDArray[np.float64]
    small: Thumbnails
    duration: float
    rate: float | None
    fault: str = ""


@dataclass(frozen=True)
class ClipFacts:
    """Facts of the clips of a data set that images do not have.

    Attributes:
        damaged: Clips with damaged frames, with the fault.
        still: Clips in which nothing moves.
        rates: Frames a second of the files, rounded from 10 on, and how many clips have each; the most frequent first.
        durations: Shortest, median and longest clip in seconds; None where no clip has times.
    """

    damaged: list[tuple[str, str]]
    still: list[str]
    rates: list[tuple[float, int]]
    durations: tuple[float, float, float] | None


def clip_facts(keys: Sequence[str], clips: Sequence[ScannedClip]) -> ClipFacts:
    """Collect the facts of clips.

    Args:
        keys: Their names.
        clips: Scanned clips, one per key.
    """
    pairs = list(zip(keys, clips, strict=True))
    timed = [(clip.duration, clip.rate) for clip in clips if clip.rate is not None]
    lengths = np.array([length for length, _ in timed])
    return ClipFacts(
        damaged=[(key, clip.fault) for key, clip in pairs if clip.fault],
        still=[key for key, clip in pairs if not clip.fault and _moves(clip.small) <= _STILL],
        rates=Counter(_rounded(rate) for _, rate in timed).most_common(),
        durations=(float(lengths.min()), float(np.median(lengths)), float(lengths.max())) if timed else None,
    )


def _rounded(rate: float) -> float:
    """Round a rate to a whole number from 10 on, to two digits below."""
    return round(rate) if rate >= 10 else float(f"{rate:.2g}")


def _moves(small: Thumbnails) -> int:
    """Return the largest change of a pixel, in grey levels."""
    return int((small.max(0) - small.min(0)).max()) if len(small) else 0


def scan_clips(source: VideoSource, rows: Sequence[int]) -> list[ScannedClip]:
    """Decode clips to their ends, several files at a time, each file once for all of its clips.

    Args:
        source: The clips.
        rows: Indices of those to decode.
    """
    found = _scan(source, rows, min(_MOST, max(_LEAST, _ALTOGETHER // max(1, len(rows)))), None)
    return [found[row] for row in rows]


def scan_clips_within(source: VideoSource, rows: Sequence[int], seconds: float) -> dict[int, ScannedClip]:
    """Decode as many clips to their ends as some time allows, with few thumbnails of each.

    Args:
        source: The clips.
        rows: Indices of those to decode, in this order.
        seconds: The time, at the end of which files that are not decoded to their ends are left out.

    Returns:
        Row -> its clip.
    """
    return _scan(source, rows, _LEAST, time.monotonic() + seconds)


def _scan(source: VideoSource, rows: Sequence[int], most: int, until: float | None) -> dict[int, ScannedClip]:
    files: dict[Path, list[int]] = {}
    for row in rows:
        files.setdefault(source.video(row).path, []).append(row)
    parts = map_in_threads(lambda own: _scan_file(source, own, most, until), list(files.values()))
    shown = tqdm(parts, "decoding", total=len(files), unit="file", leave=False, disable=None)
    return dict(pair for part in shown for pair in part)


def _scan_file(
    source: VideoSource, rows: Sequence[int], most: int, until: float | None
) -> list[tuple[int, ScannedClip]]:
    """Decode a file once for the clips that are parts of it; return each with its row, nothing once the time is up."""
    index = source.video(rows[0])
    times = np.array(index.times)
    timed = len(times) > 1 and has_times(source.config, index.path)
    own = {row: _spread(np.flatnonzero(_inside(times, source.span(row))), most) for row in rows}
    wanted = {number for numbers in own.values() for number in numbers}
    small: dict[int, Thumbnails] = {}
    damaged = np.zeros(len(times), dtype=bool)
    decoded, reason = 0, ""
    try:
        for number, (_, read, corrupt) in enumerate(each_frame_checked(index, "gray")):
            if until is not None and time.monotonic() > until:
                return []
            damaged[number] = corrupt
            if number in wanted:
                small[number] = thumbnail_of_stored(read().numpy(), None)
            decoded = number + 1
    except DataError as error:
        reason = f" ({str(error).removeprefix(f'{index.path} ').removeprefix('cannot be decoded: ')})"
    cut = "ends before its last byte, as a truncated file does" if index.truncated else ""
    found = []
    for row, numbers in own.items():
        start, end = source.span(row)
        inside = _inside(times, (start, end))
        fault = cut
        if inside[decoded:].any():
            seconds = f"{times[decoded - 1] if decoded else 0.0:.2f} s of {index.duration:.2f} s"
            fault = f"can be decoded to {seconds if timed else f'frame {decoded} of {len(times)}'}{reason}"
        elif (damaged & inside).any():
            first = times[(damaged & inside).argmax()]
            fault = f"has damaged frames ({(damaged & inside).sum()} of {inside.sum()}, the first at {first:.2f} s)"
        good = [number for number in numbers if number in small]
        frames = np.stack([small[number] for number in good]) if good else np.zeros((0, SIDE, SIDE), dtype=np.uint8)
        found.append((row, ScannedClip(times[good] - start, frames, end - start, index.rate if timed else None, fault)))
    return found


def _inside(times: npt.NDArray[np.float64], span: tuple[float, float]) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (times >= span[0] - _ROUNDING) & (times < span[1] - _ROUNDING)
    return inside


def _spread(numbers: npt.NDArray[np.int64], most: int) -> list[int]:
    chosen = np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(np.int64)
    spread: list[int] = numbers[chosen].tolist()
    return spread
