"""Source of clips: video files or folders of frames, in class folders or listed by a CSV table."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.data.centre_crop import centre_box
from vitrail.data.images import BANDS, resize_picture
from vitrail.data.sources.class_folders import (
    class_of_folder,
    groups_of_rows,
    labels_of_rows,
    list_given,
    number_labels,
    read_rows,
    split_and_class,
    splits_of_rows,
)
from vitrail.data.sources.encoded import StoredSource
from vitrail.data.video.counts import index_videos
from vitrail.data.video.decode import PICTURES, VIDEOS, VideoIndex, read_frames
from vitrail.data.video.sampling import Position, random_position, view_positions
from vitrail.errors import ConfigError, DataError, count_of, few, plural

# Remedy for a file whose damage appears when its frames are read.
REENCODE = "encode them again (ffmpeg -err_detect ignore_err -i FILE NEW)"
_DAMAGED = (
    "data.errors.on_unreadable skip leaves out files that cannot be opened; `vitrail data audit` lists those that are "
    f"damaged further inside: take them out of data.path, or {REENCODE}"
)
# Number of crops -> where each lies along the longer side.
_CROPS = {1: (0.5,), 3: (0.0, 0.5, 1.0)}


@dataclass(frozen=True)
class _Row:
    """A clip as it is listed."""

    key: str
    path: Path
    label: str
    split: str = ""
    group: str = ""
    start: float = 0.0
    end: float | None = None

    @property
    def timed(self) -> bool:
        """Whether it is a part of its file."""
        return bool(self.start) or self.end is not None


class VideoSource(StoredSource):
    """Clips of video files or of folders of frames.

    Args:
        config: The settings; ``path`` is a folder with a folder for each class (below train, val and test where it is
            split), or a CSV table with the columns "path", "label" and maybe "start", "end" (seconds), "group" and
            "split". A folder of pictures is a clip, its frames in the natural order of their names. Clips directly in
            the folder, and those of a table without labels, have no classes.
        size: Frames of a clip, and their height and width.
        classes: Names of the classes where a run gives them.
        files: Video files, folders of frames and folders of such, in place of ``path``: their class is the name of
            their folder where a run knows it, -1 where not.

    Attributes:
        config: The settings.
        clip_size: Frames of a clip, and their height and width.

    Raises:
        DataError: Nothing to read, classes that the run does not know, files that cannot be decoded or clips that
            begin after the end of theirs (``data.errors.on_unreadable``), or a file in two groups.
        ConfigError: Seconds of a folder of pictures whose rate is not given.
    """

    named = True

    def __init__(
        self,
        config: DataConfig,
        size: tuple[int, ...],
        classes: Sequence[str] | None,
        files: Sequence[str | Path] | None = None,
    ) -> None:
        path = Path(config.path or "")
        if files is not None:
            listed = _list_files(files, classes or ())
        else:
            listed = _read_table(path) if path.suffix.lower() == ".csv" else _list_folder(path)
        # Several clips may lie in one file.
        paths = list(dict.fromkeys(row.path for row in listed))
        rate = config.video.fps
        for row in listed:
            if rate is not None or row.timed:
                require_times(config, row.path, f"data.video.fps {rate:g}" if rate else f"the times of {row.key}")
        found = index_videos(paths, config.video.folder_fps)
        rows, indices = [], []
        faults: list[tuple[str, str]] = []
        for row in listed:
            index = found[row.path]
            if isinstance(index, VideoIndex) and row.start >= index.duration:
                faults.append((row.key, f"starts at {row.start:g} s, and its video ends at {index.duration:.3f} s"))
            elif isinstance(index, VideoIndex):
                indices.append(index)
                rows.append(row)
            else:
                faults.append((row.key, index))
        if faults and (config.errors.on_unreadable != "skip" or not rows):
            raise DataError(
                f"{len(faults)} of {plural(len(listed), 'clip')} cannot be read; leave them out with "
                f"data.errors.on_unreadable skip: {few([f'{key} {reason}' for key, reason in faults])}"
            )
        self.left_out: list[tuple[str, str]] = faults
        self._given = files is not None
        self.clip_size, self.config = size, config
        self.views = config.video.views * config.video.crops
        self.draws = config.video.sampling == "random"
        self._rows, self._indices = rows, indices
        self.keys = [row.key for row in rows]
        self.given_split = [row.split for row in rows]
        self.groups = _groups(rows, path)
        labels = [row.label for row in rows]
        if files is None and not any(labels):
            if classes:
                raise DataError(
                    f"{path}: clips have no labels; the run knows {few(list(classes))}: label them, or use "
                    "`vitrail predict`"
                )
            self.classes, self.targets = (), np.full(len(rows), -1, dtype=np.int64)
        else:
            self.classes, self.targets = number_labels(labels, classes, path, given=files is not None)
        self.bands = {"video": BANDS[config.color]}
        self.notes = self._describe()

    def _describe(self) -> list[str]:
        """List the clips that are left out or too short, for the start of a run."""
        # Verbs report what is left out of the files that they are given.
        notes = [] if self._given else [f"left out: {key} {reason}" for key, reason in self.left_out]
        if not self.classes:
            notes.append(f"{plural(len(self), 'clip')} of {self.config.path} without labels, for pre-training alone")
        beyond = [
            row.key
            for row, index in zip(self._rows, self._indices, strict=True)
            if row.end is not None and row.end > index.duration + 1 / index.rate
        ]
        if beyond:
            notes.append(
                f"{count_of(len(beyond), len(self), 'clip', 'ends', 'end')} after the last frame of the video "
                f"({few(beyond)})"
            )
        cut = [key for key, index in zip(self.keys, self._indices, strict=True) if index.truncated]
        if cut:
            notes.append(
                f"{count_of(len(cut), len(self), 'clip', 'is', 'are')} of files that end before their last byte, as "
                f"truncated files do; the last frames are missing ({few(cut)})"
            )
        rate = self.config.video.fps
        if rate is not None:
            wanted = self.clip_size[0] / rate
            short = [key for i, key in enumerate(self.keys) if self.span(i)[1] - self.span(i)[0] < wanted - 1e-6]
            if short:
                span = f"{wanted:.3g} s of {plural(self.clip_size[0], 'frame')} at {rate:g} a second"
                notes.append(
                    f"{count_of(len(short), len(self), 'clip', 'is', 'are')} shorter than the {span}; the first and "
                    f"last frames are repeated ({few(short)})"
                )
        return notes

    def span(self, index: int) -> tuple[float, float]:
        """Return where a clip begins and ends in its file, in seconds."""
        row, duration = self._rows[index], self._indices[index].duration
        return row.start, duration if row.end is None else min(row.end, duration)

    def _frames(
        self,
        index: int,
        count: int,
        positions: Sequence[Position] = (0.5,),
        fit: Callable[[Tensor], Tensor] | None = None,
    ) -> list[list[Tensor]]:
        """Decode clips of a video at several positions, in one pass; ``fit`` as for :func:`read_frames`."""
        video: VideoIndex = self._indices[index]
        span, rate = self.span(index), self.config.video.fps
        chosen = [i for at in positions for i in video.choose(count, *span, rate, at)]
        try:
            frames = read_frames(video, chosen, self.config.color, fit)
        except DataError as error:
            # Opening counts frames and decodes the first one alone.
            raise DataError(f"{error}; {_DAMAGED}") from error
        return [frames[i : i + count] for i in range(0, len(frames), count)]

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return the middle clip of each video, ``(B, C, T, H, W)``, uint8."""
        return self._read([(index, (0.5,)) for index in indices], (0.5,))

    def read_clips(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return a random clip of each video, or all of its views, each with its crops."""
        count, settings = self.clip_size[0], self.config.video
        if seeds is None:
            positions = view_positions(settings.views, settings.fps)
            return self._read([(index, positions) for index in indices], _CROPS[settings.crops])
        drawn = [random_position(count, settings.fps, seed) for seed in seeds]
        return self._read([(i, (at,)) for i, at in zip(indices, drawn, strict=True)], (0.5,))

    def _read(self, wanted: Sequence[tuple[int, Sequence[Position]]], crops: Sequence[float]) -> dict[str, Tensor]:
        """Read the clips of videos at their positions, in all crops."""
        count, size = self.clip_size[0], (self.clip_size[1], self.clip_size[2])
        how = self.config.images.resize

        def cut(frame: Tensor) -> Tensor:
            return torch.stack([resize_picture(crop_side(frame, size, along), size, how) for along in crops])

        # Each view has all crops: (crops, C, T, H, W).
        views = [
            torch.stack(frames, dim=2)
            for index, positions in wanted
            for frames in self._frames(index, count, positions, cut)
        ]
        return {"video": torch.cat(views)}

    def read_stored(self, stream: str, index: int) -> npt.NDArray[Any]:
        """Decode the frames of a clip at their own size, shape ``(C, T, H, W)``, uint8."""
        frames: npt.NDArray[Any] = torch.stack(self._frames(index, self.clip_size[0])[0], dim=1).numpy()
        return frames

    def original_size(self, index: int) -> tuple[int, int]:
        """Return height and width of a frame before resizing."""
        return self._indices[index].size

    def location(self, index: int) -> tuple[Path, float, float | None]:
        """Return the file of a clip, and its start and end as they are listed."""
        row = self._rows[index]
        return row.path, row.start, row.end

    def video(self, index: int) -> VideoIndex:
        """Return the frames of the file that a clip is of."""
        return self._indices[index]

    def digest(self, index: int) -> bytes:
        """Hash the file, or the pictures, and the clip's start and end."""
        row = self._rows[index]
        content = hashlib.sha256(repr((row.start, row.end)).encode())
        for file in self._indices[index].stamps if row.path.is_dir() else (row.path,):
            content.update(file.read_bytes())
        return content.digest()


def crop_side(frame: Tensor, size: tuple[int, int], along: float) -> Tensor:
    """Crop a frame to the shape of a size.

    Args:
        frame: Shape ``(C, H, W)``.
        size: Height and width wanted after the resize.
        along: Position of the crop along the side that is cut: 0 at its start, 1 at its end; 0.5 leaves the frame as it
            is, for :func:`~vitrail.data.images.resize_picture`.
    """
    if along == 0.5:
        return frame
    height, width = frame.shape[1:]
    _, _, rows, columns = centre_box(height, width, size)
    top, left = round(along * (height - rows)), round(along * (width - columns))
    return frame[:, top : top + rows, left : left + columns]


def has_times(config: DataConfig, path: Path) -> bool:
    """Return whether the times of a clip's frames are known; of a folder of pictures where its rate is given."""
    return not path.is_dir() or config.video.folder_fps is not None


def require_times(config: DataConfig, path: Path, why: str) -> None:
    """Check that a clip has times where settings are in seconds; folders of pictures have none of their own.

    Args:
        config: The settings.
        path: The clip's file or folder.
        why: Setting in seconds, for the error.

    Raises:
        ConfigError: A folder, and ``data.video.folder_fps`` is not given.
    """
    if not has_times(config, path):
        raise ConfigError(
            f"{path} is a folder of frames, and {why} is in seconds; set data.video.folder_fps, its frames a second"
        )


def _groups(rows: Sequence[_Row], table: Path) -> list[str] | None:
    """Return the group of each clip; those of one file are near-duplicates, and belong together."""
    given: dict[Path, str] = {}
    for row in rows:
        if row.group and given.setdefault(row.path, row.group) != row.group:
            raise DataError(
                f"{table}: clips of {row.path} are in the groups {given[row.path]} and {row.group}; clips of one file "
                "belong to one group"
            )
    if not given and len({row.path for row in rows}) == len(rows):
        return None
    return [given.get(row.path, str(row.path)) for row in rows]


def _list_files(paths: Sequence[str | Path], classes: Sequence[str]) -> list[_Row]:
    found = list_given(paths, _clips_below, f"clips; known are {' '.join(sorted(VIDEOS))} and folders of pictures")
    return [_Row(path.as_posix(), path, class_of_folder(path, classes)) for path in found]


def _clips_below(root: Path) -> set[Path]:
    """Find the video files and folders of pictures in a folder, itself among them."""
    found = [p for p in root.rglob("*") if p.is_file()]
    clips = {p for p in found if p.suffix.lower() in VIDEOS}
    return clips | {p.parent for p in found if p.suffix.lower() in PICTURES}


def _list_folder(root: Path) -> list[_Row]:
    if not root.is_dir():
        raise DataError(f"data.path {root} is neither a folder nor a .csv table of clips")
    rows = []
    for path in sorted(_clips_below(root) - {root}):
        split, label = split_and_class(path.relative_to(root).parts[:-1])
        rows.append(_Row(path.relative_to(root).as_posix(), path, label, split))
    loose = [row.path for row in rows if not row.label]
    if 0 < len(loose) < len(rows):
        raise DataError(
            f"{loose[0]} lies in no class folder; data.path needs one folder for each class, or clips alone to "
            "pre-train on"
        )
    if not rows:
        raise DataError(f"{root} has no class folders with clips; known are {' '.join(sorted(VIDEOS))} and pictures")
    return rows


def _read_table(file: Path) -> list[_Row]:
    rows: dict[str, _Row] = {}
    lines = read_rows(file, needed=("path",))
    labels, splits = labels_of_rows(lines, file, "clips", optional=True), splits_of_rows(lines, file)
    groups = groups_of_rows(lines) or [""] * len(lines)
    for number, (line, label, split, group) in enumerate(zip(lines, labels, splits, groups, strict=True), 2):
        where = f"{file}, line {number}"
        start, end = _seconds(line, "start", where) or 0.0, _seconds(line, "end", where)
        if start < 0 or (end is not None and end <= start):
            raise DataError(f"{where}: end {end} must lie after start {start:g}")
        key = line["path"]
        if start or end is not None:
            key += f"@{_exact(start)}" + ("" if end is None else f"-{_exact(end)}")
        if key in rows:
            raise DataError(f"{where}: the clip {key} is listed twice; leave one of the lines out")
        rows[key] = _Row(key, file.parent / line["path"], label, split, group, start, end)
    return list(rows.values())


def _seconds(line: Mapping[str, str], column: str, where: str) -> float | None:
    """Return the seconds of a cell; None where it is empty."""
    cell = line.get(column)
    try:
        seconds = float(cell) if cell else None
    except ValueError as error:
        raise DataError(f"{where}: start and end must be seconds: {error}") from error
    if seconds is not None and not math.isfinite(seconds):
        raise DataError(f"{where}: start and end must be seconds: {column} is {cell}")
    return seconds


def _exact(seconds: float) -> str:
    return repr(seconds).removesuffix(".0")
