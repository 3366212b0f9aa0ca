"""Audit of clips: damage to the end of each file, copies and groups across splits, clips without motion."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.test_clip_copies import footage
from tests.data.test_videos import _video
from tests.report.test_brief import CLEAN
from tests.settings import data_config
from vitrail.cli.data import _describe
from vitrail.cli.main import main
from vitrail.data.audit import DuplicateGroup, _PixelFacts, audit
from vitrail.data.sources.moving_digits import MovingDigitsSource
from vitrail.data.video.copies import find_clip_copies
from vitrail.data.video.decode import VideoIndex
from vitrail.data.video.scan import ScannedClip, clip_facts, scan_clips
from vitrail.data.video.source import VideoSource
from vitrail.models.modality import MODALITIES


def _write_frames(folder, frames):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray((frame * 255).round().astype(np.uint8)).save(folder / f"{i}.png", compress_level=1)


@pytest.fixture
def spoiled(tmp_path):
    """Clips of two classes in three splits: a part of one, a mirrored one, and a still one."""
    for split, first, labels in (("train", 0, "aabb"), ("val", 10, "ab"), ("test", 20, "ab")):
        for number, label in enumerate(labels):
            _write_frames(tmp_path / split / label / str(number), footage(first + number, first + number, frames=12))
    _write_frames(tmp_path / "val" / "a" / "part", footage(0, 0, frames=12)[2:10])
    _write_frames(tmp_path / "train" / "b" / "mirrored", footage(1, 1, frames=12)[:, :, ::-1])
    _write_frames(tmp_path / "train" / "b" / "still", np.repeat(footage(40, 0, frames=1), 5, axis=0))
    return tmp_path


def test_copies_and_still_clips_are_found_and_nothing_else(spoiled, monkeypatch, capsys):
    found, data = audit(data_config(source="videos", path=str(spoiled), color="gray", video__folder_fps=25.0))
    assert found.images == len(data.source) == 11
    assert {group.keys: group.relations[1] for group in found.duplicates} == {
        ("train/a/0", "val/a/part"): "recompressed or scaled, a part",
        ("train/a/1", "train/b/mirrored"): "mirrored",
    }
    assert [group.keys[1] for group in found.leaks] == ["val/a/part"]
    assert [group.keys[1] for group in found.conflicts] == ["train/b/mirrored"]
    assert found.clips.still == ["train/b/still"]
    assert found.clips.rates == [(25, 11)]
    assert found.clips.durations == pytest.approx((0.2, 0.48, 0.48))
    assert not found.damaged
    json.dumps(found.to_dict())

    monkeypatch.chdir(spoiled)
    words = ["--data.source", "videos", "--data.path", ".", "--data.color", "gray"]
    assert main(["data", "audit", *words, "--out", "audit.html", "--groups", "groups.csv"]) == 1
    shown = capsys.readouterr()
    assert "clips without motion" in shown.out
    assert "image" not in shown.out
    # Folders of pictures have no times of their own.
    assert not re.search("frame rates|seconds|a second", shown.out)
    assert re.search(r"classes of fewer than 10 training clips +2  a \(2\), b \(4\)\n", shown.out)
    assert "--data.source videos --data.path groups.csv --data.split grouped" in shown.err
    page = (spoiled / "audit.html").read_text()
    assert "11 clips" in page
    assert "Times" not in page
    assert "val/a/part" in page
    grouped = VideoSource(data_config(source="videos", path="groups.csv", color="gray"), (4, 16, 16), None)
    group = dict(zip(grouped.keys, grouped.groups, strict=True))
    assert group["train/a/0"] == group["val/a/part"]
    assert len(set(group.values())) == 9


def test_groups_across_splits_are_a_leak(tmp_path):
    for number in range(6):
        _write_frames(tmp_path / str(number), footage(number, number, frames=4))
    rows = [f"{i},{'ab'[i % 2]},{('train', 'val')[i >= 4]},{('g', i)[i not in (0, 4)]}" for i in range(6)]
    (tmp_path / "clips.csv").write_text("\n".join(["path,label,split,group", *rows]))
    found, _ = audit(data_config(source="videos", path=str(tmp_path / "clips.csv")))
    assert found.shared_groups == {"g": ("train", "val")}
    assert found.split_leaks


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_damage_inside_of_a_file_is_of_the_clips_that_it_touches(tmp_path, suffix):
    """Bytes in the middle are overwritten: the first clip of the file is sound, the others are not."""
    file = _video(tmp_path / f"clip{suffix}", 25, 3)
    content = bytearray(file.read_bytes())
    start = content.rindex(b"mdat") if suffix == ".mp4" else content.index(b"movi")
    end = content.index(b"moov") if suffix == ".mp4" and content.rindex(b"moov") > start else content.index(b"idx1")
    for i in range(start + (end - start) // 2, start + (end - start) * 6 // 10):
        content[i] = 0x55
    file.write_bytes(content)
    (tmp_path / "clips.csv").write_text(
        f"path,label,start,end\n{file.name},a,0,1\n{file.name},b,1,2\n{file.name},b,,\n"
    )
    unsplit = {"splitting__val_fraction": 0.0, "splitting__test_fraction": 0.0}
    found, _ = audit(data_config(source="videos", path=str(tmp_path / "clips.csv"), **unsplit))
    names = [name for name, _ in found.damaged]
    assert names == [f"{file.name}@1-2", file.name]
    assert all("damaged frames" in why or "can be decoded to" in why for _, why in found.damaged)


@pytest.mark.parametrize(
    ("rates", "expected", "shown"),
    [
        ([0.2], [(0.2, 1)], "0.2 to 0.2 a second"),
        ([7.5, 7.46, 29.97, 30.0, 30.04], [(30, 3), (7.5, 2)], "7.5 to 30 a second"),
        ([9.96, None], [(10, 1)], "10 to 10 a second"),
        ([None, None], [], ""),
    ],
)
def test_rates_and_lengths_are_those_of_clips_with_times(rates, expected, shown):
    empty = np.zeros((0, 32, 32), dtype=np.uint8)
    clips = [ScannedClip(np.zeros(0), empty, 2.0 + i, rate) for i, rate in enumerate(rates)]
    facts = clip_facts([str(i) for i in range(len(rates))], clips)
    assert facts.rates == expected
    assert (facts.durations is None) == (not expected)
    found = dataclasses.replace(CLEAN, clips=facts, sizes=[((4, 4), 1)])
    table = _describe(found, MODALITIES["video"], ["a"])
    assert shown in table
    assert ("frame rates" in table) == ("seconds" in table) == bool(shown)


def test_larger_groups_of_clips_are_no_images():
    group = DuplicateGroup("exact", (0, 1, 2), ("a", "b", "c"), ("train",) * 3, ("a",) * 3, ("", "exact", "exact"))
    found = dataclasses.replace(CLEAN, duplicates=[group], sizes=[((4, 4), 3)])
    table = _describe(found, MODALITIES["video"], ["a"])
    assert "a = b = ... (3 in all)" in table
    assert "image" not in table


def test_clips_that_the_code_makes_are_not_searched_for_copies(monkeypatch, capsys):
    monkeypatch.setattr(MovingDigitsSource, "digest", lambda self, index: str(index).encode())
    monkeypatch.setattr("vitrail.data.audit._read_pixel_facts", lambda data, rows: _PixelFacts([], []))
    words = ["--data.source", "moving_digits", "--data.video.num_frames", "2"]
    assert main(["data", "audit", *words]) == 0
    out = capsys.readouterr().out
    assert re.search("groups of near duplicates +-  not searched: the code makes the clips, and groups those", out)
    assert re.search(r"duplicates across splits +0", out)
    assert "a second" not in out


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal(tmp_path, monkeypatch, terminal):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", stream)
    for number in range(2):
        _write_frames(tmp_path / "a" / str(number), footage(0, number, frames=6))
    source = VideoSource(data_config(source="videos", path=str(tmp_path)), (4, 16, 16), None)
    stream.truncate(0)
    find_clip_copies(scan_clips(source, [0, 1]))
    assert [word in stream.getvalue() for word in ("decoding", "searching", "comparing")] == [terminal] * 3


def test_a_picture_that_cannot_be_read_is_damage_of_its_clip(tmp_path):
    for number in range(2):
        _write_frames(tmp_path / "a" / str(number), footage(number, number, frames=5))
    (tmp_path / "a" / "1" / "3.png").write_bytes(b"no picture")
    source = VideoSource(data_config(source="videos", path=str(tmp_path)), (4, 16, 16), None)
    sound, broken = scan_clips(source, [0, 1])
    assert not sound.fault
    assert broken.fault.startswith("can be decoded to frame 3 of 5 (")
    assert "3.png" in broken.fault
    assert (len(sound.small), len(broken.small)) == (5, 3)


def test_a_gif_that_ends_early_is_damaged(tmp_path):
    pytest.importorskip("av")
    frames = [Image.fromarray((frame * 255).astype(np.uint8)) for frame in footage(0, 0, frames=6)]
    for name in ("whole", "cut"):
        (tmp_path / "a").mkdir(exist_ok=True)
        frames[0].save(tmp_path / "a" / f"{name}.gif", save_all=True, append_images=frames[1:], duration=100)
    cut = tmp_path / "a" / "cut.gif"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    source = VideoSource(data_config(source="videos", path=str(tmp_path)), (4, 16, 16), None)
    assert {key: bool(clip.fault) for key, clip in zip(source.keys, scan_clips(source, [0, 1]), strict=True)} == {
        "a/cut.gif": True,
        "a/whole.gif": False,
    }


@pytest.mark.parametrize(("altogether", "each"), [(1 << 19, 256), (500, 100), (10, 16)])
def test_many_clips_have_fewer_thumbnails_each(tmp_path, monkeypatch, altogether, each):
    monkeypatch.setattr("vitrail.data.video.scan._ALTOGETHER", altogether)
    frames = [i / 10 for i in range(1000)]
    index = VideoIndex.of_stamps(tmp_path / "a", range(1000), 0.1, (8, 8))
    source = VideoSource.__new__(VideoSource)
    source.config = data_config(source="videos")
    source.video, source.span = lambda row: index, lambda row: (10.0, 90.0)
    still = np.zeros((1, 8, 8), dtype=np.uint8)
    monkeypatch.setattr(
        "vitrail.data.video.scan.each_frame_checked",
        lambda index, color: ((time, torch.from_numpy(still).clone, False) for time in frames),
    )
    found = scan_clips(source, range(5))[0]
    assert len(found.small) == each
    assert found.times[0] == pytest.approx(0.0)
    assert found.times[-1] == pytest.approx(79.9)
