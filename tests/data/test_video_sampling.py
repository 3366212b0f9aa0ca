"""Clips of training at random times, and the views and crops of evaluation."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.settings import data_config
from vitrail.bootstrap import Bootstrap
from vitrail.data import open_data
from vitrail.data.sampling import EpochShuffle
from vitrail.data.video.sampling import average_views, clip_times, random_position, view_positions
from vitrail.errors import ConfigError
from vitrail.evaluate.run import predict
from vitrail.evaluate.saved_predictions import _clip_accuracy


def _frames(folder, count=40, size=(8, 24)):
    """Frames whose red value is their number and whose green grows to the right."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.zeros((*size, 3), dtype=np.uint8)
        pixels[..., 0], pixels[..., 1] = 5 * i, 10 * np.arange(size[1])
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for split in ("train", "val"):
        for label in ("a", "b"):
            for clip in range(2):
                _frames(folder / split / label / str(clip))
    return folder


def _open(path, size=(4, 8, 8), **settings):
    settings = {"video__folder_fps": 25.0, **settings}
    return open_data(
        data_config(source="videos", path=str(path), batch_size=4, loader__num_workers=0, **settings), size
    )


def _numbers(clips):
    """Number of the frame at each time, ``(B, T)``."""
    return (clips[:, 0].mean(dim=(2, 3)) * 255 / 5).round().long()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "start", "end"), [(1, 0.0, 3.0), (4, 2.0, 3.5), (16, 1.0, 60.0)])
@pytest.mark.fast_cases("1-0.0-3.0-0", "16-1.0-60.0-4")
def test_random_clips_lie_inside_of_their_part(seed, count, start, end):
    rate = 1.2 * count / (end - start)
    times = clip_times(count, start, end, rate, random_position(count, rate, seed))
    assert start <= times[0]
    assert times[-1] <= end
    assert np.allclose(np.diff(times), 1 / rate)
    step = (end - start) / count
    segments = clip_times(count, start, end, None, random_position(count, None, seed))
    assert np.floor((np.array(segments) - start) / step).astype(int).tolist() == list(range(count))


def test_random_starts_are_uniform():
    starts = [clip_times(4, 0.0, 10.0, 2.0, random_position(4, 2.0, seed))[0] for seed in range(2000)]
    share = np.sort((np.array(starts) - 0.25) / 8)
    assert np.abs(share - np.linspace(0, 1, len(share))).max() < 0.04


@pytest.mark.parametrize("views", [1, 2, 5])
def test_views_run_from_the_start_to_the_end(views):
    starts = [clip_times(4, 1.0, 11.0, 4.0, at)[0] - 0.125 for at in view_positions(views, 4.0)]
    assert np.allclose(starts, np.linspace(1.0, 10.0, views) if views > 1 else [5.5])
    times = np.array([clip_times(4, 0.0, 8.0, None, at) for at in view_positions(views, None)])
    # Together the frames of all views are evenly spaced.
    assert np.allclose(np.diff(np.sort(times.ravel())), 8 / (4 * views))


def test_a_part_that_is_too_short_is_read_from_its_middle():
    assert clip_times(4, 0.0, 1.0, 2.0, 0.0) == clip_times(4, 0.0, 1.0, 2.0, 1.0) == [-0.25, 0.25, 0.75, 1.25]


