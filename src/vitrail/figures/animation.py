"""Clips as animated pictures: GIF, which every program shows, and MP4 (H.264), where PyAV is installed."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitrail.extras import import_extra
from vitrail.files import replacing

# Frames a second of explained clips: slow enough to follow.
SLOW = 5.0
_COLORS = 256
# Clock of an MP4, by which frames may come at any time.
_TIME_BASE = Fraction(1, 90_000)
# Pixels that the palette of a GIF is chosen from.
_SAMPLED = 200_000


def can_write_mp4() -> bool:
    """Check whether PyAV is installed, which encodes MP4."""
    return importlib.util.find_spec("av") is not None


def write_animation(frames: npt.NDArray[np.uint8], path: Path, rate: float = SLOW) -> list[Path]:
    """Write frames as a GIF, and beside it as an MP4 where PyAV is installed.

    The same frames give the same bytes of the GIF and the same pixels of the MP4, whose encoder (x264) may store equal
    pixels in other bytes.

    Args:
        frames: Shape ``(T, H, W, 3)``.
        path: The files without their ending.
        rate: Frames a second.

    Returns:
        The files, the GIF first.

    Raises:
        RunError: A file cannot be written.
    """
    files = [path.parent / f"{path.name}.gif"]
    with replacing(files[0]) as temporary:
        _write_gif(frames, temporary, rate)
    if can_write_mp4():
        files.append(path.parent / f"{path.name}.mp4")
        with replacing(files[1]) as temporary, Mp4Writer(temporary, frames.shape[1:3], rate) as writer:
            for frame in frames:
                writer.add(frame)
    return files


def _write_gif(frames: npt.NDArray[np.uint8], path: Path, rate: float) -> None:
    """Write a GIF with one palette for all frames, so that colours do not flicker."""
    pixels = frames.reshape(-1, 1, 3)
    palette = Image.fromarray(pixels[:: max(1, len(pixels) // _SAMPLED)]).quantize(_COLORS, Image.Quantize.MEDIANCUT)
    first, *others = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    # Browsers show frames of less than 20 ms at a tenth of their speed.
    step = max(20, round(1000 / rate))
    first.save(path, "GIF", save_all=True, append_images=others, duration=step, loop=0)


class Mp4Writer:
    """Encode frames one by one as H.264 in an MP4; sides are made even by repeating the last row or column.

    Args:
        path: The file.
        size: Height and width of the frames.
        rate: Frames a second.
    """

    def __init__(self, path: Path, size: tuple[int, ...], rate: float) -> None:
        self._av = import_extra("av", "video")
        self._container = self._av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        # One thread: the pixels do not depend on the number of cores.
        options = {"crf": "20", "preset": "medium", "threads": "1"}
        self._stream = self._container.add_stream(
            "libx264", rate=Fraction(rate).limit_denominator(1001), options=options
        )
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _TIME_BASE
        self._count, self._step = 0, 1 / rate
        self._odd = [side % 2 for side in size]
        self._stream.height, self._stream.width = (side + side % 2 for side in size)

    def add(self, frame: npt.NDArray[np.uint8], time: float | None = None) -> None:
        """Encode a frame.

        Args:
            frame: Shape ``(H, W, 3)``.
            time: Seconds from the start, later than those of the frames before; at the rate when not given.
        """
        even = np.pad(frame, (*((0, odd) for odd in self._odd), (0, 0)), mode="edge")
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        picture.time_base = _TIME_BASE
        picture.pts = round((self._count * self._step if time is None else time) / _TIME_BASE)
        self._count += 1
        self._mux(picture)

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def __enter__(self) -> Mp4Writer:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Encode the remaining frames, and close the file."""
        if error[0] is None:
            self._mux(None)
        self._container.close()
