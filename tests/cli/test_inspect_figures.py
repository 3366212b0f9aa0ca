"""``vitrail inspect --figures`` and inspecting a trained run: every family, and every kind of misuse."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.images import make_folder, save_image
from vitrail.cli import inspect
from vitrail.cli.main import main
from vitrail.runs.trained import load_trained

SWIN = ["swin", "--img-size", "32", "40", "--set", "embed_dim=8", "--set", "depths=[2,1]", "--set", "num_heads=[2,4]",
        "--set", "window_size=3", "--repeats", "1"]  # fmt: skip
MAXVIT = ["maxvit", "--img-size", "36", "--set", "stem_width=8", "--set", "embed_dim=[8]", "--set", "depths=[1]",
          "--set", "dim_head=4", "--set", "window_size=4", "--repeats", "1"]  # fmt: skip
HVT = ["hvt", "--img-size", "32", "--set", "patch_size=4", "--set", "embed_dim=8", "--set", "depths=[1,1]", "--set",
       "num_heads=[2,2]", "--set", "spectral_chans=5", "--repeats", "1"]  # fmt: skip
VIT = ["vit", "--img-size", "20", "28", "--set", "patch_size=8", "--set", "embed_dim=8", "--set", "depth=2", "--set",
       "num_heads=2", "--set", "in_chans=1", "--set", "token_learner={num_tokens: 3, layer: 1, fuse: true}",
       "--repeats", "1"]  # fmt: skip

# Laid out, as elsewhere, in the fast tests.
DRAWN = (pytest.mark.drawn, pytest.mark.slow)

PICTURES = {
    "vit": {"patches", "attention", "token_maps", "pyramid"},
    "swin": {"patches", "windows", "attention_mask", "relative_position", "merging", "attention", "pyramid"},
    "maxvit": {"partitions", "attention_mask", "relative_position", "attention", "pyramid"},
    "hvt": {"patches", "merging", "attention", "pyramid", "streams", "fusion"},
}


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return save_image(tmp_path_factory.mktemp("photo") / "photo.png", (40, 50), level=120)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    images = make_folder(tmp_path_factory.mktemp("images"), splits=("train", "val"), per_class=4)
    folder = tmp_path_factory.mktemp("runs") / "x"
    words = (
        "--model.name swin --model.img_size 16 --model.patch_size 4 --model.embed_dim 8 --model.depths [2] "
        "--model.num_heads [2] --model.window_size 2 --trainer.max_epochs 1 --trainer.accelerator cpu "
        "--data.batch_size 4 --data.loader.num_workers 0 --run.tensorboard false"
    ).split()
    assert main(["train", "--data.source", "folder", "--data.path", str(images), *words, "--run.dir", str(folder)]) == 0
    return folder


def _run(capsys, *argv):
    capsys.readouterr()
    code = main(["inspect", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _fails(capsys, words, code, message):
    got, out, err = _run(capsys, *words)
    assert (got, out) == (code, ""), err
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit", VIT),
        pytest.param("swin", SWIN, marks=DRAWN),
        pytest.param("maxvit", MAXVIT, marks=DRAWN),
        pytest.param("hvt", HVT, marks=DRAWN),
    ],
)
def test_every_family_is_drawn(request, capsys, tmp_path, photo, name, words):
    code, out, err = _run(capsys, *words, "--image", photo, "--figures", tmp_path / "deep" / "figures")
    assert (code, err) == (0, "")
    folder = tmp_path / "deep" / "figures"
    assert {path.name for path in folder.iterdir()} == {f"{n}.{k}" for n in PICTURES[name] for k in ("png", "svg")}
    wrote = [line.removeprefix("wrote ") for line in out.splitlines() if line.startswith("wrote ")]
    assert sorted(wrote) == sorted(map(str, folder.iterdir()))
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"), dtype=float)
        assert pixels.std() > 10 or not request.node.get_closest_marker("drawn"), path
        assert min(pixels.shape) > 200
    assert ("noise" in out) == (name == "hvt")


@pytest.mark.slow
def test_figures_come_out_the_same_again(capsys, tmp_path, photo):
    for folder in ("one", "two"):
        assert _run(capsys, *VIT, "--image", photo, "--figures", tmp_path / folder)[0] == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def _walk(monkeypatch, *argv):
    """The inputs that the verb walks."""
    seen = {}

    def walk(model, inputs, *args, **kwargs):
        seen.update(model=model, inputs=inputs)
        raise KeyboardInterrupt

    monkeypatch.setattr("vitrail.models.profile.walk", walk)
    with pytest.raises(KeyboardInterrupt):
        inspect.main(list(map(str, argv)))
    return seen["model"], seen["inputs"]


@pytest.mark.slow
def test_a_run_is_walked_with_its_weights_and_normalisation(capsys, monkeypatch, run, photo, tmp_path):
    code, out, err = _run(capsys, run, "--image", photo, "--repeats", "1", "--figures", tmp_path)
    assert (code, err) == (0, "")
    assert "a trained swin, weights of epoch 1" in out
    assert (tmp_path / "windows.png").exists()
    model, (image,) = _walk(monkeypatch, run, "--image", photo)
    trained = load_trained(run)
    for key, value in trained.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert image.shape == (1, 3, 16, 16)
    from vitrail.data.images import read_image

    card = trained.card
    pixels = read_image(photo, card.color, card.img_size, card.resize).float()[None] / 255
    assert torch.allclose(image, trained.normalize({"image": pixels})[0])


@pytest.mark.slow
def test_a_run_at_another_size_and_without_values(capsys, run, photo):
    code, out, _ = _run(capsys, run, "--image", photo, "--img-size", "20", "24", "--repeats", "1")
    assert code == 0
    assert "1 x 5 x 6 x 8" in out
    code, out, _ = _run(capsys, run, "--no-time", "--img-size", "12")
    assert code == 0
    assert "1 x 3 x 3 x 8" in out


def test_spectral_bands_from_a_file(capsys, monkeypatch, tmp_path, photo):
    rng = np.random.default_rng(0)
    bands = rng.normal(300, 50, (5, 32, 32)).astype(np.float32)
    for name, array in (("a.npy", bands), ("b.npy", bands.transpose(1, 2, 0))):
        np.save(tmp_path / name, array)
        _, (_, spectral) = _walk(monkeypatch, *HVT, "--image", photo, "--spectral", tmp_path / name)
        expected = (bands - bands.mean((1, 2), keepdims=True)) / bands.std((1, 2), keepdims=True)
        assert np.allclose(spectral[0], expected, atol=1e-4)
    _, (image, noise) = _walk(monkeypatch, *HVT, "--image", photo)
    assert image.min() >= -1
    assert image.max() <= 1
    assert noise.std() == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_an_image_of_many_bands(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(1).integers(0, 9000, (7, 50, 30), dtype=np.uint16))
    words = [*VIT, "--image", tmp_path / "x.npy", "--figures", tmp_path / "figures"]
    words[words.index("in_chans=1")] = "in_chans=7"
    code, out, _ = _run(capsys, *words)
    assert code == 0
    assert "image 1 x 7 x 20 x 28" in out
    assert (tmp_path / "figures" / "patches.png").exists()


def test_wrong_usage(capsys, tmp_path, run, photo):
    bands = tmp_path / "bands.npy"
    np.save(bands, np.zeros((4, 8, 8)))
    for words, message in (
        ([*SWIN, "--figures", tmp_path], "--image FILE"),
        ([*SWIN, "--image", photo, "--figures", photo], "is a file"),
        (
            [*SWIN[:-2], "--no-time", "--figures", tmp_path, "--image", photo],
            "--image cannot be combined with --no-time",
        ),
        ([*SWIN[:-2], "--no-time", "--spectral", bands], "--spectral cannot be combined with --no-time"),
        ([*SWIN, "--spectral", bands], "no spectral stream"),
        ([*HVT, "--spectral", bands], "(5, H, W) or (H, W, 5)"),
        ([*HVT, "--spectral", photo], "takes an array (.npy) of 5 bands"),
        ([run, "--set", "depths=[1]"], "settings are fixed; leave out --set depths"),
    ):
        _fails(capsys, words, 2, message)
    assert not [path for path in tmp_path.iterdir() if path != bands]


def test_failures(capsys, tmp_path, run, photo):
    broken = tmp_path / "broken.npy"
    broken.write_bytes(b"no array")
    endless = tmp_path / "endless.npy"
    np.save(endless, np.full((5, 4, 4), np.nan))
    large = tmp_path / "large.npy"
    np.save(large, np.full((3, 4, 4), 300.0))
    text = tmp_path / "text.npy"
    np.save(text, np.full((5, 4, 4), "a"))
    half = shutil.copytree(run, tmp_path / "half")
    (half / "model.safetensors").unlink()
    for words, message in (
        ([*HVT, "--spectral", broken], "not an array"),
        ([*HVT, "--spectral", tmp_path / "gone.npy"], "no such file"),
        ([*HVT, "--spectral", endless], "not finite"),
        ([*HVT, "--spectral", text], "numbers are wanted"),
        ([run, "--image", large], "trained on 0..1"),
        ([tmp_path / "no_run"], "no run folder"),
        ([tmp_path], "recipe.yaml"),
        ([half], "model.safetensors"),
        ([run, "--image", tmp_path / "gone.png"], "gone.png"),
    ):
        _fails(capsys, words, 1, message)
