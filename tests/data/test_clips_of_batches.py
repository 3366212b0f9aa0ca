"""Clips of a batch: one of each video in training, all views of each in evaluation, also through wrapped sources."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.settings import data_config
from vitrail.data import open_data
from vitrail.data.sources.base import ImageSource, WrappedSource
from vitrail.data.sources.memory import InMemory
from vitrail.errors import ConfigError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Four clips of two classes for training and for validation, each frame as bright as its number."""
    root = tmp_path_factory.mktemp("clips")
    for folder in (root / split / label / clip for split in ("train", "val") for label in "xy" for clip in "ab"):
        folder.mkdir(parents=True)
        for i in range(8):
            Image.fromarray(np.full((4, 6), 10 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    return str(root)


def _open(path, **settings):
    config = data_config(source="videos", path=path, color="gray", batch_size=4, **settings)
    return open_data(config, (2, 4, 4))


@pytest.mark.parametrize("loading", ["shuffle", "balanced"])
@pytest.mark.parametrize("sampling", ["random", "middle"])
@pytest.mark.parametrize(("views", "crops"), [(1, 1), (3, 1), (2, 3)])
@pytest.mark.fast_cases("1-1-middle-shuffle", "2-3-random-balanced")
def test_training_reads_one_clip_and_evaluation_all_views(path, loading, sampling, views, crops):
    settings = {"video__views": views, "video__crops": crops, "loader__sampling": loading, "loader__num_workers": 0}
    data = _open(path, video__sampling=sampling, **settings)
    loader = data.loader("train", shuffle_seed=0)
    epochs = [batch["video"] for _ in range(3) for batch in loader]
    assert all(clips.shape == (4, 1, 2, 4, 4) for clips in epochs)
    middle = data.batch(data.indices("train"))["video"]
    if sampling == "middle":
        assert all(torch.equal(clips, middle) for clips in epochs)
    else:
        assert not torch.equal(epochs[0], epochs[1])
    rows = [(len(batch["target"]), len(batch["video"])) for batch in data.loader("val")]
    assert sum(targets for targets, _ in rows) == 4
    assert all(clips == targets * views * crops for targets, clips in rows)


@pytest.mark.parametrize(("views", "crops"), [(1, 1), (2, 1), (4, 1), (2, 3)])
def test_shared_memory_is_that_of_the_batches(path, views, crops, monkeypatch):
    wanted = []
    monkeypatch.setattr("vitrail.data.dataset.choose_workers", lambda asked, size: wanted.append(size) or 0)
    data = _open(path, video__views=views, video__crops=crops, loader__num_workers=2)
    for loader in (data.loader("train", shuffle_seed=0), data.loader("val")):
        assert wanted.pop() >= 1 * 2 * 4 * 4 * len(next(iter(loader))["video"])


class _Numbers(ImageSource):
    """Clips of one pixel, whose value is the index, or the seed; three views of each."""

    bands, keys, given_split = {"video": ("gray",)}, ["a", "b"], ["", ""]
    classes, targets, views, draws = ("x",), np.zeros(2, dtype=np.int64), 3, True

    def read(self, indices):
        return {"video": torch.tensor([float(i) for i in indices]).view(-1, 1, 1, 1, 1)}

    def read_clips(self, indices, seeds=None):
        return self.read(np.repeat(indices, 3) if seeds is None else seeds)


class _Doubled(WrappedSource):
    def change(self, streams):
        return {name: 2 * x for name, x in streams.items()}


@pytest.mark.parametrize(("wrap", "factor"), [(WrappedSource, 1), (_Doubled, 2), (InMemory, 1)])
def test_wrapped_sources_have_the_clips_of_theirs(wrap, factor):
    source = wrap(_Numbers())
    assert (source.views, source.draws) == (3, True)
    read = [source.read([1, 0]), source.read_clips([1, 0]), source.read_clips([1, 0], [7, 5])]
    expected = [[1, 0], [1, 1, 1, 0, 0, 0], [7, 5]]
    assert [(x["video"].flatten() / factor).tolist() for x in read] == expected


@pytest.mark.parametrize(
    ("setting", "value"), [("bands__use", ("gray",)), ("spectral__use", ("gray",)), ("spectral__derive", "edges")]
)
@pytest.mark.parametrize("source", ["videos", "moving_digits"])
def test_bands_of_images_are_refused_for_clips(path, setting, value, source):
    given = {"path": path} if source == "videos" else {}
    with pytest.raises(
        ConfigError, match=rf"data\.{setting.replace('__', '.')} .* does not apply to data.source {source}"
    ):
        open_data(data_config(source=source, color="gray", **given, **{setting: value}), (2, 4, 4))
