"""Truncated video files: known by the bytes that they declare, whatever their rate, audio and edit lists."""

import numpy as np
import pytest

from tests.settings import data_config
from vitrail.data.video.decode import index_video
from vitrail.data.video.scan import scan_clips
from vitrail.data.video.source import VideoSource
from vitrail.data.video.truncation import is_truncated

av = pytest.importorskip("av")
# Form -> codec of its video, options of its writer.
FORMS = {
    "a.mp4": ("mpeg4", {"movflags": "faststart"}),
    "fragments.mp4": ("mpeg4", {"movflags": "frag_keyframe+empty_moov"}),
    "a.mov": ("mpeg4", {"movflags": "faststart"}),
    "a.avi": ("mpeg4", {}),
    "a.mkv": ("mpeg4", {}),
    "a.webm": ("libvpx", {}),
    "a.flv": ("flv1", {}),
    "a.wmv": ("wmv2", {}),
}


def _write(file, codec, options, audio=0.0, steady=True):
    """Write 40 noisy frames, and some seconds of sound."""
    rng = np.random.default_rng(0)
    with av.open(str(file), "w", options=options) as container:
        # Key frames every 12 frames alone, so that fragments are few; VP8 is slow otherwise.
        fast = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx" else {"sc_threshold": "1000000000"}
        stream = container.add_stream(codec, rate=25, options=fast)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 48, 64, "yuv420p", 12
        sound = container.add_stream("pcm_s16le", rate=8000) if audio else None
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), format="rgb24")
            frame.pts = i if steady else i + 3 * i * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for i in range(round(audio * 10)):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
            block.sample_rate, block.pts = 8000, 800 * i
            container.mux(sound.encode(block))
    return file


def _cut(file, share):
    content = file.read_bytes()
    cut = file.with_name(f"cut-{file.name}")
    cut.write_bytes(content[: round(share * len(content))])
    return cut


@pytest.mark.parametrize("form", FORMS)
def test_files_without_their_last_bytes_are_truncated(tmp_path, form):
    file = _write(tmp_path / form, *FORMS[form])
    assert not is_truncated(file)
    assert not index_video(file).truncated
    for share in (0.4, 0.7, 0.97):
        cut = _cut(file, share)
        assert is_truncated(cut)
        assert index_video(cut).truncated


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mov"])
@pytest.mark.parametrize(("audio", "steady"), [(4.0, True), (0.0, False), (0.3, False)])
def test_longer_sound_and_unsteady_frames_are_no_truncation(tmp_path, suffix, audio, steady):
    file = _write(tmp_path / f"a{suffix}", "mpeg4", {}, audio, steady or suffix == ".avi")
    assert not index_video(file).truncated
    assert is_truncated(_cut(file, 0.9))


TAILS = [b"\0", b"\0" * 4096, b"some text of another program\n"]


@pytest.mark.parametrize("form", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.wmv"])
def test_bytes_after_the_end_are_no_truncation(tmp_path, form):
    file = _write(tmp_path / form, *FORMS[form])
    content = file.read_bytes()
    for tail in TAILS:
        file.write_bytes(content + tail)
        assert not is_truncated(file), tail


STREAMS = {
    "a.ts": ("mpeg2video", {}),
    "times.ts": ("mpeg2video", {"mpegts_m2ts_mode": "1"}),
    "a.mpg": ("mpeg1video", {}),
    "a.vob": ("mpeg2video", {}),
}


@pytest.mark.parametrize("form", STREAMS)
def test_streams_that_end_within_a_packet_are_truncated(tmp_path, form):
    file = _write(tmp_path / form, *STREAMS[form])
    content = file.read_bytes()
    assert not is_truncated(file)
    found = 0
    for end in np.random.default_rng(len(content)).integers(2048, len(content), 60):
        (tmp_path / "cut").write_bytes(content[:end])
        found += is_truncated(tmp_path / "cut")
    # Those cut between two packets are not found: 1 in 188 of a transport stream, 5 in 192 with times before packets.
    assert found >= 54


@pytest.mark.parametrize("form", STREAMS)
def test_bytes_after_a_stream_are_no_truncation(tmp_path, form):
    file = _write(tmp_path / form, *STREAMS[form])
    content = file.read_bytes() + (b"\0\0\1\xb9" if form.endswith(("mpg", "vob")) else b"")
    for tail in TAILS:
        file.write_bytes(content + tail)
        assert not is_truncated(file), tail


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "mpeg4"), (".webm", "libvpx")])
def test_live_files_declare_nothing(tmp_path, suffix, codec):
    file = _write(tmp_path / f"a{suffix}", codec, {"live": "1"})
    assert not is_truncated(file)
    assert not is_truncated(_cut(file, 0.6))


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"GI", b"\x1aE\xdf\xa3", b"RIFF", b"RIFF\xff\xff\xff\xffWAVE", b"FLV", b"no video"]
)
def test_files_that_declare_nothing(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    assert not is_truncated(tmp_path / "a.bin")


def test_truncated_files_are_noted_when_opened_and_damaged_in_the_audit(tmp_path):
    whole = _write(tmp_path / "whole.mkv", *FORMS["a.mkv"])
    cut = _cut(whole, 0.6)
    table = tmp_path / "clips.csv"
    table.write_text(f"path,label\n{whole.name},x\n{cut.name},y\n")
    source = VideoSource(data_config(source="videos", path=str(table)), (4, 16, 16), None)
    (note,) = (line for line in source.notes if "truncated" in line)
    assert note.startswith("1 of 2 clips is of files that end before their last byte")
    assert note.endswith(f"({cut.name})")
    sound, damaged = scan_clips(source, [0, 1])
    assert not sound.fault
    assert damaged.fault == "ends before its last byte, as a truncated file does"
