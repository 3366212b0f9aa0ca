"""``vitrail explain`` on tiny runs: what it writes is what the library says, and every misuse is one clear line."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from tests.cli.test_verbs import SMALL, fails
from tests.images import make_folder, save_image
from vitrail.analyze.examples import choose_methods
from vitrail.cli.main import main
from vitrail.data.images import read_image
from vitrail.explain import explain
from vitrail.runs import load_trained

pytestmark = pytest.mark.usefixtures("probes")


def _train(folder, *words):
    assert main(["train", *words, *SMALL, "--run.dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), splits=("train", "val"), per_class=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory, images):
    return _train(tmp_path_factory.mktemp("runs") / "x", "--data.source", "folder", "--data.path", str(images))


def _explain(*words):
    assert main(["explain", *map(str, words)]) == 0


def _content(out):
    return json.loads((out / "explanations.json").read_text())


@pytest.mark.slow
def test_what_is_written_is_what_the_library_says(run, images, tmp_path, capsys):
    out, file = tmp_path / "out", sorted((images / "val" / "light").iterdir())[0]
    _explain(run, file, "--method", "rollout", "probe_signed", "--out", out, "--set", "rollout.head_fusion=max",
             "--set", "probe_signed.power=3", "--target", "dark")  # fmt: skip
    assert "1 image explained by rollout, probe_signed" in capsys.readouterr().out
    trained = load_trained(run)
    raw = read_image(file, size=(16, 16))[None].float() / 255
    inputs = trained.normalize({"image": raw})
    content = _content(out)
    (entry,) = content["images"]
    for method, settings, target in (("rollout", {"head_fusion": "max"}, None), ("probe_signed", {"power": 3}, 0)):
        expected = explain(trained.model, inputs, method, target, **settings)
        said = entry["methods"][method]
        written = np.load(out / said["streams"]["image"]["map"])
        assert written.dtype == np.float32
        assert np.allclose(written, expected.map[0].numpy(), atol=1e-6)
        assert np.allclose(np.load(out / said["streams"]["image"]["tokens"]), expected.tokens[0].numpy(), atol=1e-6)
        assert content["methods"][method]["settings"] == expected.settings
        assert said["target"] == (None if target is None else "dark")
        with Image.open(out / said["overlay"]) as overlay:
            assert overlay.size == (448, 448)
    probabilities = trained.model(*inputs).detach().softmax(1)[0]
    assert entry["predicted"] == trained.card.classes[int(probabilities.argmax())]
    assert entry["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert (entry["path"], entry["true"]) == (str(file), "light")
    assert content["classes"] == ["dark", "light"]
    assert content["methods"]["probe_signed"]["signed"]
    with Image.open(out / entry["panel"]) as panel:
        assert panel.width > 2 * panel.height


@pytest.mark.slow
def test_batches_and_names(run, images, tmp_path):
    """Small batches give the same; two images of the same name are kept apart."""
    for size in (1, 3):
        _explain(run, "--out", tmp_path / str(size), "--number", 3, "--split", "train", "--batch-size", size)
    one, three = _content(tmp_path / "1"), _content(tmp_path / "3")
    assert [i["path"] for i in one["images"]] == [i["path"] for i in three["images"]]
    assert [i["true"] for i in one["images"]] == ["dark", "light", "dark"]
    panels = [i["panel"] for i in one["images"]]
    assert len(set(panels)) == 3
    for a, b in zip(one["images"], three["images"], strict=True):
        maps = [np.load(tmp_path / n / i["methods"]["rollout"]["streams"]["image"]["map"]) for n, i in
                (("1", a), ("3", b))]  # fmt: skip
        assert np.allclose(*maps, atol=1e-6)
    assert not list((tmp_path / "1").rglob("*.tmp"))


def test_folders_gifs_and_other_sizes(run, images, tmp_path):
    folder = tmp_path / "new"
    save_image(folder / "a.png", (40, 20))
    Image.open(folder / "a.png").quantize(8).save(folder / "b.gif")
    (folder / "c.png").write_text("no image")
    out = tmp_path / "out"
    _explain(run, folder, "--out", out, "--size", 16, 24, "--data.errors.on_band_mismatch", "convert",
             "--data.errors.on_unreadable", "skip")  # fmt: skip
    content = _content(out)
    assert content["size"] == [16, 24]
    assert [i["true"] for i in content["images"]] == [None, None]
    assert [np.load(f).shape for f in sorted((out / "maps").glob("?_rollout.npy"))] == [(16, 24)] * 2


@pytest.fixture(scope="module")
def two_streams(tmp_path_factory):
    """A run on TIFF files of five bands, three for the image and two for the other stream, and one on two files."""
    root, rng = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    for name in ("dry", "wet"):
        for i in range(10):
            for part, bands in (("five", 5), ("three", 3), ("two", 2)):
                path = root / part / name / f"{i}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(
                    path, rng.integers(0, 60000, (bands, 16, 16)).astype(np.uint16), photometric="minisblack"
                )
    hvt = ["--model.name", "hvt", "--model.img_size", "16", "--model.patch_size", "4", "--model.embed_dim", "8",
           "--model.depths", "[1]", "--model.num_heads", "[2]", "--data.source", "folder", "--trainer.max_epochs", "1",
           "--trainer.accelerator", "cpu", "--data.loader.num_workers", "0", "--run.tensorboard", "false",
           "--data.batch_size", "4"]  # fmt: skip
    one = ["--data.path", str(root / "five"), "--data.bands.names", "[b,g,r,n,s]", "--data.bands.use", "[r,g,b]",
           "--data.spectral.use", "[n,s]", "--run.dir", str(root / "one")]  # fmt: skip
    two = ["--data.path", str(root / "three"), "--data.bands.names", "[r,g,b]", "--data.spectral.path",
           str(root / "two"), "--data.spectral.names", "[n,s]", "--run.dir", str(root / "pair")]  # fmt: skip
    for words in (one, two):
        assert main(["train", *hvt, *words]) == 0
    return root


def test_two_streams(two_streams, tmp_path, capsys):
    root, out = two_streams, tmp_path / "out"
    _explain(root / "one", root / "five" / "wet" / "3.tif", "--out", out, "--method", "rollout", "probe_random")
    (entry,) = _content(out)["images"]
    streams = entry["methods"]["rollout"]["streams"]
    assert list(streams) == ["image", "spectral"]
    assert streams["image"]["share"] + streams["spectral"]["share"] == pytest.approx(1, abs=1e-5)
    assert list(entry["methods"]["probe_random"]["streams"]) == ["image"]
    raw = tifffile.imread(root / "five" / "wet" / "3.tif").astype(np.float32) / 65535
    batch = {"image": torch.from_numpy(raw[[2, 1, 0]])[None], "spectral": torch.from_numpy(raw[3:])[None]}
    trained = load_trained(root / "one")
    expected = explain(trained.model, trained.normalize(batch))["spectral"].map[0].numpy()
    assert np.allclose(np.load(out / streams["spectral"]["map"]), expected, atol=1e-6)
    files = [root / "three" / "dry", root / "three" / "wet" / "1.tif"]
    fails(capsys, ["explain", root / "pair", *files, "--out", out], 2, "folder with --spectral")
    fails(capsys, ["explain", root / "pair", files[1], "--out", out, "--spectral", root], 1, "no second file")
    fails(capsys, ["explain", root / "one", files[1], "--out", out], 1, "3 bands where 5 are wanted")
    fails(capsys, ["explain", root / "one", files[1], "--out", out, "--spectral", root], 2, "omit --spectral")
    _explain(root / "pair", files[1], "--out", tmp_path / "p", "--spectral", root / "two" / "wet")
    assert list(_content(tmp_path / "p")["images"][0]["methods"]["rollout"]["streams"]) == ["image", "spectral"]
    _explain(root / "pair", "--out", tmp_path / "q", "--number", 1)
    assert len(_content(tmp_path / "q")["images"]) == 1


@pytest.mark.slow_cases("words9-2-it fits no model")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--method", "rolout"], 2, "no method 'rolout'; did you mean 'rollout'.*methods: "),
        (["--method", "rollout", "rollout"], 2, "named twice"),
        (["--set", "rollout.discard=0.5"], 2, "rollout has no setting 'discard'; did you mean 'discard_from'"),
        (["--set", "rollout.discard_ratio=2"], 2, "below 1, got 2"),
        (["--set", "gradcam.layer=x"], 2, "'gradcam' is given, which is none of the methods"),
        (["--set", "layer=x"], 2, "METHOD.KEY=VALUE"),
        (["--method", "probe_signed", "--target", "green"], 2, "no class 'green'.*dark, light .or by index, 0 to 1"),
        (["--method", "probe_signed", "--target", "2"], 2, "no class '2'"),
        (["--target", "dark"], 2, "does not apply to rollout"),
        (["--method", "rollout", "probe_refused"], 2, "it fits no model"),
        (["--masks", "x"], 2, "--masks has no effect without --measure"),
        (["--size", "1", "2", "3"], 2, "--size takes one number"),
        (["--number", "0"], 2, "at least 1"),
        (["--split", "test"], 1, "no 'test' split, only train, val"),
        (["--spectral", "x"], 2, "requires image files"),
        (["--metod", "x"], 2, "did you mean '--method'"),
    ],
)
def test_misuse(capsys, run, tmp_path, words, code, message):
    fails(capsys, ["explain", run, "--out", tmp_path / "out", *words], code, message)
    assert not (tmp_path / "out").exists()  # nothing begun


def test_files_that_do_not_fit(capsys, run, images, tmp_path):
    out = ["--out", tmp_path / "out"]
    fails(capsys, ["explain", run, tmp_path / "none.png", *out], 1, "no file or folder at")
    (tmp_path / "bad.png").write_text("bad")
    fails(
        capsys, ["explain", run, images / "val", tmp_path / "bad.png", *out], 1, "1 of 17 files is not a readable image"
    )
    gray = save_image(tmp_path / "gray.png", mode="L")
    fails(capsys, ["explain", run, gray, *out], 1, r"has 1 band \(L\)")
    fails(capsys, ["explain", run, images / "val", "--split", "val", *out], 2, "--split is of the run's own")
    fails(capsys, ["explain", run, images / "val", "--out", gray], 1, "is a file; name a folder")
    fails(capsys, ["explain", images, *out], 1, "lacks recipe.yaml")
    assert not (tmp_path / "out").exists()


def test_methods_are_listed(capsys):
    assert main(["explain", "--methods"]) == 0
    text = capsys.readouterr().out
    assert "head_fusion=mean" in text
    assert "Gradient of the class times the input." in text


@pytest.mark.slow
def test_measure(run, images, tmp_path, capsys):
    masks, out = tmp_path / "masks", tmp_path / "out"
    for i, file in enumerate(sorted((images / "val" / "dark").iterdir())):
        with Image.open(file) as image:
            mask = np.zeros((image.height, image.width), dtype=np.uint8)
        mask[: mask.shape[0] // 2] = 255 * (i > 0)
        masks.mkdir(exist_ok=True)
        Image.fromarray(mask).save(masks / f"{file.stem}.png")
    words = [run, images / "val" / "dark", "--method", "rollout", "probe_signed", "--out", out, "--measure"]
    _explain(*words, "--masks", masks, "--batch-size", 3)
    table = pd.read_csv(out / "measures.csv")
    assert set(table["method"]) == {"rollout", "probe_signed", "random", "centre"}
    assert (table["low"] <= table["mean"]).all()
    assert (table["mean"] <= table["high"]).all()
    said = capsys.readouterr().out
    assert "deletion (lower is better)" in said
    pointing = table[table["measure"] == "pointing"]
    assert (pointing["images"] == 7).all()  # of one image the mask is empty
    (masks / "0.png").unlink()
    fails(capsys, ["explain", *words, "--masks", masks], 1, "has no mask of the same relative path and stem")
    save_image(masks / "0.png", (5, 5), mode="L")
    fails(capsys, ["explain", *words, "--masks", masks], 1, "is 5 x 5 pixels and its image")


@pytest.mark.slow
def test_the_report_compares_methods(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "copy")
    assert main(["evaluate", str(copy)]) == 0
    monkeypatch.setattr("vitrail.analyze.examples._PAGE_METHODS", ("rollout", "probe_signed", "probe_refused", "none"))
    assert main(["report", str(copy)]) == 0
    page = (copy / "report.html").read_text()
    assert "What copy looks at, by several methods" in page
    assert "Not for this model: probe_refused (it fits no model; take another)." in page
    assert (copy / "figures" / "methods_copy.png").is_file()
    monkeypatch.setattr("vitrail.analyze.examples._PAGE_METHODS", ("rollout", "none"))
    assert main(["report", str(copy), "--out", str(tmp_path / "other.html")]) == 0
    assert "by several methods" not in (tmp_path / "other.html").read_text()


def test_the_report_knows_what_fits_before_it_draws(run, monkeypatch):
    trained = load_trained(run)
    monkeypatch.setattr("vitrail.analyze.examples._PAGE_METHODS", ("rollout", "probe_signed", "probe_refused", "none"))
    chosen, refused = choose_methods(trained)
    assert chosen == ["rollout", "probe_signed"]
    assert refused == ["probe_refused (it fits no model; take another)"]


def test_heads_are_drawn_one_by_one(run, images, tmp_path):
    out, file = tmp_path / "out", sorted((images / "val" / "light").iterdir())[0]
    _explain(run, file, "--method", "attention", "--out", out)
    (entry,) = _content(out)["images"]
    said = entry["methods"]["attention"]["streams"]["image"]
    parts, tokens = np.load(out / said["parts"]), np.load(out / said["tokens"])
    assert np.allclose(parts.mean(axis=0), tokens, atol=1e-6)
    with Image.open(out / said["parts_panel"]) as panel:
        assert panel.width > 100
