"""Cached counts of the frames of videos: used while a file is unchanged, never trusted when damaged."""

import json
import os
import time

import pytest
from PIL import Image

from vitrail.data.video import counts
from vitrail.data.video.counts import index_videos
from vitrail.data.video.decode import VideoIndex
from vitrail.errors import DataError

STAMPS = {
    "steady": [0, 512, 1024, 1536],
    "variable": [-3, 0, 7, 8, 100, 101],
    "single": [42],
    "ten thousand": [3 * i + i // 100 for i in range(10_000)],
}


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """A folder of files, of which ``counted`` lists those that were counted; the cache is beside it."""
    monkeypatch.setattr(counts, "cache_folder", lambda: tmp_path / "cache")
    counted = []

    def index_video(path, folder_rate=None):
        counted.append(path.name)
        if path.read_text().startswith("broken"):
            raise DataError(f"{path} cannot be decoded: broken")
        return VideoIndex.of_stamps(path, json.loads(path.read_text()), 1 / 12800, (12, 16), path.name == "b")

    monkeypatch.setattr(counts, "index_video", index_video)
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos", counted


def _write(folder, **files):
    for name, stamps in files.items():
        (folder / name).write_text(json.dumps(stamps))
    return [folder / name for name in files]


def _cache_file(folder):
    (file,) = (folder.parent / "cache").rglob("*.json")
    return file


@pytest.mark.parametrize("stamps", STAMPS.values(), ids=STAMPS)
def test_an_unchanged_file_is_counted_once(videos, stamps):
    folder, counted = videos
    paths = _write(folder, a=stamps, b=[0, 1])
    first = index_videos(paths)
    assert sorted(counted) == ["a", "b"]
    assert index_videos(paths) == first
    assert len(counted) == 2
    assert list(first[paths[0]].stamps) == stamps


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_is_counted_again(videos, change):
    folder, counted = videos
    paths = _write(folder, a=[0, 10], b=[0, 1])
    index_videos(paths)
    before = paths[0].stat()
    paths[0].write_text("[0, 20]" if change == "time" else "[0, 100]")
    os.utime(paths[0], ns=(before.st_atime_ns, before.st_mtime_ns + (change == "time")))
    found = index_videos(paths)
    assert sorted(counted) == ["a", "a", "b"]
    assert found[paths[0]].stamps[1] == {"time": 20, "size": 100}[change]
    assert index_videos(paths) == found
    assert len(counted) == 3


@pytest.mark.parametrize("how", ["another file", "the same file"])
def test_a_file_of_the_same_size_and_time_is_counted_again(videos, how):
    folder, counted = videos
    (path,) = _write(folder, a=[0, 10])
    index_videos([path])
    before = path.stat()
    if how == "another file":
        (folder / "new").write_text("[0, 20]")
        (folder / "new").replace(path)
    else:
        time.sleep(0.02)  # the clock of a file system has steps of some milliseconds
        path.write_text("[0, 20]")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert index_videos([path])[path].stamps == (0, 20)
    assert counted == ["a", "a"]


@pytest.mark.parametrize("number", [5, 20])
def test_files_are_assigned_to_their_folders_once(videos, monkeypatch, number):
    folder, counted = videos
    looked = []

    class Counted(type(folder)):
        @property
        def parent(self):
            looked.append(self)
            return super().parent

    paths = []
    for i in range(number):
        (folder / str(i)).mkdir()
        paths += [Counted(path) for path in _write(folder / str(i), a=[0, i + 1])]
    looked.clear()
    found = index_videos(paths)
    assert len(looked) <= 4 * number
    assert [found[path].stamps[1] for path in paths] == list(range(1, number + 1))
    index_videos(paths)
    assert len(counted) == number


def _spoil(text, how):
    digest, body = text.rstrip("\n").split("\n")
    if how in ("form", "decoder"):
        (form, decoder), entries = json.loads(body)
        body = json.dumps([[form + 1, decoder] if how == "form" else [form, "0.1"], entries])
        digest = counts._digest(body)
    elif how == "one digit":
        body = body.replace("512", "513")
    text = f"{digest}\n{body}\n"
    return {"empty": "", "truncated": text[:-20], "not UTF-8": "\udcff" + text, "other": "[]\n{}"}.get(how, text)


@pytest.mark.parametrize("how", ["empty", "truncated", "not UTF-8", "other", "one digit", "form", "decoder"])
def test_a_damaged_or_older_cache_is_ignored_and_replaced(videos, how):
    folder, counted = videos
    paths = _write(folder, a=STAMPS["steady"])
    first = index_videos(paths)
    cache = _cache_file(folder)
    cache.write_text(_spoil(cache.read_text(), how), errors="surrogateescape")
    assert index_videos(paths) == first
    assert len(counted) == 2
    assert index_videos(paths) == first
    assert len(counted) == 2


@pytest.mark.parametrize("cache", ["no home", "a file"])
def test_without_a_cache_that_can_be_written(videos, tmp_path, monkeypatch, cache):
    folder, counted = videos
    (tmp_path / "cache").touch()
    if cache == "no home":
        monkeypatch.setattr(counts, "cache_folder", lambda: None)
    paths = _write(folder, a=[0, 1])
    assert index_videos(paths) == index_videos(paths)
    assert len(counted) == 2


def test_entries_of_other_files_remain_and_those_of_deleted_ones_go(videos):
    folder, counted = videos
    a, b, c = _write(folder, a=[0, 1], b=[0, 2], c=[0, 3])
    index_videos([a, b])
    b.unlink()
    index_videos([c])
    index_videos([a, c])
    assert sorted(counted) == ["a", "b", "c"]
    assert "b" not in json.loads(_cache_file(folder).read_text().split("\n")[1])[1]


def test_folders_and_broken_files_are_opened_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "cache_folder", lambda: tmp_path / "cache")
    (tmp_path / "frames").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "frames" / "0.png")
    missing = tmp_path / "none.mp4"
    for rate in (10.0, 20.0):
        found = index_videos([tmp_path / "frames", missing], rate)
        assert found[tmp_path / "frames"].unit == 1 / rate
        assert "cannot be decoded" in found[missing]
    assert not (tmp_path / "cache").exists()
