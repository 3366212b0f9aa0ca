"""Putting runs to work on files: pictures, rasters of their own bands, pairs, and what cannot be read."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile

from tests.images import save_image
from vitrail.cli.main import main
from vitrail.cli.recipes import load_run_recipe
from vitrail.data import open_data
from vitrail.runs.trained import load_classifier

BANDS = ["--data.bands.names", "[blue, green, red, nir]"]
SMALL = (
    "--data.img_size 16 --data.batch_size 4 --data.loader.num_workers 0 --trainer.max_epochs 1 "
    "--trainer.accelerator cpu --trainer.precision 32-true --run.tensorboard false"
).split()
VIT = "--model.name vit --model.patch_size 8 --model.embed_dim 8 --model.depth 1 --model.num_heads 2".split()
HVT = (
    "--model.name hvt --model.patch_size 4 --model.embed_dim 8 --model.spectral_embed_dim 8 --model.depths [1,1] "
    "--model.num_heads [1,2] --model.fusion_heads 2"
).split()


def raster(path, number, level, kind=np.uint16):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(hash(str(path)) % 2**32).normal(level, 0.05, (number, 18, 22)).clip(0, 1)
    array = values.astype(kind) if kind == np.float32 else (values * np.iinfo(kind).max).astype(kind)
    tifffile.imwrite(path, array, photometric="minisblack")


def predicted(capsys, *words, code=0):
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == code
    captured = capsys.readouterr()
    if code:
        assert len(captured.err.strip().splitlines()) == 1, captured.err
        assert captured.err.startswith("vitrail: error: ")
    return captured


@pytest.fixture(scope="module")
def rasters(tmp_path_factory):
    root = tmp_path_factory.mktemp("rasters")
    for split in ("train", "val"):
        for level, name in ((0.2, "dark"), (0.8, "light")):
            for i in range(4):
                raster(root / split / name / f"{i}.tif", 4, level)
    return root


@pytest.fixture(scope="module")
def run_of_bands(rasters):
    run = rasters.parent / "bands"
    assert main(["train", "--data.source", "folder", "--data.path", str(rasters), *BANDS, "--data.bands.use",
                 "[red, nir]", *SMALL, *VIT, "--run.dir", str(run)]) == 0  # fmt: skip
    return run


def test_rasters_are_classified_as_they_are_in_training(run_of_bands, rasters, capsys, tmp_path):
    out = tmp_path / "out.csv"
    predicted(capsys, run_of_bands, rasters / "val", "--out", out, "--batch-size", "3", "--top-k", "1")
    table = pd.read_csv(out)
    trained = load_classifier(run_of_bands)
    data = open_data(load_run_recipe(run_of_bands / "recipe.yaml").data, (16, 16))
    batch = data.batch(data.indices("val"))
    best = trained.classify(batch)[0].softmax(1).max(1)
    files = [str(rasters / data.source.keys[i]) for i in batch["index"].tolist()]
    wanted = dict(zip(files, zip(best.values.tolist(), best.indices.tolist(), strict=True), strict=True))
    assert sorted(table["path"]) == sorted(wanted)
    assert len(table) == 8
    for path, name, probability in table.itertuples(index=False):
        assert probability == pytest.approx(wanted[path][0], abs=2e-6)
        assert name == data.source.classes[wanted[path][1]]


def test_files_of_other_bands_are_refused(run_of_bands, tmp_path, capsys):
    raster(tmp_path / "x.tif", 5, 0.5)
    told = predicted(capsys, run_of_bands, tmp_path / "x.tif", code=1).err
    assert "x.tif has 5 bands where 4 are wanted (blue, green, red, nir)" in told
    picture = save_image(tmp_path / "photo.png")
    for more in ([], ["--data.errors.on_band_mismatch", "convert"]):
        told = predicted(capsys, run_of_bands, picture, *more, code=1).err
        assert re.search("photo.png is a picture where 4 bands are wanted", told)


def test_what_cannot_be_read_is_told_first_or_left_out(run_of_bands, rasters, tmp_path, capsys):
    folder = shutil.copytree(rasters / "val", tmp_path / "new")
    (folder / "dark" / "bad.tif").write_bytes((folder / "dark" / "0.tif").read_bytes()[:900])
    (folder / "light" / "notes.tif").write_text("no image")
    told = predicted(capsys, run_of_bands, folder, code=1).err
    assert "2 of 10 files" in told
    assert "--data.errors.on_unreadable skip" in told
    captured = predicted(capsys, run_of_bands, folder, "--data.errors.on_unreadable", "skip")
    assert captured.out.count("\n") == 1 + 8
    assert captured.err.count("left out: ") == 2


@pytest.mark.slow
def test_pairs_are_classified_with_their_second_files(tmp_path, capsys):
    for name, level in (("dark", 60), ("light", 190)):
        for i in range(5):
            save_image(tmp_path / "photos" / name / f"{i}.png", level=level, seed=i)
            raster(tmp_path / "second" / name / f"{i}.tif", 2, level / 255)
    run = tmp_path / "run"
    second = ["--data.spectral.path", tmp_path / "second", "--data.spectral.names", "[nir, swir]"]
    words = ["train", "--data.source", "folder", "--data.path", tmp_path / "photos", *second, *SMALL, *HVT]
    assert main([*map(str, words), "--run.dir", str(run)]) == 0
    assert "give their folder with --spectral" in predicted(capsys, run, tmp_path / "photos", code=2).err
    captured = predicted(capsys, run, tmp_path / "photos", "--spectral", tmp_path / "second")
    assert captured.out.count("\n") == 1 + 10
    (tmp_path / "second" / "dark" / "1.tif").unlink()
    told = predicted(capsys, run, tmp_path / "photos", "--spectral", tmp_path / "second", code=1).err
    assert "1 of 10 images has no second file" in told


def test_folders_are_listed_by_the_rule_of_training(run_of_bands, rasters, tmp_path, capsys):
    folder = shutil.copytree(rasters / "val", tmp_path / "new")
    (folder / "dark" / "0.xml").write_text("<annotation/>")
    (folder / "notes.txt").write_text("no image")
    (folder / "again").symlink_to(".")
    shutil.copytree(run_of_bands, folder / "runs" / "x")
    (folder / "dark" / "0.tif").rename(folder / "dark" / "0.dat")
    captured = predicted(capsys, run_of_bands, folder)
    assert captured.out.count("\n") == 1 + 8
    assert "passed over 2 files that are not images: 1 .txt, 1 .xml" in captured.err
    assert "passed over 1 folder that vitrail wrote" in captured.err
    assert "1 link to a folder above, not followed" in captured.err
    pointer = tmp_path / "pointer.tif"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "run `git lfs pull`" in predicted(capsys, run_of_bands, pointer, code=1).err


def test_no_remedy_of_training_is_offered_to_a_run(tmp_path, capsys):
    for name in ("a", "b"):
        for i in range(8):
            save_image(tmp_path / "d" / name / f"{i}.png", seed=i)
    run = tmp_path / "run"
    words = ["train", "--data.source", "folder", "--data.path", tmp_path / "d", "--data.splitting.test_fraction", 0]
    assert main([*map(str, words), "--data.splitting.val_fraction", "0.3", *SMALL, *VIT, "--run.dir", str(run)]) == 0
    for i in range(3):
        save_image(tmp_path / "gray" / f"{i}.tif", mode="L")
        (tmp_path / "deep").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "deep" / f"{i}.tif", np.full((9, 9), 900, np.uint16))
        (tmp_path / "cut").mkdir(exist_ok=True)
        (tmp_path / "cut" / f"{i}.tif").write_bytes(b"II*\0 cut")
    for name, count in {"gray": "3 of 3", "deep": "3 of 3", "cut": "each of 3 files"}.items():
        told = predicted(capsys, run, tmp_path / name, code=1).err
        assert count in told
        assert "data.color" not in told
        assert "band_names" not in told
