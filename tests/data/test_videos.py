"""Clips of video files and folders of frames: listing, sampling by time, decoding after a seek, damaged files."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.settings import data_config
from vitrail.data import open_data
from vitrail.data.video.decode import VideoIndex, each_frame, index_video, read_frames
from vitrail.data.video.source import VideoSource
from vitrail.errors import DataError, VitrailError


def _pictures(folder, count, size=(12, 16), first=0):
    """A folder of gray frames, each as bright as its number."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((*size, 3), 4 * (first + i), dtype=np.uint8)).save(folder / f"img_{i:05d}.png")
    return folder


def _video(file, rate, seconds, size=(32, 48), codec="mpeg4", b_frames=0):
    """A video whose brightness grows by 40 a second, with a key frame every 12 frames."""
    av = pytest.importorskip("av")
    with av.open(str(file), "w") as container:
        # Without the threshold each change of brightness begins with a key frame.
        stream = container.add_stream(codec, rate=rate, options={"sc_threshold": "1000000000"})
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 12
        stream.bit_rate, stream.codec_context.max_b_frames = 4_000_000, b_frames
        for i in range(round(rate * seconds)):
            pixels = np.full((*size, 3), 10 + round(40 * i / rate), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file


def _open(path, size=(4, 12, 16), **settings):
    return open_data(data_config(source="videos", path=str(path), **settings), size)


def _levels(clips):
    return clips.float().mean(dim=(1, 3, 4))


def test_folders_of_frames_in_class_folders(tmp_path):
    for split in ("train", "val"):
        for label in ("left", "right"):
            for clip in range(2):
                _pictures(tmp_path / split / label / f"clip{clip}", 8)
    data = _open(tmp_path)
    assert data.source.classes == ("left", "right")
    assert data.source.keys[0] == "train/left/clip0"
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 4, "val": 4}
    batch = data.batch([0, 1])
    assert batch["video"].shape == (2, 3, 4, 12, 16)
    # Four of eight frames, each from the middle of a quarter.
    assert (255 * _levels(batch["video"])).round().tolist() == [[4, 12, 20, 28]] * 2
    assert data.source.original_size(0) == (12, 16)
    assert len(set(data.source.digests())) == 1


def test_a_table_with_times_groups_and_splits(tmp_path):
    for name in "ab":
        _pictures(tmp_path / name, 50)
    table = tmp_path / "clips.csv"
    table.write_text("path,label,start,end,group,split\na,x,0,1,g,train\na,y,1,2,g,train\nb,x,,,h,val\n")
    data = _open(table, color="gray", video__folder_fps=25.0)
    assert data.source.keys == ["a@0-1", "a@1-2", "b"]
    assert list(data.source.groups) == ["g", "g", "h"]
    first, second, whole = (255 * _levels(data.batch([0, 1, 2])["video"])).tolist()
    assert max(first) < 100 <= min(second)
    assert whole[0] < 100 < whole[-1]


def test_clips_of_one_file_are_a_group(tmp_path):
    _pictures(tmp_path / "a", 20)
    table = tmp_path / "clips.csv"
    table.write_text("path,label,start,end\na,x,0,0.4\na,y,0.4,0.8\n")
    source = VideoSource(data_config(source="videos", path=str(table), video__folder_fps=25.0), (4, 12, 16), None)
    assert len(set(source.groups)) == 1


