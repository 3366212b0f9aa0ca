"""Frames of a video file by their time, or of a folder of pictures; PyAV decodes (extra ``video``)."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.data.band_files import natural_order
from vitrail.data.images import image_size, read_image
from vitrail.data.video.sampling import Position, clip_times
from vitrail.data.video.truncation import is_truncated
from vitrail.errors import DataError, plural
from vitrail.extras import import_extra

VIDEOS = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .ts .gif".split())
PICTURES = frozenset(".jpg .jpeg .png .bmp .webp .tif .tiff".split())
# Frames a second of a folder of pictures whose rate is not given: it decides nothing but the times that are displayed.
_FOLDER_RATE = 25.0
# Seconds: what rounding may add to a time.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class VideoIndex:
    """Frames of a video, counted once.

    Attributes:
        path: The file, or the folder of pictures.
        times: Time of each frame in seconds, from 0, in order.
        stamps: Time stamp of each frame as the file has it; the pictures' names for a folder.
        size: Height and width of a frame.
        unit: Seconds of one unit of the stamps; of a folder those of a frame.
        truncated: Whether the file ends before the bytes that it declares.
    """

    path: Path
    times: tuple[float, ...]
    stamps: tuple[Any, ...]
    size: tuple[int, int]
    unit: float = 1.0
    truncated: bool = False

    @classmethod
    def of_stamps(
        cls, path: Path, stamps: Sequence[int], unit: float, size: tuple[int, int], truncated: bool = False
    ) -> VideoIndex:
        """Make the index of a file from the time stamps of its frames, in order."""
        return cls(path, tuple((s - stamps[0]) * unit for s in stamps), tuple(stamps), size, unit, truncated)

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        count = len(self.times)
        step = self.times[-1] / (count - 1) if count > 1 else 1 / _FOLDER_RATE
        return self.times[-1] + step

    @property
    def rate(self) -> float:
        """Mean frames a second."""
        return len(self.times) / self.duration

    def choose(self, count: int, start: float, end: float, rate: float | None, at: Position = 0.5) -> list[int]:
        """Choose frames of a clip by time, so that files of different frame rates show the same motion.

        Arguments as for :func:`~vitrail.data.video.sampling.clip_times`.

        Returns:
            Index of the frame that is shown at each time; the first or last one beyond the ends of the clip. A frame
            that begins at ``end`` belongs to the clip after it.
        """
        first = self._shown_at(start)
        last = max(first, bisect.bisect_left(self.times, end - _ROUNDING) - 1)
        return [min(max(self._shown_at(t), first), last) for t in clip_times(count, start, end, rate, at)]

    def _shown_at(self, time: float) -> int:
        return max(0, bisect.bisect_right(self.times, time + _ROUNDING) - 1)


def index_video(path: Path, folder_rate: float | None = None) -> VideoIndex:
    """Count the frames of a video file or folder of pictures.

    Args:
        path: The file, or the folder, whose pictures are in the natural order of their names (2 before 10).
        folder_rate: Frames a second of a folder, which has no times.

    Raises:
        DataError: Nothing to decode; the message says why.
    """
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.suffix.lower() in PICTURES), key=_by_number)
        if not files:
            raise DataError(f"{path} has no pictures")
        size = image_size(files[0])
        rate = folder_rate or _FOLDER_RATE
        return VideoIndex(path, tuple(i / rate for i in range(len(files))), tuple(files), size, 1 / rate)
    av = import_extra("av", "video")
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(path, container)
            unit = float(stream.time_base or 1)
            # Edit lists discard the frames between a key frame and the start of a part that was cut by stream copy.
            packets = (p for p in container.demux(stream) if p.size and not p.is_discard)
            stamps = sorted(p.pts for p in packets if p.pts is not None)
        with av.open(str(path)) as container:
            frames = container.decode(_video_stream(path, container))
            first = next(frames, None)
            if len(stamps) < 2 or len(set(stamps)) < len(stamps):
                # A file whose packets have no times; some have their first frame in the last one.
                decoded = itertools.chain([] if first is None else [first], frames)
                stamps = sorted({frame.pts for frame in decoded if frame.pts is not None})
        truncated = is_truncated(path)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path} cannot be decoded: {_reason(error)}") from error
    if first is None or not stamps:
        raise DataError(f"{path} has no frames")
    size = (first.width, first.height) if _quarter_turns(first) % 2 else (first.height, first.width)
    return VideoIndex.of_stamps(path, stamps, unit, size, truncated)


def read_frames(
    index: VideoIndex, chosen: Sequence[int], color: str, fit: Callable[[Tensor], Tensor] | None = None
) -> list[Tensor]:
    """Decode frames.

    The file is read from the key frame before the first one on; where a seek lands behind it, from the start.

    Args:
        index: The video.
        chosen: Indices of frames, in order; one may come several times.
        color: "rgb" or "gray".
        fit: Resizes each frame as soon as it is decoded; they remain as they are when not given.

    Returns:
        Frames ``(C, H, W)``, uint8.

    Raises:
        DataError: The file has changed, or cannot be decoded.
    """
    wanted = sorted({index.stamps[i] for i in chosen})
    if index.path.is_dir():
        whole = ((file, read_image(file, color, convert=True)) for file in wanted)
        found = {file: pixels if fit is None else fit(pixels) for file, pixels in whole}
    else:
        found = _decode(index, wanted, color, fit)
    return [found[index.stamps[i]] for i in chosen]


def _by_number(picture: Path) -> tuple[list[tuple[int, str]], str]:
    return natural_order(picture.name), picture.name


def _decode(
    index: VideoIndex, wanted: Sequence[int], color: str, fit: Callable[[Tensor], Tensor] | None
) -> dict[Any, Tensor]:
    av = import_extra("av", "video")
    found: dict[Any, Tensor] = {}
    try:
        for seek in (True, False):
            with av.open(str(index.path)) as container:
                stream = _video_stream(index.path, container)
                stream.thread_type = "AUTO"
                # Program streams give times to some packets only: those between depend on where reading began.
                seek = seek and container.format.name != "mpeg"
                if seek:
                    container.seek(wanted[0], stream=stream)
                found = _frames_at(container.decode(stream), wanted, color, fit, checked=seek)
            if len(found) == len(wanted):
                return found
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{index.path} cannot be decoded: {_reason(error)}") from error
    raise DataError(
        f"{index.path} gives {len(found)} of {plural(len(wanted), 'frame')} counted when it was opened; it is damaged, "
        "or has changed"
    )


def _frames_at(
    frames: Any, wanted: Sequence[int], color: str, fit: Callable[[Tensor], Tensor] | None, checked: bool
) -> dict[Any, Tensor]:
    """Convert the frames with the wanted time stamps, until the last of them.

    With ``checked`` none where a seek landed behind the first or between key frames: frames are then decoded without
    those that they refer to.
    """
    found: dict[Any, Tensor] = {}
    missing = set(wanted)
    convert = _converter(color)
    for number, frame in enumerate(frames):
        if checked and not number and not (frame.key_frame and frame.pts is not None and frame.pts <= wanted[0]):
            return {}
        if frame.pts in missing:
            pixels = convert(frame)
            found[frame.pts] = pixels if fit is None else fit(pixels)
            missing.discard(frame.pts)
        if not missing or (frame.pts is not None and frame.pts > wanted[-1]):
            break
    return found


def _quarter_turns(frame: Any) -> int:
    """Return the counter-clockwise quarter turns with which a frame is displayed, as telephones record them."""
    degrees: float = frame.rotation
    return round(degrees / 90)


def each_frame(index: VideoIndex, color: str) -> Iterator[tuple[float, Tensor]]:
    """Decode all frames of a video, one at a time.

    Args:
        index: The video.
        color: "rgb" or "gray".

    Returns:
        Time in seconds from the first frame, and frame ``(C, H, W)``, uint8.

    Raises:
        DataError: It cannot be decoded to its end.
    """
    yield from ((time, read()) for time, read, _ in each_frame_checked(index, color))


def each_frame_checked(index: VideoIndex, color: str) -> Iterator[tuple[float, Callable[[], Tensor], bool]]:
    """Decode all frames like :func:`each_frame`, with the decoder's report of damaged ones.

    Returns:
        Time, a function that converts the frame, to call before the next one is decoded, and whether it is damaged.

    Raises:
        DataError: It cannot be decoded to its end.
    """
    if index.path.is_dir():
        for shown, file in zip(index.times, index.stamps, strict=True):
            yield shown, read_image(file, color, convert=True).clone, False
        return
    av = import_extra("av", "video")
    # Decoders give frames in the order in which they are displayed; stamps of some containers are not in order.
    times = iter(index.times)
    try:
        with av.open(str(index.path)) as container:
            stream = _video_stream(index.path, container)
            stream.thread_type = "AUTO"
            convert = _converter(color)
            for frame in container.decode(stream):
                if frame.pts is not None and (time := next(times, None)) is not None:
                    yield time, partial(convert, frame), frame.is_corrupt
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{index.path} cannot be decoded: {_reason(error)}") from error


def _converter(color: str) -> Callable[[Any], Tensor]:
    """Make a function from a frame to its pixels ``(C, H, W)``, uint8, for the frames of one pass.

    One reformatter converts all of them: a frame's own starts threads each time, which takes ten times as long.
    """
    from av.video.reformatter import VideoReformatter

    reformatter, form = VideoReformatter(), "rgb24" if color == "rgb" else "gray"

    def convert(frame: Any) -> Tensor:
        array = reformatter.reformat(frame, format=form).to_ndarray()
        pixels = torch.from_numpy(np.ascontiguousarray(np.rot90(array, _quarter_turns(frame))))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)

    return convert


def _video_stream(path: Path, container: Any) -> Any:
    if not container.streams.video:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise DataError(f"{path} has no video, only {kinds}")
    return container.streams.video[0]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
