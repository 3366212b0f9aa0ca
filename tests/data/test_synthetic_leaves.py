"""Synthetic leaves: each depends on its number alone, stress shows in the spectral bands alone, masks fit lesions."""

import numpy as np
import pytest
import torch

from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.leaf_renderer import CLASSES, draw_leaf, leaf_class
from vitrail.data.sources.base import unwrap_source
from vitrail.errors import ConfigError

STRESS = CLASSES.index("early_stress")


def test_more_images_change_none_and_split_none_anew():
    few = open_data(DataConfig(source="synthetic_leaves", leaves={"num_images": 240, "seed": 3}), (20, 24))
    many = open_data(DataConfig(source="synthetic_leaves", leaves={"num_images": 330, "seed": 3}), (20, 24))
    rows = [0, 7, 59, 13]
    for name, x in few.source.read(rows).items():
        assert torch.equal(x, many.source.read(rows)[name])
    assert few.source.targets.tolist() == many.source.targets[:240].tolist()
    assert {i for i in many.indices("test") if i < 240} == set(few.indices("test"))
    other = open_data(DataConfig(source="synthetic_leaves", leaves={"num_images": 240, "seed": 4}), (20, 24))
    assert not torch.equal(few.source.read(rows)["image"], other.source.read(rows)["image"])
    assert np.bincount(few.source.targets).tolist() == [40] * 6


@pytest.mark.parametrize("index", range(6))
def test_stress_changes_the_spectral_bands_alone(index):
    healthy, stressed = (draw_leaf(1, index, (40, 40), kind) for kind in (0, STRESS))
    assert np.array_equal(healthy.bands[:3], stressed.bands[:3])
    assert not healthy.mask.any()
    assert 0.1 < stressed.mask.sum() / stressed.leaf.sum() < 0.95
    where = stressed.mask
    assert (stressed.bands[5] - healthy.bands[5])[where].mean() < -0.02  # less near infrared
    assert (stressed.bands[6] - healthy.bands[6])[where].mean() > 0.02  # more short-wave infrared
    outside = ~healthy.leaf
    assert np.abs(stressed.bands - healthy.bands)[:, outside].max() < 0.1  # the soft rim of the leaf at most


@pytest.mark.parametrize("kind", [c for c in CLASSES if c not in ("healthy", "early_stress")])
@pytest.mark.parametrize("index", range(4))
@pytest.mark.fast_cases("0-leaf_spot", "0-rust", "1-blight", "2-mildew")
def test_masks_cover_what_lesions_change(kind, index):
    healthy, sick = (draw_leaf(2, index, (64, 64), CLASSES.index(k)) for k in ("healthy", kind))
    change = np.abs(sick.bands - healthy.bands).max(0)
    assert np.array_equal(healthy.leaf, sick.leaf)
    assert sick.mask.any()
    assert not (sick.mask & ~sick.leaf).any()
    assert np.median(change[sick.mask]) > 0.05
    untouched = sick.leaf & ~sick.mask
    assert np.median(change[untouched]) < 0.6 * np.median(change[sick.mask])


def test_another_size_shows_the_same_leaf():
    for index in range(4):
        large, small = (draw_leaf(0, index, (n, n)).bands for n in (96, 32))
        pooled = large.reshape(8, 32, 3, 32, 3).mean((2, 4))
        assert np.corrcoef(pooled.ravel(), small.ravel())[0, 1] > 0.9


def test_as_a_source():
    data = open_data(DataConfig(source="synthetic_leaves", leaves={"num_images": 48}), (16, 16))
    assert data.source.bands["spectral"] == ("red_edge_1", "red_edge_2", "nir", "swir_1", "swir_2")
    assert data.source.wavelengths["spectral"] == (705.0, 740.0, 865.0, 1610.0, 2190.0)
    assert all(key.startswith("synthetic/") for key in data.source.keys)
    masks = unwrap_source(data.source).masks(range(12))
    assert masks.shape == (12, 16, 16)
    assert masks.any(-1).any(-1).tolist() == [leaf_class(0, i) != 0 for i in range(12)]
    in_color = unwrap_source(data.source).masks(range(12), ("red", "green", "blue"))
    assert in_color.any(-1).any(-1).tolist() == [leaf_class(0, i) not in (0, 1) for i in range(12)]
    assert torch.equal(unwrap_source(data.source).masks(range(12), ("red", "nir")), masks)
    batch = next(iter(data.loader("train", shuffle_seed=0)))
    assert batch["spectral"].shape[1:] == (5, 16, 16)
    assert 0 <= batch["spectral"].min() <= batch["spectral"].max() <= 1
    rgb = open_data(
        DataConfig(source="synthetic_leaves", leaves={"num_images": 48}, bands={"use": ("nir", "red", "green")}),
        (16, 16),
    )
    assert rgb.source.bands == {"image": ("nir", "red", "green"),
                                "spectral": ("red_edge_1", "red_edge_2", "swir_1", "swir_2")}  # fmt: skip
    for wanted, left in ((("*",), 5), (("swir_*", "nir"), 3), ((), 0)):
        own = open_data(
            DataConfig(source="synthetic_leaves", leaves={"num_images": 48}, spectral={"use": wanted}), (16, 16)
        ).source
        assert own.bands["image"] == ("red", "green", "blue")
        assert len(own.bands.get("spectral", ())) == left
        assert set(own.read([0])) == set(own.bands)
    with pytest.raises(ConfigError, match="data brings one"):
        open_data(DataConfig(source="synthetic_leaves", spectral={"derive": "edges"}), (16, 16))
    with pytest.raises(ConfigError, match="which is built in"):
        open_data(DataConfig(source="synthetic_leaves", path="x"), (16, 16))
