"""Long videos: where clips lie, what they show, the decision of a video, videos with captions."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.settings import data_config
from vitrail.cli.main import main
from vitrail.data.video.decode import each_frame, index_video, read_frames
from vitrail.data.video.sliding import slide, window_length
from vitrail.deploy.images import open_files
from vitrail.deploy.videos import classify_videos, decision_table, write_overlay
from vitrail.errors import ConfigError, DataError
from vitrail.figures.captions import Captions
from vitrail.runs.trained import ModelCard, StreamCard

SIZE = (4, 16, 24)


class Brightness:
    """A classifier of three classes, whose logits are the brightness of a clip, half of it, and 0."""

    card = ModelCard(
        "vivit", {}, ("bright", "half", "dark"), {"video": StreamCard(("gray",), (0.0,), (1.0,), SIZE)}, color="gray"
    )

    def __init__(self):
        self.seen = []

    def classify(self, batch, tta="none"):
        self.seen.append(batch["video"])
        level = batch["video"].mean(dim=(1, 2, 3, 4))
        return torch.stack([level, level / 2, torch.zeros_like(level)], dim=1), level[:, None]


def _video(file, rate=10, seconds=3.0, size=(32, 48), first=0):
    """A video whose brightness grows by 40 a second, with a key frame every 12 frames."""
    av = pytest.importorskip("av")
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 12
        stream.bit_rate = 4_000_000
        for i in range(round(rate * seconds)):
            pixels = np.full((*size, 3), first + 10 + round(40 * i / rate), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file


def _open(*files, fps=8.0, card=Brightness.card, **settings):
    settings |= {} if fps is None else {"video__fps": fps}
    return open_files(card, data_config(source="videos", path="x", color="gray", **settings), files)


def _damage(file):
    """Overwrite the second half of the frames of a video."""
    content = bytearray(file.read_bytes())
    start, end = len(content) // 2, len(content) - len(content) // 6
    content[start:end] = np.random.default_rng(0).bytes(end - start)
    file.write_bytes(content)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.fast_cases("0", "10", "19")
def test_windows_cover_the_whole_video_at_equal_steps(seed):
    rng = np.random.default_rng(seed)
    start, length, window, step = rng.uniform(0, 5), rng.uniform(0.5, 20), rng.uniform(0.2, 4), rng.uniform(0.1, 5)
    spans = slide(start, start + length, window, step)
    if window >= length:
        assert spans == [(start, start + length)]
        return
    starts = np.array([one for one, _ in spans])
    assert np.allclose([end - one for one, end in spans], window)
    assert math.isclose(starts[0], start)
    assert math.isclose(spans[-1][1], start + length) or math.isclose(starts[-1] - start, (len(spans) - 1) * step)
    assert np.allclose(np.diff(starts[:-1]), step)
    assert start + length - spans[-1][1] <= 1e-6
    assert len(spans) == math.ceil((length - window) / step - 1e-9) + 1


@pytest.mark.parametrize(
    ("length", "window", "step", "expected"),
    [
        (3.0, 1.0, None, [(0, 1), (1, 2), (2, 3)]),
        (2.5, 1.0, 1.0, [(0, 1), (1, 2), (1.5, 2.5)]),
        (1.0, 1.0, 0.5, [(0, 1)]),
        (9.0, None, None, [(0, 9)]),
        (0.3, 0.1, 0.1, [(0, 0.1), (0.1, 0.2), (0.2, 0.3)]),
    ],
)
def test_windows(length, window, step, expected):
    assert np.allclose(slide(0.0, length, window, step), expected)


def test_a_clip_shows_its_window_whatever_the_batch(tmp_path):
    file = _video(tmp_path / "a.mp4")
    found = []
    for batch_size in (1, 3, 32):
        classifier = Brightness()
        (decision,) = classify_videos(classifier, _open(file), step=0.25, batch_size=batch_size)
        clips = torch.cat(classifier.seen)
        assert clips.shape == (len(decision.windows), 1, *SIZE)
        found.append(clips)
        for window, clip in zip(decision.windows, clips, strict=True):
            # Frames every eighth of a second, each shown for a tenth: 10 + 40 t, rounded down to the frame.
            times = window.start + (np.arange(4) + 0.5) / 8
            expected = 10 + 40 * np.floor(times * 10 + 1e-6) / 10
            assert np.allclose(255 * clip.mean(dim=(0, 2, 3)).numpy(), expected, atol=2.5)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_video_is_decided_by_the_mean_of_its_clips(tmp_path):
    files = [_video(tmp_path / "a.mp4"), _video(tmp_path / "b.mp4", seconds=0.4, first=150)]
    classifier, videos = Brightness(), _open(*files)
    decisions = list(classify_videos(classifier, videos, batch_size=4))
    table = decision_table(classifier, videos, decisions, top_k=2)
    assert list(table) == ["path", "unit", "start", "end", "class", "probability", "class_2", "probability_2"]
    first, second = (table[table["path"] == str(file)].reset_index(drop=True) for file in files)
    assert list(first["unit"]) == ["video", *["clip"] * 6]
    assert (first["start"][0], first["end"][0]) == (0, 3.0)
    assert np.allclose(first["start"][1:], np.arange(6) / 2)
    # A video that is no longer than a clip is its only clip.
    assert list(second["unit"]) == ["video"]
    expected = decisions[0].logits.mean(dim=0).softmax(0)
    assert first["probability"][0] == pytest.approx(float(expected[0]), abs=1e-5)
    assert set(table["class"]) == {"bright"}


def test_lengths_that_the_run_does_not_take(tmp_path):
    spread, timed = (_open(_video(tmp_path / f"{fps}.mp4"), fps=fps) for fps in (None, 8.0))
    assert len(next(classify_videos(Brightness(), spread)).windows) == 1
    assert len(next(classify_videos(Brightness(), spread, window=1.0)).windows) == 3
    for data, settings, message in (
        (spread, {"step": 1.0}, "--step 1 needs --window SECONDS"),
        (timed, {"window": 2.0}, r"--window 2 is not needed: the run's clips last 0\.5 s \(4 frames"),
        (timed, {"step": 0.0}, "--step must be a number of seconds above 0, got 0"),
        (spread, {"window": math.inf}, "--window must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            list(classify_videos(Brightness(), data, **settings))
    assert window_length(timed.config, 4, None, None) == 0.5


@pytest.mark.parametrize("size", [(34, 48), (480, 320)])
def test_an_overlay_has_all_frames_at_their_times(tmp_path, size):
    videos, classifier = _open(_video(tmp_path / "a.mp4", rate=5, seconds=1, size=size)), Brightness()
    (decision,) = classify_videos(classifier, videos)
    write_overlay(classifier, videos, decision, tmp_path / "out" / "a.mp4")
    before, after = index_video(tmp_path / "a.mp4"), index_video(tmp_path / "out" / "a.mp4")
    assert np.allclose(after.times, before.times, atol=1e-3)
    factor = Captions(size, ()).factor
    assert after.size[0] > factor * size[0]
    assert after.size[1] == factor * size[1]
    frames = read_frames(after, range(5), "gray")
    levels = [frame[0, : factor * size[0]].float().mean().item() for frame in frames]
    assert np.allclose(levels, 10 + 8 * np.arange(5), atol=3)
    # The caption: dark letters and a bar on white.
    strip = frames[0][0, factor * size[0] :].float()
    assert strip.max() > 240
    assert strip.min() < 100


@pytest.mark.parametrize("name", ["short", "a class whose name is much longer than a frame is wide " * 3, "日本語"])
def test_captions_have_the_width_of_the_frame(name):
    captions = Captions((300, 240), [name])
    frame = np.zeros((300, 240, 3), np.uint8)
    drawn = captions.below(frame, name, 0.5, 12.34)
    assert drawn.shape == (*captions.size, 3)
    bar = drawn[301, :, 2]
    assert (bar == 178).sum() == 120
    # Nothing is cut off at the right.
    assert (drawn[310:, -3:] == 255).all()


def test_each_frame_is_that_of_the_index(tmp_path):
    index = index_video(_video(tmp_path / "a.avi", rate=7, seconds=2))
    found = list(each_frame(index, "gray"))
    assert [time for time, _ in found] == list(index.times)
    assert all(torch.equal(a, b) for (_, a), b in zip(found, read_frames(index, range(14), "gray"), strict=True))


def test_a_video_that_breaks_off_loses_no_other(tmp_path):
    files = [_video(tmp_path / f"{name}.mkv", seconds=4, size=(16, 24)) for name in "abcd"]
    _damage(files[1])
    _damage(files[3])
    with pytest.raises(DataError, match=r"b\.mkv"):
        list(classify_videos(Brightness(), _open(*files)))
    videos = _open(*files, errors__on_unreadable="skip")
    for batch_size in (5, 64):
        videos.source.left_out.clear()
        decisions = list(classify_videos(Brightness(), videos, batch_size=batch_size))
        assert [decision.video for decision in decisions] == [0, 2]
        assert [len(decision.windows) for decision in decisions] == [8, 8]
        assert [path for path, _ in videos.source.left_out] == [str(files[1]), str(files[3])]
        assert not any(str(tmp_path) in reason for _, reason in videos.source.left_out)


def test_clips_are_cropped_as_in_evaluation(tmp_path):
    card = dataclasses.replace(Brightness.card, crop_pct=0.5)
    classifier, videos = Brightness(), _open(_video(tmp_path / "a.mp4", size=(64, 96)), card=card)
    list(classify_videos(classifier, videos))
    assert classifier.seen[0].shape[2:] == SIZE
    assert videos.source.clip_size == (4, 32, 48)
    assert videos.batch([0])["video"].shape[2:] == SIZE


def _overlay(monkeypatch, folder, *inputs):
    """Run `vitrail predict` with an overlay; return its exit code and the number of batches."""
    classifier = Brightness()
    monkeypatch.setattr("vitrail.cli.predict._open", lambda arguments: (None, classifier, _open(*arguments.images)))
    return main(["predict", "run", *map(str, inputs), "--overlay", str(folder)]), len(classifier.seen)


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_an_overlay_replaces_no_input(tmp_path, monkeypatch, capsys, link):
    files = [_video(tmp_path / f"{name}.mp4", rate=5, seconds=0.4, size=(16, 24)) for name in "ab"]
    folder = tmp_path
    if link is not None:
        folder = tmp_path / "out"
        folder.mkdir()
        getattr(folder / "b.mp4", link)(files[1])
    before = [file.read_bytes() for file in files]
    assert _overlay(monkeypatch, folder, *files) == (2, 0)
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"would replace the input {files[link is not None]}" in line
    assert "name another folder" in line
    assert [file.read_bytes() for file in files] == before


def test_an_overlay_is_no_later_input(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "inputs"
    folder.mkdir()
    file = _video(folder / "a.mp4", rate=5, seconds=0.4, size=(16, 24))
    assert _overlay(monkeypatch, folder / "deep" / "out", folder) == (2, 0)
    assert f"lies in the input folder {folder}" in capsys.readouterr().err
    assert not (folder / "deep").exists()
    # A folder beside a file that is named by itself holds no input but that file.
    assert _overlay(monkeypatch, folder / "out", file)[0] == 0
    assert (folder / "out" / "a.mp4").is_file()
