"""Parts of videos by time: clips of one file share no frame and no split, and folders of frames have the given rate."""

import numpy as np
import pytest
from PIL import Image

from tests.settings import data_config
from vitrail.data import open_data
from vitrail.data.video.decode import VideoIndex, index_video
from vitrail.data.video.sliding import SlidingClips
from vitrail.errors import ConfigError, DataError

FRAMES, RATE = 12, 4.0


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Two clips of twelve frames whose names have no leading zeros, each frame as bright as its number."""
    root = tmp_path_factory.mktemp("frames")
    for clip in "ab":
        (root / clip).mkdir()
        for i in range(FRAMES):
            Image.fromarray(np.full((4, 4), 10 * i, dtype=np.uint8)).save(root / clip / f"frame{i + 1}.png")
    return root


@pytest.fixture
def read(frames, tmp_path):
    def read(rows, header="path,label,start,end", rate=RATE, num_frames=2, **settings):
        table = tmp_path / "clips.csv"
        rows = [f"{frames}/{row}" for row in rows]
        table.write_text("\n".join([header, *rows]))
        settings = {"video__folder_fps": rate, **settings}
        config = data_config(source="videos", path=str(table), color="gray", **settings)
        return open_data(config, (num_frames, 4, 4), split=False)

    return read


def _numbers(data):
    return (25.5 * data.batch(range(len(data.source)))["video"].mean(dim=(1, 3, 4))).round().int().tolist()


def test_frames_of_a_folder_are_in_natural_order_and_at_the_given_rate(frames):
    index = index_video(frames / "a", RATE)
    assert [path.name for path in index.stamps] == [f"frame{i + 1}.png" for i in range(FRAMES)]
    assert index.duration == pytest.approx(FRAMES / RATE)


@pytest.mark.parametrize(
    ("given", "why"),
    [({"fps": 2.0}, r"data\.video\.fps 2"), ({}, r"the times of .*a@1-2"), ({"window": 1.0}, "a window of 1 s")],
)
def test_seconds_of_a_folder_need_its_rate(read, given, why):
    settings = {"video__fps": given["fps"]} if "fps" in given else {}
    rows, header = (["a,x"], "path,label") if given else (["a,x,1,2"], "path,label,start,end")
    with pytest.raises(ConfigError, match=rf"a is a folder of frames, and {why} is in seconds; set data\.video\.fold"):
        SlidingClips(read(rows, header, rate=None, **settings).source, given["window"], None, [0])
    assert len(SlidingClips(read(["a,x"], "path,label", rate=None).source, None, None, [0])) == 1


@pytest.mark.parametrize("rate", [None, 3.0, 4.0, 30.0])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.fast_cases("0-4.0", "2-None", "2-30.0")
def test_a_clip_has_no_frame_of_the_next_range(rate, seed):
    rng = np.random.default_rng(seed)
    times = tuple((np.arange(40) / rng.choice([4.0, 7.0, 25.0, 29.97])).tolist())
    index = VideoIndex(None, times, times, (1, 1))
    cuts = [times[i] for i in (0, 9, 17, 30)]
    for first, last, start, end in zip((0, 9, 17), (9, 17, 30), cuts, cuts[1:], strict=False):
        for at in (0.0, 0.5, 1.0):
            chosen = index.choose(8, start, end, rate, at)
            assert min(chosen) >= first
            assert max(chosen) < last


def test_ranges_beyond_a_video_are_reported(read, capsys):
    with pytest.raises(DataError, match=r"1 of 2 clips .* .*a@3-4 starts at 3 s, and its video ends at 3\.000 s"):
        read(["a,x,3,4", "b,y,2,9"])
    data = read(["a,x,3,4", "b,y,2,9"], errors__on_unreadable="skip")
    assert "1 of 1 clip ends after the last frame of the video" in capsys.readouterr().err
    assert _numbers(data) == [[9, 11]]


def test_clips_that_nearly_agree_have_names_of_their_own(read):
    keys = read(["a,x,0,1", "a,y,0,2", "a,x,1.2345671,2", "a,y,1.2345672,2", "b,x,0,"]).source.keys
    assert [key.rpartition("/")[2] for key in keys] == ["a@0-1", "a@0-2", "a@1.2345671-2", "a@1.2345672-2", "b"]


def test_clips_of_a_file_are_of_one_group_whatever_cells_are_empty(read):
    header = "path,label,start,end,group"
    groups = read(["a,x,0,1,", "a,y,1,2,p", "b,x,0,1,", "b,y,1,2,"], header).source.groups
    assert groups[0] == groups[1] == "p"
    assert groups[2] == groups[3] != "p"
    with pytest.raises(DataError, match="are in the groups p and q; clips of one file belong to one group"):
        read(["a,x,0,1,p", "a,y,1,2,q"], header)


def test_clips_without_labels_are_for_pretraining(frames, read, capsys):
    config = data_config(source="videos", path=str(frames), color="gray")
    data = open_data(config, (2, 4, 4))
    assert f"2 clips of {frames} without labels, for pre-training alone" in capsys.readouterr().err
    table = read(["a", "b"], "path")
    for source in (data.source, table.source):
        assert source.classes == ()
        assert source.targets.tolist() == [-1, -1]
    with pytest.raises(DataError, match="clips have no labels; the run knows x, y: label them, or"):
        open_data(config, (2, 4, 4), ["x", "y"], split=False)
