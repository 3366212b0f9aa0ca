"""A remedy that a verb prints can be followed in that verb, whatever is wrong with the images."""

import re
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.images import make_folder
from vitrail.cli.main import main
from vitrail.config.data import PATH_SETTINGS

SETTINGS = (
    "--data.batch_size 2 --data.loader.num_workers 0 --model.name vit --model.img_size 16 --model.patch_size 8 "
    "--model.embed_dim 8 --model.depth 1 --model.num_heads 1 --trainer.max_epochs 1 --trainer.accelerator cpu "
    "--trainer.precision 32-true --run.tensorboard false"
).split()
UNFIT = {"errors.on_band_mismatch", "errors.on_unreadable"}
ELSEWHERE = {*PATH_SETTINGS, *UNFIT, "batch_size", "loader.num_workers"}
# Verb -> the settings that it takes.
VERBS = {
    "predict": UNFIT,
    "explain": UNFIT,
    "evaluate": ELSEWHERE,
}


def _noise(bands, dtype="uint8", size=(20, 24)):
    shape = size if bands == 1 else (*size, bands)
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


# What is wrong -> makes such a file in a folder.
FAULTS = {
    "gray": lambda folder: Image.fromarray(_noise(1)).save(folder / "x.png"),
    "transparent": lambda folder: Image.fromarray(_noise(4)).save(folder / "x.png"),
    "palette": lambda folder: Image.fromarray(_noise(1)).convert("P").save(folder / "x.png", transparency=3),
    "deep": lambda folder: Image.fromarray(_noise(1, "uint16")).save(folder / "x.png"),
    "deep_tiff": lambda folder: tifffile.imwrite(folder / "x.tif", _noise(1, "uint16")),
    "five_bands": lambda folder: tifffile.imwrite(folder / "x.tif", _noise(5), photometric="minisblack"),
    "pages": lambda folder: tifffile.imwrite(folder / "x.tif", np.stack([_noise(3)] * 2), photometric="rgb"),
    "floats": lambda folder: tifffile.imwrite(folder / "x.tif", _noise(3, "float32"), photometric="rgb"),
    "text": lambda folder: (folder / "x.png").write_text("no image"),
    "empty": lambda folder: (folder / "x.jpg").write_bytes(b""),
    "cut": lambda folder: (folder / "x.png").write_bytes(next(folder.glob("*.*")).read_bytes()[:60]),
    "pointer": lambda folder: (folder / "x.png").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123\n"
    ),
    "strip": lambda folder: Image.fromarray(_noise(3, size=(1, 300))).save(folder / "x.png"),
    "huge": lambda folder: Image.new("RGB", (400, 300)).save(folder / "x.png"),
    "nothing": lambda folder: [file.unlink() for file in folder.iterdir()],
}


# The same for a run whose files have five named bands of 16 bits.
RASTERS = {
    "picture": lambda folder: Image.fromarray(_noise(3)).save(folder / "x.png"),
    "four_bands": lambda folder: tifffile.imwrite(folder / "x.tif", _noise(4, "uint16"), photometric="minisblack"),
    "other_type": lambda folder: _raster(folder / "x.tif", _noise(5, "uint8")),
    "signed": lambda folder: _raster(folder / "x.tif", _noise(5, "int16") - 100),
    "not_finite": lambda folder: _raster(folder / "x.tif", np.full((20, 24, 5), np.nan, "float32")),
    "large_values": lambda folder: _raster(folder / "x.tif", _noise(5, "uint16") * 200),
    "dark": lambda folder: [_raster(file, _noise(5, "uint16") // 100) for file in folder.parent.rglob("*.tif")],
    "text": FAULTS["text"],
    "cut": lambda folder: (folder / "x.tif").write_bytes((folder / "0.tif").read_bytes()[:900]),
    "masked": lambda folder: tifffile.imwrite(
        folder / "x.tif", _noise(5, "uint16"), photometric="minisblack", planarconfig="contig",
        extratags=[(42113, "s", 0, "none", True)],
    ),
}  # fmt: skip


def _raster(path, pixels):
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remedies")
    make_folder(folder / "own", ("a", "b"), (), 4)
    words = ["--data.source", "folder", "--data.path", str(folder / "own"), "--run.dir", str(folder / "run")]
    words += ["--data.images.max_pixels", "100000"]
    assert main(["train", *words, *SETTINGS]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def raster_run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rasters")
    for name in "ab":
        (folder / "own" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 9000, (20, 24, 5)).astype("uint16")
            _raster(folder / "own" / name / f"{i}.tif", pixels)
    words = ["--data.source", "folder", "--data.path", str(folder / "own"), "--run.dir", str(folder / "run")]
    words += ["--data.bands.names", "[blue, green, red, edge, nir]"]
    words += ["--data.scale", "10000"] if request.param == "stated" else []
    assert main(["train", *words, *SETTINGS]) == 0
    return folder / "run"


def _words(verb, run, images, out):
    if verb == "predict":
        return [str(run), str(images)]
    if verb == "explain":
        return [str(run), str(images / "a"), "--out", str(out)]
    return [str(run), "--data.path", str(images), "--resamples", "100"]


def _strange(text, allowed):
    """Settings that a message names and a verb does not take, other than the limit that was passed."""
    text = text.replace("more than data.images.max_pixels", "more than")
    named = set(re.findall(r"\b(?:data|model|task|trainer|run)\.([a-z_]+(?:\.[a-z_]+)*)\b", text)) - {
        "png",
        "tif",
        "jpg",
    }
    return named - allowed


def _check(run, tmp_path, capsys, faults, fault):
    """In evaluate, and in turn in one of the two verbs that take files."""
    spoil, skipped = faults[fault], ("predict", "explain")[list(faults).index(fault) % 2]
    images = tmp_path / "images"
    shutil.copytree(run.parent / "own", images)
    spoil(images / "a")
    for verb, allowed in VERBS.items():
        if verb == skipped:
            continue
        capsys.readouterr()
        main([verb, *_words(verb, run, images, tmp_path / "out")])
        said = capsys.readouterr()
        for line in (said.out + said.err).splitlines():
            print(line)
            assert not _strange(line.replace(str(tmp_path), ""), allowed), (verb, line)


@pytest.mark.fast_cases("deep_tiff", "five_bands", "nothing", "strip")
@pytest.mark.parametrize("fault", FAULTS)
def test_remedies_for_pictures(run, tmp_path, capsys, fault):
    _check(run, tmp_path, capsys, FAULTS, fault)


# The range of the values is the matter of these alone.
OF_THE_RANGE = {"other_type", "signed", "not_finite", "large_values", "dark"}


@pytest.mark.fast_cases("stated-four_bands")
@pytest.mark.parametrize(
    ("raster_run", "fault"),
    [("stated", fault) for fault in RASTERS] + [("from the type", fault) for fault in RASTERS if fault in OF_THE_RANGE],
    indirect=["raster_run"],
)
def test_remedies_for_rasters(raster_run, tmp_path, capsys, fault):
    _check(raster_run, tmp_path, capsys, RASTERS, fault)
