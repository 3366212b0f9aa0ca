"""The digits, their split, order and statistics; normalisation."""

import random

import numpy as np
import pytest
import torch

from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.normalization import Normalize, NormalizeStreams
from vitrail.data.sources.edges import edges
from vitrail.data.splits import stratified_split
from vitrail.errors import DataError, ShapeError


def test_digits_are_split_by_a_fixed_rule():
    data = open_data(DataConfig(), (8, 8))
    assert sum(map(len, data.splits.values())) == 1797
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 1259, "val": 179, "test": 359}
    again = open_data(DataConfig(batch_size=7), (24, 16))
    assert again.splits == data.splits
    assert again.source.load([0, 5])["image"].shape == (2, 1, 24, 16)
    for indices in data.splits.values():
        counts = np.bincount(data.source.targets[indices], minlength=10)
        assert counts.min() >= 0.9 * counts.max()


@pytest.mark.parametrize("seed", range(5))
def test_stratified_split_takes_each_class_share(seed):
    rng = random.Random(seed)
    classes = [f"c{i}" for i in range(rng.randint(2, 6))]
    targets = np.array([rng.randrange(len(classes)) for _ in range(400)])
    keys = [f"{seed}/{i}" for i in range(400)]
    fractions = {"test": rng.uniform(0.1, 0.4), "val": rng.uniform(0.1, 0.3)}
    splits = np.array(stratified_split(keys, targets, fractions, classes))
    for target in range(len(classes)):
        members = splits[targets == target]
        for name, fraction in fractions.items():
            assert (members == name).sum() == round(fraction * len(members))
    order = rng.sample(range(400), 400)
    shuffled = stratified_split([keys[i] for i in order], targets[order], fractions, classes)
    assert shuffled == splits[order].tolist()  # the order of the files does not matter


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="'b' has 1 image:"):
        stratified_split(["x", "y", "z", "w"], np.array([0, 0, 0, 1]), {"test": 0.3}, ["a", "b"])


def test_order_depends_on_seed_and_epoch_alone():
    data = open_data(DataConfig(batch_size=100), (8, 8))

    def order(seed, epoch):
        loader = data.loader("train", shuffle_seed=seed)
        loader.sampler.set_epoch(epoch)
        return torch.cat([b["index"] for b in loader])

    assert torch.equal(order(1, 2), order(1, 2))
    assert not torch.equal(order(1, 2), order(1, 3))
    assert not torch.equal(order(1, 2), order(2, 2))
    assert len(order(1, 2)) == 1200  # whole batches only


def test_each_pass_of_a_plain_loop_has_another_order():
    data = open_data(DataConfig(batch_size=100), (8, 8))
    loader = data.loader("train", shuffle_seed=3)
    passes = [torch.cat([b["index"] for b in loader]) for _ in range(3)]
    assert not torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[1], passes[2])
    again = data.loader("train", shuffle_seed=3)
    for epoch, seen in enumerate(passes):
        again.sampler.set_epoch(epoch)
        assert torch.equal(torch.cat([b["index"] for b in again]), seen)
    assert torch.equal(torch.cat([b["index"] for b in data.loader("train", shuffle_seed=3)]), passes[0])


def test_one_number_is_both_sides_and_the_data_is_printed_in_one_line():
    data = open_data(DataConfig(), 12)
    assert data.batch([0])["image"].shape == (1, 1, 12, 12)
    sizes = {split: f"{split} {len(rows):,}" for split, rows in data.splits.items()}
    assert repr(data) == f"ImageData(digits, 1,797 images: {', '.join(sizes.values())})"


def test_augmentation_for_a_loop_of_ones_own():
    assert open_data(DataConfig(), 8).augmentation() is None
    data = open_data(DataConfig(augment="standard", batch_size=16), 8)
    batch = next(iter(data.loader("train", shuffle_seed=0)))
    changed = data.augmentation()({"image": batch["image"]})["image"]
    assert changed.shape == batch["image"].shape
    assert not torch.equal(changed, batch["image"])


def test_statistics_are_those_of_the_training_images():
    data = open_data(DataConfig(), (8, 8))
    ((name, (mean, std)),) = data.statistics(most=10**6).items()
    assert name == "image"
    images = data.source.load(data.indices("train"))["image"].double()
    assert mean[0] == pytest.approx(images.mean().item(), abs=1e-5)
    assert std[0] == pytest.approx(images.std(correction=0).item(), abs=1e-5)


def test_normalize():
    x = torch.rand(2, 3, 5, 4)
    out = Normalize([0.1, 0.2, 0.3], [1.0, 2.0, 4.0])(x)
    assert torch.allclose(out[:, 2], (x[:, 2] - 0.3) / 4)
    with pytest.raises(ShapeError, match="expected 3 bands"):
        Normalize([0.1, 0.2, 0.3], [1.0, 2.0, 4.0])(x[:, :1])


def test_each_stream_is_normalized_by_its_own():
    streams = NormalizeStreams({"image": ([0.5], [2.0]), "spectral": ([0.1, 0.2], [1.0, 4.0])})
    batch = {"target": torch.zeros(3), "spectral": torch.rand(3, 2, 4, 4), "image": torch.rand(3, 1, 6, 5)}
    image, spectral = streams(batch)
    assert torch.allclose(image, (batch["image"] - 0.5) / 2)
    assert torch.allclose(spectral[:, 1], (batch["spectral"][:, 1] - 0.2) / 4)
    assert len(streams({"image": batch["image"]})) == 1
    assert not streams.state_dict()


def test_edges_are_slopes():
    ramp = torch.linspace(0, 0.9, 10).expand(1, 3, 7, 10)
    slope = edges(ramp)
    assert slope.shape == (1, 2, 7, 10)
    assert torch.allclose(slope[0, 0, :, 1:-1], torch.full((7, 8), 0.5 + 0.1), atol=1e-6)  # twice the step, over 2
    assert torch.allclose(slope[0, 1], torch.full((7, 10), 0.5), atol=1e-6)
    x = torch.rand(4, 1, 9, 8)
    assert torch.allclose(edges(x.mT).flip(1), edges(x).mT, atol=1e-6)
    assert edges((x > 0.5).float()).min() >= 0
    assert edges((x > 0.5).float()).max() <= 1


def test_edges_join_any_source():
    data = open_data(DataConfig(spectral={"derive": "edges"}, batch_size=5), (12, 10))
    assert data.source.bands == {"image": ("gray",), "spectral": ("edge_x", "edge_y")}
    batch = next(iter(data.loader("test")))
    assert torch.equal(batch["spectral"], edges(batch["image"]))
    assert data.splits == open_data(DataConfig(), (8, 8)).splits
    mean, std = data.statistics(most=10**6)["spectral"]
    values = edges(data.source.load(data.indices("train"))["image"]).double()
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-5)
    assert std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=1e-5)
