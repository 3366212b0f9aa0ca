"""Statistics of bands against numpy on all pixels at once; files of them; the warning of swapped bands."""

import json

import numpy as np
import pytest
import torch

from tests.images import make_folder
from tests.settings import data_config
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.statistics import StreamStatistics, read_statistics, seem_swapped, write_statistics
from vitrail.errors import DataError


@pytest.mark.parametrize("seed", range(4))
def test_batch_by_batch_equals_all_at_once(seed):
    rng = np.random.default_rng(seed)
    number, bands = int(rng.integers(5, 40)), int(rng.integers(1, 7))
    x = rng.beta(0.4, 0.6, (number, bands, 9, 7)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 1.0
    x[rng.random(x.shape) < 0.05] = 0.0
    if seed == 3:
        x[:, 0] = 0.25  # a constant band
    gathered = StreamStatistics([f"b{i}" for i in range(bands)])
    for part in np.array_split(x, 4):
        gathered.add(torch.from_numpy(part))
    for i, band in enumerate(gathered.result()):
        values = x[:, i].astype(np.float64).ravel()
        inside = values[(values > 0) & (values < 1)]
        assert band.mean == pytest.approx(values.mean(), abs=1e-5)
        assert band.std == pytest.approx(values.std() or 1.0, abs=1e-5)
        assert band.mean_inside == pytest.approx(inside.mean(), abs=1e-5)
        assert band.std_inside == pytest.approx(inside.std() or 1.0, abs=1e-5)
        assert band.at_zero == pytest.approx((values == 0).mean(), abs=1e-6)
        assert band.at_one == pytest.approx((values == 1).mean(), abs=1e-6)
        for name, value in band.percentiles.items():
            exact = np.percentile(values, float(name), method="inverted_cdf")
            assert value == pytest.approx(exact, abs=1 / 4080)


def test_eight_bits_have_exact_percentiles():
    x = torch.arange(256).float().div(255).view(1, 1, 16, 16)
    gathered = StreamStatistics(["x"])
    gathered.add(x)
    assert gathered.result()[0].percentiles["50"] == pytest.approx(127 / 255, abs=1e-5)


def test_saturated_pixels_do_not_move_the_inner_mean():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.uniform(0.3, 0.5, (20, 1, 8, 8)).astype(np.float32))
    spoiled = x.clone()
    spoiled[:, :, :3] = 1.0
    plain, other = StreamStatistics(["x"]), StreamStatistics(["x"])
    plain.add(x)
    other.add(spoiled)
    assert other.result()[0].mean > 0.55
    assert other.result()[0].mean_inside == pytest.approx(plain.result()[0].mean, abs=0.01)
    assert other.result()[0].at_one == pytest.approx(3 / 8)


def test_a_file_of_statistics_is_used_for_its_bands(tmp_path):
    make_folder(tmp_path / "f", per_class=2)
    config = {"source": "folder", "path": str(tmp_path / "f")}
    data = open_data(data_config(**config), (8, 8))
    measured = data.measure(robust=True)
    write_statistics(tmp_path / "s.json", measured)
    images = data.source.load(data.indices("train"))["image"].double()
    inside = (images > 0) & (images < 1)
    mean = (images * inside).sum((0, 2, 3)) / inside.sum((0, 2, 3))
    used = open_data(
        data_config(**config, values__statistics=str(tmp_path / "s.json"), bands__use=("blue", "red")), (8, 8)
    )
    assert used.statistics()["image"][0] == pytest.approx(mean[[2, 0]].tolist(), abs=1e-5)
    assert read_statistics(tmp_path / "s.json", data.source.bands) == measured
    gray = data_config(
        **config,
        color="gray",
        errors__on_band_mismatch="convert",
        values__statistics=str(tmp_path / "s.json"),
    )
    with pytest.raises(DataError, match="has no band gray in the image stream"):
        open_data(gray, (8, 8)).statistics()
    for content in ("{", json.dumps({"kind": "other"}), json.dumps([1])):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match="is not what `vitrail data stats --out` writes"):
            read_statistics(tmp_path / "bad.json", {})
    with pytest.raises(DataError, match="cannot read"):
        read_statistics(tmp_path / "none.json", {})


def test_red_and_blue_that_seem_swapped():
    generator = torch.Generator().manual_seed(0)
    red = torch.rand(200, generator=generator)
    blue = (red - 0.1 + 0.15 * torch.randn(200, generator=generator)).clamp(0, 1)
    assert seem_swapped(red, blue) is None
    assert "blue is brighter than red" in seem_swapped(blue, red)
    assert seem_swapped(blue[:10], red[:10]) is None  # too few to tell
    assert seem_swapped(red, red + 0.005) is None  # gray


def test_the_warning_comes_at_training_with_the_bands_named_wrong(tmp_path):
    data = open_data(DataConfig(source="synthetic_leaves", leaves={"num_images": 60}), (16, 16))
    data.source.bands = {**data.source.bands, "image": ("blue", "green", "red")}
    with pytest.warns(UserWarning, match="blue is brighter than red"):
        data.statistics()
