"""Frames of many videos, counted once: the user's cache has the counts of files that have not changed since."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, groupby, pairwise, repeat
from pathlib import Path
from typing import Any

from vitrail.data.threads import map_in_threads
from vitrail.data.video.decode import VideoIndex, index_video
from vitrail.errors import DataError
from vitrail.files import cache_folder, write_cached

# Form of the cache files, which are ignored in another one.
_FORM = 3
# Size of a file in bytes, times of modification and of change in nanoseconds, and inode: a file that replaces another
# may have its size and time of modification.
_State = tuple[int, int, int, int]


def index_videos(paths: Sequence[Path], folder_rate: float | None = None) -> dict[Path, VideoIndex | str]:
    """Count the frames of video files and folders of pictures, several at a time.

    Counts of files are cached by path, size, times and inode. A cache that is missing, damaged or of another
    version, or that cannot be written, costs the time of another count and nothing else. Folders of pictures and files
    that cannot be decoded are not cached.

    Args:
        paths: The files and folders.
        folder_rate: As for :func:`~vitrail.data.video.decode.index_video`.

    Returns:
        The frames of each, or the reason why it cannot be decoded.
    """
    # Before the count: a file that changes meanwhile is counted again the next time.
    states = {path: state for path in paths if (state := _state_of_file(path)) is not None}
    by_folder: dict[Path, list[Path]] = {}
    for path in states:
        by_folder.setdefault(path.parent, []).append(path)
    cached = {folder: _CountsOfFolder(folder) for folder in by_folder}

    def index_one(path: Path) -> VideoIndex | str:
        known = cached[path.parent].find(path, states[path]) if path in states else None
        return _index_or_reason(path, folder_rate) if known is None else known

    found = dict(zip(paths, map_in_threads(index_one, paths), strict=True))
    for folder, own in by_folder.items():
        indices = ((path, found[path]) for path in own)
        cached[folder].add({path: (states[path], index) for path, index in indices if isinstance(index, VideoIndex)})
    return found


def _state_of_file(path: Path) -> _State | None:
    """Return the state of a file; None of a folder, or where there is nothing."""
    try:
        if path.is_dir():
            return None
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _index_or_reason(path: Path, folder_rate: float | None) -> VideoIndex | str:
    try:
        return index_video(path, folder_rate)
    except DataError as error:
        return str(error).removeprefix(f"{path} ")


class _CountsOfFolder:
    """Cached counts of the files of one folder, in one file of the user's cache.

    Args:
        folder: The folder of the videos.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        cache = cache_folder()
        name = hashlib.sha256(os.path.abspath(folder).encode(errors="surrogateescape")).hexdigest()[:20]
        self._file = None if cache is None else cache / "videos" / f"{name}.json"
        self._known = self._read()

    def find(self, path: Path, state: _State) -> VideoIndex | None:
        """Return the counted frames of a file; None where its state is not the cached one."""
        entry = self._known.get(path.name)
        return None if entry is None or tuple(entry["state"]) != state else _from_entry(path, entry)

    def add(self, counted: Mapping[Path, tuple[_State, VideoIndex]]) -> None:
        """Write counts beside those of other files that still exist."""
        new = {
            path.name: _to_entry(state, index)
            for path, (state, index) in counted.items()
            if self.find(path, state) is None
        }
        if not new:
            return
        # Read again: another process may have written since.
        known = {name: entry for name, entry in self._read().items() if (self._folder / name).exists()}
        body = json.dumps([_version(), {**known, **new}])
        write_cached(self._file, f"{_digest(body)}\n{body}\n")

    def _read(self) -> dict[str, Any]:
        """Read the file; nothing where it is missing, damaged or of another version."""
        if self._file is None:
            return {}
        try:
            digest, _, body = self._file.read_text(encoding="utf-8").rstrip("\n").partition("\n")
        except (OSError, UnicodeDecodeError):
            return {}
        if digest != _digest(body):
            return {}
        version, entries = json.loads(body)
        return entries if version == _version() else {}


def _to_entry(state: _State, index: VideoIndex) -> dict[str, Any]:
    # Most files have one step between frames throughout.
    runs = [[len(list(run)), step] for step, run in groupby(b - a for a, b in pairwise(index.stamps))]
    return {
        "state": state,
        "size": index.size,
        "unit": index.unit,
        "truncated": index.truncated,
        "start": index.stamps[0],
        "steps": runs,
    }


def _from_entry(path: Path, entry: Mapping[str, Any]) -> VideoIndex:
    steps = chain.from_iterable(repeat(step, number) for number, step in entry["steps"])
    stamps = list(accumulate(steps, initial=entry["start"]))
    return VideoIndex.of_stamps(path, stamps, entry["unit"], tuple(entry["size"]), entry["truncated"])


def _version() -> list[Any]:
    """Return the version of the entries; other decoders may count other frames."""
    try:
        return [_FORM, importlib.metadata.version("av")]
    except importlib.metadata.PackageNotFoundError:
        return [_FORM, None]


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