@pytest.mark.parametrize("world", [1, 2])
def test_seeds_belong_to_the_images_of_an_epoch(world):
    whole = dict(iter(EpochShuffle(8, 3, 4, seeded=True)))
    assert list(whole) == list(EpochShuffle(8, 3, 4))
    parts = [pair for rank in range(world) for pair in EpochShuffle(8, 3, 4 // world, rank, world, seeded=True)]
    assert dict(parts) == whole
    later = EpochShuffle(8, 3, 4, seeded=True)
    later.set_epoch(1)
    assert set(dict(iter(later)).values()).isdisjoint(whole.values())


@pytest.mark.parametrize("fps", [None, 12.5])
def test_training_takes_another_clip_of_each_video_in_each_epoch(root, fps):
    loader = _open(root, video__fps=fps).loader("train", shuffle_seed=1)
    epochs = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        order = batch["index"].argsort()
        assert batch["index"][order].tolist() == [0, 1, 2, 3]
        epochs.append(_numbers(batch["video"])[order])
    assert torch.equal(epochs[0], epochs[2])
    assert (epochs[0] != epochs[1]).any(dim=1).all()
    if fps:
        assert (epochs[0].diff(dim=1) == 2).all()
    else:
        assert torch.equal(epochs[0] // 10, torch.arange(4).expand(4, 4))


def test_the_middle_in_each_epoch(root):
    data = _open(root, video__sampling="middle", video__fps=12.5)
    assert not data.source.draws
    (batch,) = data.loader("train", shuffle_seed=1)
    assert torch.equal(_numbers(batch["video"]), _numbers(data.batch([0, 1, 2, 3])["video"]))


def test_evaluation_reads_all_views_and_crops(root):
    data = _open(root, video__fps=12.5, video__views=2, video__crops=3)
    batches = list(data.loader("val"))
    # A batch of four clips holds one video of six.
    assert [len(batch["index"]) for batch in batches] == [1] * 4
    clips = batches[0]["video"]
    assert clips.shape == (6, 3, 4, 8, 8)
    numbers = _numbers(clips)
    assert torch.equal(numbers[:3], numbers[:1].expand(3, -1))
    assert numbers[0, 0] <= 1
    assert numbers[-1, -1] >= 38
    columns = (clips[:, 1, 0, 0] * 255 / 10).round().long()
    assert columns[:3].tolist() == [[*range(8)], [*range(8, 16)], [*range(16, 24)]]
    # Everything else reads the middle.
    assert len(data.batch([0])["video"]) == 1


def test_margins_are_cut_off_from_clips(root):
    data = _open(root, size=(2, 4, 4), images__crop_pct=0.5)
    (batch,) = data.loader("train", shuffle_seed=0)
    assert batch["video"].shape == (4, 3, 2, 4, 4)
    assert next(iter(data.loader("val")))["video"].shape == (4, 3, 2, 4, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"video__crops": 2}, "data.video.crops must be 1 or 3"),
        ({"video__views": 0}, "data.video.views must be at least 1"),
        ({"video__fps": 0.0}, "data.video.fps must be above 0"),
        ({"video__crops": 3, "images__resize": "squash"}, "data.video.crops must be 1 with data.images.resize squash"),
        ({"loader__cache": True}, "data.video.sampling must be middle beside data.loader.cache"),
    ],
)
def test_settings_that_contradict_each_other(root, settings, message):
    with pytest.raises(ConfigError, match=message):
        _open(root, **settings)


def test_predictions_are_means_over_views(root):
    """Logits of a video are the mean of those of its clips; the accuracy of single clips stands beside."""
    data = _open(root, video__fps=12.5, video__views=4)
    seen = []

    def classify(batch, tta):
        level = _numbers(batch["video"]).float().mean(dim=1)
        seen.append(level)
        return torch.stack([20 - level, level - 20], dim=1), level[:, None]

    written = []
    run = SimpleNamespace(weights_hash=lambda: "", write_predictions=lambda *values: written.append(values))
    predict(run, SimpleNamespace(classify=classify), data, "val", "val", "none")
    _, order, _, targets, logits, embeddings, _, origin, clips = written[0]
    levels = torch.cat(seen).view(4, 4)
    assert torch.allclose(torch.from_numpy(embeddings)[:, 0], levels.mean(dim=1))
    assert torch.allclose(torch.from_numpy(logits)[:, 1], (levels - 20).mean(dim=1))
    assert clips == [
        float(((row > 20).long() == target).float().mean()) for row, target in zip(levels, targets, strict=True)
    ]
    assert order == data.indices("val")
    assert origin["views"] == {"views": 4, "crops": 1, "fps": 12.5}


def test_clip_accuracy_has_an_interval_over_videos():
    """Four equal clips of each of thirty videos are thirty samples, not 120."""
    correct = np.repeat([0.0, 1.0], 15)
    table = pd.DataFrame({"clips_correct": correct})
    table.attrs["views"] = {"views": 4, "crops": 1}
    found = _clip_accuracy(table, Bootstrap(30))["clips"]
    assert found["accuracy"] == 0.5
    assert found["views"] == 4
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 30), rel=0.15)
    assert json.dumps(found)
    assert _clip_accuracy(pd.DataFrame({"path": [""]}), None) == {}


def test_views_of_an_input_lie_one_after_the_other():
    values = torch.rand(6, 2)
    assert torch.allclose(average_views(values, 2), torch.stack([values[:3].mean(0), values[3:].mean(0)]))
    assert average_views(values, 6) is values
