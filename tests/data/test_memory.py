"""Images kept in memory are the images; what workers hand over in 8 bits is float32 in a batch."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests.images import make_folder
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.sources.memory import InMemory


@pytest.mark.fast_cases("1")
@pytest.mark.parametrize("seed", range(3))
def test_kept_images_are_the_same_and_read_once(tmp_path, seed, monkeypatch):
    make_folder(tmp_path, per_class=5, seed=seed)
    plain = open_data(DataConfig(source="folder", path=str(tmp_path)), (9, 12))
    kept = open_data(DataConfig(source="folder", path=str(tmp_path), loader={"cache": True}), (9, 12))
    assert isinstance(kept.source, InMemory)
    rng = np.random.default_rng(seed)
    for _ in range(6):
        rows = rng.integers(0, len(plain.source), 7).tolist()
        assert torch.equal(plain.source.load(rows)["image"], kept.source.load(rows)["image"])
    kept.source.read(range(len(kept.source)))
    monkeypatch.setattr(kept.source.inner, "read", None)
    assert len(kept.source.read(range(len(kept.source)))["image"]) == 30
    assert kept.splits == plain.splits
    assert kept.source.digest(3) == plain.source.digest(3)


def test_eight_and_sixteen_bits_in_one_set(tmp_path):
    rng = np.random.default_rng(0)
    arrays = []
    for i in range(8):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < 4:
            path = path.with_suffix(".png")
            array = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
            Image.fromarray(array).save(path)
            arrays.append((path, array / 255))
        else:
            array = rng.integers(0, 65536, (6, 6, 3)).astype(np.uint16)
            tifffile.imwrite(path, array, photometric="rgb")
            arrays.append((path, array / 65535))
    for cache in (False, True):
        config = DataConfig(
            source="folder", path=str(tmp_path), bands={"names": ("r", "g", "b")}, scale=65535, loader={"cache": cache}
        )
        source = open_data(config, (6, 6), split=False).source
        for rows in ([0, 1], [4], list(range(8))):
            for row, x in zip(rows, source.load(rows)["image"], strict=True):
                wanted = next(a for path, a in arrays if path.as_posix().endswith(source.keys[row]))
                assert np.allclose(x.permute(1, 2, 0), wanted, atol=1e-6)


@pytest.mark.fast_cases("0")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_floats_from_any_number_of_workers(tmp_path, workers):
    make_folder(tmp_path, per_class=4)
    data = open_data(
        DataConfig(source="folder", path=str(tmp_path), loader={"num_workers": workers}, batch_size=3), (8, 8)
    )
    assert data.source.read([0])["image"].dtype == torch.uint8
    for batch in data.loader("train"):
        assert batch["image"].dtype == torch.float32
        assert torch.equal(batch["image"], data.source.load(batch["index"].tolist())["image"])
        assert batch["target"].dtype == torch.int64