def test_a_file_is_counted_once_for_all_of_its_clips(tmp_path, monkeypatch):
    counted = []

    def count(path, folder_rate):
        counted.append(path)
        return index_video(path, folder_rate)

    monkeypatch.setattr("vitrail.data.video.counts.index_video", count)
    for name in "ab":
        _pictures(tmp_path / name, 50)
    rows = [f"{name},{label},{i},{i + 1}" for i, label in enumerate("xy") for name in "ab"]
    (tmp_path / "clips.csv").write_text("\n".join(["path,label,start,end", *rows]))
    config = data_config(source="videos", path=str(tmp_path / "clips.csv"), video__folder_fps=25.0)
    clips = VideoSource(config, (4, 12, 16), None)
    assert len(clips) == 4
    assert sorted(counted) == [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize("rate", [5.0, 12.5, 25.0, 60.0])
@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.fast_cases("1-12.5", "8-60.0")
def test_frames_are_chosen_by_time(rate, count):
    """Files of any frame rate show the same moments."""
    times = tuple(i / rate for i in range(round(4 * rate)))
    index = VideoIndex(None, times, times, (1, 1))
    assert index.duration == pytest.approx(4.0, abs=1e-9)
    chosen = [times[i] for i in index.choose(count, 0.0, 4.0, None)]
    expected = [(i + 0.5) * 4.0 / count for i in range(count)]
    assert all(0 <= wanted - shown <= 1 / rate + 1e-6 for wanted, shown in zip(expected, chosen, strict=True))
    steady = [times[i] for i in index.choose(count, 0.0, 4.0, 2.5)]
    expected = [min(max(2.0 + (i - (count - 1) / 2) / 2.5, 0), 4) for i in range(count)]
    assert all(-1e-6 <= wanted - shown <= 1 / rate + 1e-6 for wanted, shown in zip(expected, steady, strict=True))


def test_short_clips_are_reported(tmp_path, capsys):
    for label in ("x", "y"):
        for clip in range(3):
            _pictures(tmp_path / label / str(clip), 10)
    _open(tmp_path, video__fps=5.0, video__folder_fps=25.0)
    assert "6 of 6 clips are shorter than the 0.8 s of 4 frames at 5 a second" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,x\n", "needs the column path, has file, label"),
        ("path,label,start\na,x,soon\n", "line 2: start and end must be seconds"),
        ("path,label,start,end\na,x,2,1\n", "line 2: end 1.0 must lie after start 2"),
        ("path,label,start\na,x,nan\n", "line 2: start and end must be seconds: start is nan"),
        ("path,label,start,end\na,x,0,1\na,x,0,inf\n", "line 3: start and end must be seconds: end is inf"),
        ("path,label,start,end\na,x,0,1\na,y,0.0,1\n", "line 3: the clip a@0-1 is listed twice"),
        ("path,label\na,x\nb,\n", "line 3: b has no label, and other clips have"),
    ],
)
def test_tables_that_say_too_little(tmp_path, text, message):
    (tmp_path / "clips.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        _open(tmp_path / "clips.csv")


@pytest.mark.slow_cases(".mp4-mpeg4")
@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "mpeg4"), (".avi", "mpeg4"), (".mkv", "mpeg4"), (".mpg", "mpeg2video")]
)
def test_frames_after_a_seek_are_those_of_the_whole_file(tmp_path, suffix, codec):
    file = _video(tmp_path / f"clip{suffix}", 25, 3, codec=codec)
    index = index_video(file)
    assert len(index.times) == 75
    assert index.duration == pytest.approx(3.0, abs=0.1)
    every = read_frames(index, range(75), "gray")
    for at in (0, 11, 12, 40, 74):
        (alone,) = read_frames(index, [at], "gray")
        assert torch.equal(alone, every[at])
    repeated = read_frames(index, [5, 5, 50], "rgb")
    assert repeated[0].shape == (3, 32, 48)
    assert torch.equal(repeated[0], repeated[1])


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize(("start", "b_frames"), [(0, 2), (5, 0), (13, 0), (13, 2)])
def test_frames_before_a_cut_by_stream_copy_are_no_frames(tmp_path, suffix, start, b_frames):
    """The part begins between key frames: its file has the frames since the last one, which are not displayed."""
    av = pytest.importorskip("av")
    whole, part = _video(tmp_path / "whole.mp4", 25, 1.2, b_frames=b_frames), tmp_path / f"part{suffix}"
    with av.open(str(whole)) as source, av.open(str(part), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = round(start / 25 / stream.time_base)
        for packet in source.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                target.mux(packet)
    index = index_video(part)
    assert len(index.times) == 30 - start
    assert index.times == pytest.approx([i / 25 for i in range(30 - start)])
    frames = [frame for _, frame in each_frame(index, "gray")]
    assert len(frames) == 30 - start
    assert all(torch.equal(*pair) for pair in zip(frames, read_frames(index, range(30 - start), "gray"), strict=True))
    (source,) = read_frames(index_video(whole), [start], "gray")
    assert (frames[0].float() - source.float()).abs().mean() < 4


def test_rates_of_files_do_not_change_what_is_seen(tmp_path):
    levels = []
    for rate in (10, 25, 30):
        (tmp_path / "a").mkdir(exist_ok=True)
        file = _video(tmp_path / "a" / f"{rate}.mp4", rate, 4)
        index = index_video(file)
        frames = read_frames(index, index.choose(5, 0.0, index.duration, 2.0), "gray")
        levels.append([frame.float().mean().item() for frame in frames])
    # Brightness grows by 40 a second: a tenth of a second, the longest frame, is 4 levels.
    assert max(abs(a - b) for row in levels for a, b in zip(row, levels[0], strict=True)) <= 6


def test_damaged_files_have_a_line_each(tmp_path, capsys):
    good = _video(tmp_path / "good.mp4", 10, 2)
    for label in ("x", "y"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for clip in range(4):
            (tmp_path / "set" / label / f"{clip}.mp4").write_bytes(good.read_bytes() + bytes([clip]))
    (tmp_path / "set" / "x" / "empty.mp4").write_bytes(b"")
    (tmp_path / "set" / "x" / "text.avi").write_text("no video")
    _sound(tmp_path / "set" / "y" / "sound.mkv")
    with pytest.raises(DataError, match=r"3 of 11 clips cannot be read; leave them out with data\.errors"):
        _open(tmp_path / "set", size=(4, 16, 16))
    data = _open(tmp_path / "set", size=(4, 16, 16), errors__on_unreadable="skip")
    assert len(data.source) == 8
    lines = capsys.readouterr().err
    assert "empty.mp4 cannot be decoded" in lines
    assert "text.avi cannot be decoded" in lines
    assert "sound.mkv has no video, only audio" in lines


def test_a_file_whose_frames_cannot_be_decoded_is_refused_when_it_is_opened(tmp_path):
    file = _video(tmp_path / "a.avi", 10, 2)
    content = file.read_bytes()
    at = content.index(b"movi")
    file.write_bytes(content[:at] + bytes(at)[:4] + content[at + 4 :][:40])
    with pytest.raises(DataError, match=r"a\.avi"):
        index_video(file)


def test_damage_that_appears_in_training_has_a_remedy(tmp_path):
    file = _video(tmp_path / "a.mp4", 10, 1)
    (tmp_path / "clips.csv").write_text("path,label\na.mp4,x\n")
    source = VideoSource(data_config(source="videos", path=str(tmp_path / "clips.csv")), (2, 8, 8), None)
    file.write_bytes(b"no video")
    with pytest.raises(DataError, match=r"a\.mp4 cannot be decoded: .*; .*take them out of data\.path, or encode them"):
        source.read_clips([0], [1])


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_videos_are_read_as_they_are_displayed(tmp_path, degrees):
    """Telephones store upright films lying, with a rotation beside."""
    av = pytest.importorskip("av")
    pixels = np.zeros((32, 48, 3), dtype=np.uint8)
    pixels[:16, :24] = 255
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.set_display_rotation(degrees)
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    index = index_video(tmp_path / "a.mp4")
    upright = np.rot90(pixels, degrees // 90).astype(np.float32)
    assert index.size == upright.shape[:2]
    for frame in read_frames(index, [0, 3], "rgb"):
        assert np.abs(frame.permute(1, 2, 0).numpy() - upright).mean() < 12


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_pictures_of_a_folder_are_turned_as_their_exif_says(tmp_path, orientation):
    pixels = np.zeros((12, 16, 3), dtype=np.uint8)
    pixels[:6, :8] = 255
    for i in range(3):
        picture = Image.fromarray(pixels)
        exif = picture.getexif()
        exif[274] = orientation
        picture.save(tmp_path / f"{i}.png", exif=exif)
    index = index_video(tmp_path)
    upright = np.rot90(pixels, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
    assert index.size == upright.shape[:2]
    (frame,) = read_frames(index, [1], "rgb")
    assert np.array_equal(frame.permute(1, 2, 0).numpy(), upright)


def _sound(file):
    av = pytest.importorskip("av")
    with av.open(str(file), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(VitrailError, match=r"av is not installed; install it with `pip install 'vitrail\[video\]'`"):
        index_video(tmp_path / "clip.mp4")
