"""Clips that slide over long videos: windows at equal steps, the last one at the video's end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.data.images import resize_picture
from vitrail.data.sources.base import ImageSource
from vitrail.data.video.decode import VideoIndex, read_frames
from vitrail.data.video.source import VideoSource, require_times
from vitrail.errors import ConfigError, plural

# Of a step or a window: what rounding may add to a video's length.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Window:
    """One clip of a video.

    Attributes:
        video: Index into the source.
        start: Seconds from the beginning of the file.
        end: End of the clip, in seconds.
    """

    video: int
    start: float
    end: float


def window_length(config: DataConfig, num_frames: int, window: float | None, step: float | None) -> float | None:
    """Return the length of a run's clips in seconds; None where each clip spans a whole video.

    Args:
        config: Data settings of the run.
        num_frames: Frames of its clips.
        window: Length that is asked for.
        step: Step that is asked for.

    Raises:
        ConfigError: A length for a run whose settings give it, a step without a length, or an invalid length.
    """
    for option, value in (("--window", window), ("--step", step)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{option} must be a number of seconds above 0, got {value:g}")
    rate = config.video.fps
    if rate is None:
        if window is None and step is not None:
            raise ConfigError(
                f"--step {step:g} needs --window SECONDS: clips of this run span whole videos (data.video.fps is not "
                "set), and a window says how much of a long one a clip shows"
            )
        return window
    if window is not None:
        raise ConfigError(
            f"--window {window:g} is not needed: the run's clips last {num_frames / rate:.3g} s "
            f"({plural(num_frames, 'frame')} at data.video.fps {rate:g}); leave it out"
        )
    return num_frames / rate


def slide(start: float, end: float, window: float | None, step: float | None) -> list[tuple[float, float]]:
    """Compute the windows over a part of a video.

    Args:
        start: Start of the part, in seconds.
        end: End of the part, in seconds.
        window: Length of a window; None for the whole part.
        step: Step from the start of one window to that of the next, in seconds; the length of a window when not given.

    Returns:
        Start and end of each window, the last one at the end of the part; one, the whole, where a window is longer.
    """
    if window is None or window >= end - start - _ROUNDING:
        return [(start, end)]
    step = step or window
    count = math.floor((end - start - window) / step + _ROUNDING) + 1
    starts = [start + i * step for i in range(count)]
    if end - window > starts[-1] + _ROUNDING:
        starts.append(end - window)
    return [(at, at + window) for at in starts]


class SlidingClips(ImageSource):
    """Clips at the windows of videos, as a model reads the videos themselves.

    Args:
        source: The videos.
        window: Length of a clip in seconds; None for one clip of the whole of each video.
        step: Step from one clip to the next, in seconds; the length of a clip when not given.
        videos: Indices of the videos.

    Raises:
        ConfigError: A window over a folder of frames whose rate is not given.
    """

    def __init__(self, source: VideoSource, window: float | None, step: float | None, videos: Sequence[int]) -> None:
        self._source = source
        if window is not None:
            for video in videos:
                require_times(source.config, source.video(video).path, f"a window of {window:g} s")
        self.windows = [Window(video, *span) for video in videos for span in slide(*source.span(video), window, step)]
        self.classes, self.bands, self.left_out = source.classes, source.bands, source.left_out
        rows = [window.video for window in self.windows]
        self.keys = [source.keys[video] for video in rows]
        self.targets = source.targets[rows]
        self.given_split = [""] * len(rows)

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return clips ``(B, C, T, H, W)``, uint8; those of one video are decoded in one pass."""
        count, *size = self._source.clip_size
        config = self._source.config
        chosen: dict[int, dict[int, list[int]]] = {}
        for index in indices:
            window = self.windows[index]
            frames = self._source.video(window.video).choose(count, window.start, window.end, config.video.fps)
            chosen.setdefault(window.video, {})[index] = frames
        clips: dict[int, Tensor] = {}
        for video, of_windows in chosen.items():
            wanted = sorted({frame for frames in of_windows.values() for frame in frames})
            found = dict(zip(wanted, self._frames(self._source.video(video), wanted, (size[0], size[1])), strict=True))
            for index, frames in of_windows.items():
                clips[index] = torch.stack([found[frame] for frame in frames], dim=1)
        return {"video": torch.stack([clips[index] for index in indices])}

    def _frames(self, video: VideoIndex, wanted: Sequence[int], size: tuple[int, int]) -> list[Tensor]:
        config = self._source.config
        # Resized one by one: frames of a long video at full size do not fit into memory.
        return read_frames(video, wanted, config.color, lambda frame: resize_picture(frame, size, config.images.resize))

    def original_size(self, index: int) -> tuple[int, int]:
        """Return height and width of a frame before resizing."""
        return self._source.original_size(self.windows[index].video)

    def digest(self, index: int) -> bytes:
        """Hash the video that a clip is of."""
        return self._source.digest(self.windows[index].video)
