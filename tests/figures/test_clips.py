"""Pictures and animations of clips: frames in their order, one scale for a whole clip, the same pixels again."""

import numpy as np
import pytest
from PIL import Image

from vitrail.figures import animation
from vitrail.figures.animation import Mp4Writer, write_animation
from vitrail.figures.clips import animated_overlay, clip_cells, clip_part_cells, panes
from vitrail.figures.display import as_frames
from vitrail.figures.heatmaps import RANK, draw_cells

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("length", "shown"), [(1, [1]), (3, [1, 2, 3]), (8, list(range(1, 9))),
                                                (16, [2, 4, 6, 8, 10, 12, 14, 16])])  # fmt: skip
@pytest.mark.parametrize("color", [(), (3,)])
@pytest.mark.fast_cases("color0-1-shown0", "color1-1-shown0")
def test_a_row_of_frames_and_one_for_each_method(length, shown, color):
    frames = RNG.random((length, 12, 10, *color))
    heat = RNG.random((length, 12, 10))
    rows, labels = clip_cells(frames, {"rollout": heat, "probe": -heat}, {"": "clip", "rollout": "of a"}, {"probe"})
    assert [cell.title for cell in rows[0]] == [f"frame {number}" for number in shown]
    assert [label.split("\n")[0] for label in labels] == ["clip", "of a", "probe"]
    for row in rows:
        for cell, number in zip(row, shown, strict=True):
            assert np.array_equal(cell.picture, frames[number - 1])
    assert [cell.signed for cell in rows[2]] == [True] * len(shown)
    draw_cells(rows, labels, RANK)


def test_ranks_and_line_are_of_the_whole_clip():
    """A frame with the largest values lies inside the line, all others outside."""
    heat = RNG.random((10, 40, 40))
    heat[4] += 5
    rows, labels = clip_cells(np.zeros((10, 40, 40)), {"rollout": heat}, {})
    inside = {cell.title: (below.heat >= below.level).mean() for cell, below in zip(*rows, strict=True)}
    assert inside.pop("frame 5", None) == 1 or not inside
    assert max(inside.values()) < 0.01
    assert labels[1].endswith(f"top 10 % hold {heat[4].sum() / heat.sum():.0%}")


def test_parts_lie_over_the_frame_in_the_middle_of_their_slice():
    frames = RNG.random((8, 12, 12))
    parts = np.zeros((2, 4, 3, 3))
    parts[0, 1, 2, 0] = 2
    rows, labels = clip_part_cells(frames, parts)
    assert labels == ["0", "1"]
    assert [cell.title for cell in rows[0]] == ["frame 2", "frame 4", "frame 6", "frame 8"]
    heat = rows[0][1].heat
    assert heat.shape == (12, 12)
    assert np.all(heat[8:, :4] == 36)
    assert heat.sum() == 36 * 16
    assert not rows[1][1].heat.any()


def test_frames_of_a_clip_have_one_contrast():
    import torch

    clips = torch.rand(2, 4, 3, 6, 5) * torch.tensor([0.1, 0.5, 1.0]).view(1, 1, 3, 1, 1)
    frames = as_frames(clips)
    assert frames.shape == (2, 3, 6, 5)
    assert frames[:, 0].max() < frames[:, 2].max()
    assert np.allclose(as_frames(clips[:, :3]), clips[:, :3].permute(0, 2, 3, 4, 1))


def test_an_animation_shows_the_clip_beside_its_overlay():
    frames, heat = RNG.random((4, 10, 8, 3)), np.zeros((4, 10, 8))
    heat[2] = 1
    pixels = animated_overlay(frames, heat, signed=False, least=16)
    assert pixels.shape == (4, 20, 16 + 8 + 16, 3)
    assert np.array_equal(pixels[1, ::2, :16:2], np.round(255 * frames[1]))
    right = pixels[:, :, 24:].astype(float).mean(axis=(1, 2))
    # Only where the map is large is the overlay bright and yellow: more red than blue.
    assert np.argmax(right[:, 0] - right[:, 2]) == 2


@pytest.mark.parametrize("size", [(20, 30), (21, 31)])
def test_written_animations(tmp_path, size):
    pytest.importorskip("av")
    from vitrail.data.video.decode import index_video, read_frames

    frames = np.stack([np.full((*size, 3), value, np.uint8) for value in (0, 60, 120, 250)])
    files = write_animation(frames, tmp_path / "a" / "clip_1.5_rollout", rate=4)
    assert [file.name for file in files] == ["clip_1.5_rollout.gif", "clip_1.5_rollout.mp4"]
    again = write_animation(frames, tmp_path / "b", rate=4)
    assert files[0].read_bytes() == again[0].read_bytes()
    for file, other in zip(files, again, strict=True):
        index = index_video(file)
        assert np.allclose(index.times, [0, 0.25, 0.5, 0.75], atol=0.011)
        decoded, repeated = (
            np.stack([frame.numpy() for frame in read_frames(index_video(one), range(4), "rgb")])
            for one in (file, other)
        )
        assert np.array_equal(decoded, repeated)
        assert np.allclose(decoded.mean(axis=(1, 2, 3)), [0, 60, 120, 250], atol=6)
    with Image.open(files[0]) as gif:
        assert gif.size == size[::-1]


def test_without_pyav_a_gif_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "can_write_mp4", lambda: False)
    assert [f.name for f in write_animation(np.zeros((2, 4, 4, 3), np.uint8), tmp_path / "x")] == ["x.gif"]


def test_a_failed_encoding_leaves_no_file(tmp_path):
    pytest.importorskip("av")
    from vitrail.files import replacing

    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "x.mp4") as temporary, Mp4Writer(temporary, (4, 4), 5):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("length", "size"), [(3, (12, 16)), (40, (90, 78)), (2, (300, 260))])
def test_panes_are_small_and_of_one_size(length, size):
    frames, heat = RNG.random((length, *size, 3)), RNG.random((length, *size))
    pixels = panes(frames, {"rollout": heat, "probe": heat - 0.5}, {"probe"})
    assert pixels.shape[0] == min(length, 32)
    assert pixels.dtype == np.uint8
    assert max(pixels.shape[1:3]) < 3 * 300
    assert (pixels[:, 0] == 255).all()
    height, width = pixels.shape[1] - 22, (pixels.shape[2] - 16) // 3
    assert width / height == pytest.approx(size[1] / size[0], abs=0.02)


def test_an_animation_on_a_page_has_at_most_so_many_bytes(tmp_path, monkeypatch):
    from vitrail.analyze.players import Animated
    from vitrail.report import players

    monkeypatch.setattr(animation, "can_write_mp4", lambda: False)
    one = Animated("a/b.mp4", "x 90% (true: y)", False, RNG.integers(0, 255, (16, 40, 60, 3), dtype=np.uint8))
    monkeypatch.setattr(players, "LARGEST", 15_000)
    picture = players._player("clip_1", one, ["rollout"], tmp_path / "report.html")
    assert picture.data_uri.startswith("data:image/gif;base64,")
    assert not picture.video
    assert (tmp_path / picture.file).stat().st_size <= 15_000
    with Image.open(tmp_path / picture.file) as gif:
        assert 2 <= gif.n_frames < 16
        # As long as the clip.
        assert gif.info["duration"] * gif.n_frames == 16 * 200
