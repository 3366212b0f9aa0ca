"""The whole command line on tiny data, and every kind of misuse: one line, the right exit code, nothing lost."""

import importlib
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import vitrail
from tests.deploy.eager import eager_engines as eager_engines
from tests.images import make_folder, save_image
from vitrail.analyze.examples import _PAGE_METHODS
from vitrail.cli.demo import demo_models, demo_recipe
from vitrail.cli.main import main
from vitrail.cli.recipes import make_recipe
from vitrail.compare.worker import run_recipe
from vitrail.data.sources.digits import stored_digits
from vitrail.deploy.export import candidates
from vitrail.explain import list_methods

SMALL = (
    "--model.name vit --model.img_size 16 --model.patch_size 8 --model.embed_dim 16 --model.depth 2 "
    "--model.num_heads 2 --trainer.max_epochs 2 --trainer.accelerator cpu --data.batch_size 4 "
    "--data.loader.num_workers 0 --trainer.precision 32-true --run.tensorboard false"
).split()

# Whether there is something to compare on a page.
_SEVERAL_METHODS = int(len(set(_PAGE_METHODS) & set(list_methods())) > 1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), splits=("train", "val"), per_class=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("runs") / "x"
    learner = ["--model.token_learner.num_tokens", "2", "--model.token_learner.layer", "1"]
    words = [
        "train",
        "--data.source",
        "folder",
        "--data.path",
        str(images),
        *SMALL,
        *learner,
        "--run.dir",
        str(folder),
    ]
    assert main(words) == 0
    assert main(["evaluate", str(folder), "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def fails(capsys, words, code, message):
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("vitrail: error: ")
    assert re.search(message, lines[0]), lines[0]


def test_evaluate_writes_what_it_prints(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    out = capsys.readouterr().out
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert "no test split" in out
    assert f"accuracy {metrics['accuracy']:.4f}" in out
    predictions = pd.read_parquet(run / "predictions" / "val.parquet")
    logits = np.stack(predictions["logits"])
    assert metrics["images"] == len(predictions) == 16
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == predictions["target"]).mean())
    confusion = pd.read_csv(run / "evaluation" / "confusion.csv", index_col=0)
    assert confusion.to_numpy().sum() == 16
    assert np.trace(confusion.to_numpy()) == round(metrics["accuracy"] * 16)


@pytest.mark.slow
def test_evaluate_on_other_images(run, tmp_path, capsys):
    other = make_folder(tmp_path / "unseen", splits=(), per_class=3, seed=9)
    assert main(["evaluate", str(run), "--data.source", "folder", "--data.path", str(other)]) == 0
    (name,) = re.findall(r"on (other-unseen-\w{6}):", capsys.readouterr().out)
    assert len(pd.read_parquet(run / "predictions" / f"{name}.parquet")) == 6
    assert json.loads((run / "evaluation" / name / "metrics.json").read_text())["images"] == 6
    assert json.loads((run / "evaluation" / "metrics.json").read_text())["name"] == "val"
    assert main(["evaluate", str(run), "--split", "train"]) == 0
    assert json.loads((run / "evaluation" / "train" / "metrics.json").read_text())["images"] == 16


def test_evaluate_cannot_move_images_between_splits(run, images, capsys):
    for words in (["--data.splitting.test_fraction", "0.8"], ["--data.img_size=64"], ["--data.color", "gray"]):
        fails(capsys, ["evaluate", run, *words], 2, "cannot be changed in vitrail evaluate")
    before = (run / "evaluation" / "metrics.json").stat().st_mtime_ns
    assert main(["evaluate", str(run), "--data.path", f"{images}/../{images.name}/"]) == 0
    assert "on val" in capsys.readouterr().out
    assert (run / "evaluation" / "metrics.json").stat().st_mtime_ns > before


@pytest.mark.slow
def test_the_report_shows_the_images_that_were_evaluated(copy, tmp_path):
    other = make_folder(tmp_path / "new", splits=(), per_class=30, seed=5)
    shutil.rmtree(copy / "evaluation")
    assert main(["evaluate", str(copy), "--data.source", "folder", "--data.path", str(other)]) == 0
    assert main(["report", str(copy)]) == 0
    assert "Not drawn" not in (copy / "report.html").read_text()
    next((other / "dark").iterdir()).unlink()
    next((other / "light").iterdir()).unlink()
    for file in (other / "dark").iterdir():
        file.rename(file.with_stem(f"renamed_{file.stem}"))
    assert main(["report", str(copy)]) == 0
    assert "not among the images any more" in (copy / "report.html").read_text()


def test_a_moved_run_resumes_where_it_is(copy):
    assert main(["train", str(copy / "recipe.yaml"), "--resume", "--trainer.max_epochs", "3"]) == 0
    assert len(pd.read_csv(copy / "metrics.csv")) == 3


def test_predict_agrees_with_evaluate(run, images, tmp_path):
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(run), str(images / "val"), "--out", str(out), "--top-k", "2"]) == 0
    table = pd.read_csv(out)
    assert list(table.columns) == ["path", "class", "probability", "class_2", "probability_2"]
    assert np.allclose(table["probability"] + table["probability_2"], 1, atol=1e-5)
    stored = pd.read_parquet(run / "predictions" / "val.parquet")
    classes = json.loads((run / "model.json").read_text())["classes"]
    expected = {
        path: classes[int(np.argmax(scores))] for path, scores in zip(stored["path"], stored["logits"], strict=True)
    }
    assert {os.path.relpath(p, images): c for p, c in zip(table["path"], table["class"], strict=True)} == expected


def test_predict_prints_without_out(run, images, capsys):
    file = next((images / "val" / "dark").iterdir())
    assert main(["predict", str(run), str(file)]) == 0
    assert capsys.readouterr().out.startswith("path,class,probability")


@pytest.mark.parametrize("least", [50, pytest.param(1000, marks=[pytest.mark.drawn, pytest.mark.slow])])
def test_report_holds_every_picture(run, least):
    """Laid out, and drawn: the tests of figures draw each kind by itself."""
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    names = ["convergence", "confusion", "features", "attention_x", "tokens_x", *["methods_x"][:_SEVERAL_METHODS],
             "calibration", "selective", "latency", "curves", "data"]  # fmt: skip
    mistakes = len(pd.read_csv(run / "evaluation" / "mistakes.csv"))
    names += ["mistakes_x"][:mistakes]  # none where none was made
    assert page.count("data:image/png;base64,") == len(names)
    assert "Not drawn" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)  # self-contained
    for name in names:
        assert (run / "figures" / f"{name}.svg").stat().st_size > least


@pytest.mark.slow
def test_report_says_what_it_could_not_draw(copy, capsys):
    file = copy / "evaluation" / "metrics.json"
    file.write_text(re.sub(r'"path": ".*"', '"path": "/nowhere/at/all"', file.read_text()))
    page = copy / "pages" / "y.html"
    assert main(["report", str(copy), "--out", str(page)]) == 0
    assert "Not drawn: no folder of images at /nowhere/at/all" in page.read_text()


_SMALL_MODELS = {
    "digits": {"patch_size": 7, "embed_dim": 16, "depth": 2},
    "moving_digits": {"num_frames": 2, "img_size": 12, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "solids": {"num_points": 16, "num_neighbors": 4, "embed_dim": 8, "depth": 1, "num_heads": 2},
}


def _small_demo(name, data):
    recipe = demo_recipe(name, data)
    small = {**recipe, "model": {**recipe["model"], **_SMALL_MODELS[data]}}
    if data == "solids":
        small["data"]["points"]["num_clouds"] = 60
    return small


def _execute_here(runs, *_):
    """Train and evaluate in this process; tests of suites and the slow demos start processes."""
    for run in runs:
        run_recipe(run.recipe)
    return []


_DEMO_COLUMNS = [
    "model", "parameters", "gmacs", "accuracy", "accuracy_low", "accuracy_high", "f1_macro",
    "train_images_per_second", "inference_images_per_second",
]  # fmt: skip


def test_demo_of_all_modalities(tmp_path, capsys, monkeypatch, eager_engines):
    """Tiny models of each; a page and processes take most of the time, test_report_holds_every_picture draws a page."""
    monkeypatch.setattr("vitrail.report.page.write_report", lambda runs, page, *_: page)
    monkeypatch.setattr("vitrail.cli.demo.demo_recipe", _small_demo)
    monkeypatch.setattr("vitrail.compare.execute.execute", _execute_here)
    few = SimpleNamespace(images=stored_digits().images[:40])
    monkeypatch.setattr("vitrail.data.sources.moving_digits.stored_digits", lambda: few)
    module = importlib.import_module("vitrail.deploy.export.export")
    monkeypatch.setattr(module, "list_variants", lambda *_: [candidates.Variant("torch", "fp32")])
    folder = tmp_path / "demo"
    assert main(["demo", "--all", "--dir", str(folder), "--epochs", "1", "--models", "vit_token_learner"]) == 0
    out = capsys.readouterr().out
    table = pd.read_csv(folder / "results.csv")
    assert list(table.columns) == ["data", *_DEMO_COLUMNS]
    assert table["data"].tolist() == ["digits", "moving_digits", "solids"]
    assert table["model"].tolist() == ["vit_token_learner", "vivit", "vnt"]
    for name in table["model"]:
        assert f"export: {folder / name / 'export'} ({name} as torch fp32)" in out
        assert (folder / name / "export" / "1" / "export.json").is_file()
    pages = {"digits": "report.html", "moving_digits": "moving_digits.html", "solids": "solids.html"}
    for name, page in pages.items():
        assert re.search(rf"^report: {re.escape(str(folder / page))} \({name}, \d+ s\)$", out, re.MULTILINE)
    assert re.search(r"^results: .*results.csv \(\d+ s in all\)$", out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("models", [["vit"], ["vit_token_learner", "hvt"]])
def test_demo(models, tmp_path, capsys):
    assert main(["demo", "--dir", str(tmp_path / "demo"), "--epochs", "1", "--models", *models]) == 0
    table = pd.read_csv(tmp_path / "demo" / "results.csv")
    assert list(table.columns) == _DEMO_COLUMNS
    assert table["model"].tolist() == models
    assert (table["accuracy_low"] <= table["accuracy"]).all()
    assert (table.drop(columns="model") > 0).all(axis=None)
    out = capsys.readouterr().out
    assert "report.html" in out
    assert all(name in out for name in models)
    page = (tmp_path / "demo" / "report.html").read_text()
    # Curves, confusion, features, calibration, refusing, sets and latency of all; of each attention, several methods
    # and mistakes; learned tokens.
    pictures = 9 + len(models) * (2 + _SEVERAL_METHODS) + ("vit_token_learner" in models)
    pictures += len(models) if len(models) > 1 else 0  # curves of each, beside those that compare them
    assert page.count("data:image/png;base64,") == pictures
    assert "Not drawn" not in page
    assert ("<h2>Export</h2>" in page) == ("\nexport: none of " not in out)
    if "hvt" in models:
        card = json.loads((tmp_path / "demo" / "hvt" / "model.json").read_text())
        assert card["streams"]["spectral"]["bands"] == ["edge_x", "edge_y"]


@pytest.mark.fast_cases("vit", "vit_token_learner")
@pytest.mark.parametrize("name", demo_models())
def test_every_model_of_the_demo_can_be_built(name):
    recipe = make_recipe(demo_recipe(name))
    settings = {**recipe.model.settings, "num_classes": 10, "in_chans": 1}
    if recipe.data.spectral.derive != "none":
        settings["spectral_chans"] = 2
    model = vitrail.create_model(recipe.model.name, **settings).eval()
    assert model(*(torch.rand(2, stream.chans, 20, 20) for stream in model.streams)).shape == (2, 10)


def test_print_config_and_help(capsys):
    assert main(["train", "--print_config", "--model.name", "vit", "--model.depth", "3"]) == 0
    assert "depth: 3" in capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--trainer.max_epochs" in text
    assert "--model.window_size" not in text
    assert main(["train", "--help", "trainer"]) == 0
    assert "Passes over the training split" in capsys.readouterr().out
    assert main(["train", "--help", "--model.name", "swin_small_patch4_window7_224"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"--model.depths\n +[^-]*\(default: \[2, 2, 18, 2\]\)\n", text)
    assert re.search(r"--model.window_size\n +\w+", text)
    assert main([]) == 2
    for verb in ("demo", "models", "inspect", "evaluate", "explain", "features", "predict", "report"):
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0


@pytest.mark.slow_cases("words7-needs data.path")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown verb 'trian'; did you mean 'train'"),
        (["train", "--model.name", "vit_tinny_patch16_224"], "did you mean 'vit_tiny_patch16_224'"),
        (["train", "--trainer.max_epoch", "2"], "did you mean '--trainer.max_epochs'"),
        (["train", "--resum"], "did you mean '--resume'"),
        (["train", "--model.name", "vit", "--model.patchsize", "2"], "did you mean '--model.patch_size'"),
        (["train", "nothing.yaml"], "cannot read the recipe nothing.yaml: No such file"),
        (["train", "a.yaml", "b.yaml"], "unexpected argument 'b.yaml'"),
        (["train", "--data.source", "folder"], "needs data.path"),
        (["train", "--trainer.accelerator", "tpu"], "cannot be used here"),
        (["evaluate"], "required: run"),
        (["evaluate", "x", "--splt", "test"], "unknown option '--splt'; did you mean '--split'"),
        (["predict", "x"], "required: images"),
        (["models", "--famly", "vit"], "did you mean '--family'"),
        (["demo", "--models", "vit", "resnet"], "resnet"),
        (["train", "--model.name"], "expected one argument"),
        (["train", "--trainer.devices", "7"], "data.batch_size must be a multiple of the 7 processes"),
        (["train", "--trainer.learning_rate", ".inf"], "finite"),
    ],
)
def test_wrong_usage(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    fails(capsys, words, 2, message)


def test_repeated_key(capsys, tmp_path):
    (tmp_path / "r.yaml").write_text("data: {}\ntask: {}\ndata: {}\n")
    fails(capsys, ["train", tmp_path / "r.yaml"], 2, "'data' is given again")


def test_what_failed(capsys, run, images, tmp_path):
    fails(capsys, ["evaluate", tmp_path / "none"], 1, "no run folder at")
    fails(capsys, ["evaluate", images], 1, "lacks recipe.yaml")
    fails(capsys, ["evaluate", run, "--split", "test"], 1, "no 'test' split, only train, val")
    fails(capsys, ["predict", run, tmp_path / "none.png"], 1, "no file or folder at")
    (tmp_path / "void").mkdir()
    fails(capsys, ["predict", run, tmp_path / "void"], 1, "holds no files")
    (tmp_path / "text.png").write_text("no image")
    fails(capsys, ["predict", run, tmp_path / "text.png"], 1, "text.png is not a readable image")
    fails(capsys, ["predict", run, images / "val", "--batch-size", "0"], 2, "--batch-size must be at least 1")
    gray = save_image(tmp_path / "gray.png", mode="L")
    fails(capsys, ["predict", run, gray], 1, r"has 1 band \(L\) where rgb \(3\)")
    assert main(["predict", str(run), str(gray), "--data.errors.on_band_mismatch", "convert"]) == 0
    fails(
        capsys,
        ["train", "--data.source", "folder", "--data.path", tmp_path / "none"],
        1,
        "no folder of images",
    )
    fails(
        capsys,
        ["train", "--data.source", "folder", "--data.path", images, *SMALL, "--run.dir", run],
        1,
        "holds a run",
    )
    assert (run / "model.safetensors").is_file()


def test_predict_writes_into_links_and_pipes_as_they_are(run, images, tmp_path):
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    target.write_text("path,class,probability\n")
    link.symlink_to(target)
    assert main(["predict", str(run), str(images / "val"), "--out", str(link)]) == 0
    assert link.is_symlink()
    assert target.read_text().startswith("path,class")
    assert main(["predict", str(run), str(images / "val"), "--out", "/dev/null"]) == 0
    assert not os.path.isfile("/dev/null")


def test_what_cannot_be_had_is_told_before_the_images_are_opened(capsys, run, tmp_path):
    """They may be a million."""
    nowhere = ["--data.source", "folder", "--data.path", tmp_path / "none"]
    fails(capsys, ["train", *SMALL, *nowhere, "--run.dir", run], 1, "holds a run or other files")
    words = ["--model.weights", tmp_path / "lost.pth", "--run.dir", tmp_path / "new"]
    fails(capsys, ["train", *SMALL, *nowhere, *words], 1, "no file of weights at .*lost.pth")


def test_a_moved_run_resumes_itself_whatever_file_it_lacks(capsys, copy, run):
    before = (run / "metrics.csv").read_bytes()
    (copy / "environment.json").unlink()
    assert main(["train", str(copy / "recipe.yaml"), "--resume", "--trainer.max_epochs", "3"]) == 0
    assert len(pd.read_csv(copy / "metrics.csv")) == 3
    assert (run / "metrics.csv").read_bytes() == before


def test_a_lost_checkpoint_does_not_start_the_run_over(capsys, copy):
    before = (copy / "model.safetensors").read_bytes()
    (copy / "checkpoints" / "last.ckpt").unlink()
    words = ["train", copy / "recipe.yaml", "--resume", "--trainer.max_epochs", "3"]
    fails(capsys, words, 1, "has trained 2 epochs and lacks checkpoints/last.ckpt.*--run.overwrite true")
    assert (copy / "model.safetensors").read_bytes() == before


def test_divergence_is_told_by_the_error_alone(capsys, images, tmp_path):
    words = ["train", "--data.source", "folder", "--data.path", images, *SMALL, "--run.dir", tmp_path / "x"]
    wild = ["--trainer.learning_rate", "1e30", "--trainer.gradient_clip", "0", "--trainer.warmup_epochs", "0"]
    capsys.readouterr()
    assert main([str(word) for word in (*words, *wild)]) == 1
    *start, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("vitrail: error: the training loss became nan in epoch 1, step 1")
    assert {line.split()[0] for line in start} == {"model:", "images:", "device:"}


def test_predict_loses_nothing(capsys, run, images, tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("path,class,probability\n")
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    fails(
        capsys,
        ["predict", run, images / "val", tmp_path / "bad.jpg", "--out", out],
        1,
        "bad.jpg is not a readable image",
    )
    assert out.read_text() == "path,class,probability\n"
    picture = save_image(tmp_path / "photo.png")
    before = picture.read_bytes()
    for given in (picture, tmp_path):
        fails(capsys, ["predict", run, given, "--out", picture], 2, r"--out .*photo\.png is ")
    assert picture.read_bytes() == before


@pytest.mark.slow_cases("model.safetensors-half-truncated or foreign")
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", None, "lacks model.safetensors"),
        ("model.safetensors", b"half", "truncated or foreign"),
        ("model.json", None, "lacks model.json"),
        ("model.json", b'{"name": "vit"', "model.json is damaged"),
        ("model.json", b'{"name": "vit"}', "does not describe a model"),
        ("recipe.yaml", None, "lacks recipe.yaml"),
    ],
)
def test_damaged_run_folders(capsys, copy, file, content, message):
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    fails(capsys, ["evaluate", copy], 1, message)


def test_foreign_and_truncated_weights(capsys, copy, run):
    weights = load_file(copy / "model.safetensors")
    name = next(iter(weights))
    save_file({k: v for k, v in weights.items() if k != name}, copy / "model.safetensors")
    fails(capsys, ["predict", copy, copy], 1, "1 missing")
    save_file({"foreign.weight": weights[name]}, copy / "model.safetensors")
    fails(capsys, ["evaluate", copy], 1, "do not fit its model.json")
    content = (run / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    fails(capsys, ["evaluate", copy], 1, "truncated or foreign")


def test_missing_and_damaged_evaluations(capsys, copy):
    shutil.rmtree(copy / "evaluation")
    fails(capsys, ["report", copy], 1, "has not been evaluated")
    assert main(["evaluate", str(copy)]) == 0
    (copy / "metrics.csv").unlink()
    fails(capsys, ["report", copy], 1, "lacks metrics.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: a read-only folder stops nobody")
def test_no_write_permission_in_folder(capsys, run, images, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    fails(capsys, ["predict", run, images / "val", "--out", locked / "out.csv"], 1, "cannot write")
    fails(capsys, ["train", *SMALL, "--run.dir", locked / "x"], 1, "cannot write")


def test_places_that_cannot_be_written(capsys, run, images, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder is needed")
    fails(capsys, ["predict", run, images / "val", "--out", blocked / "out.csv"], 1, "cannot write .*out.csv")
    fails(capsys, ["train", *SMALL, "--run.dir", blocked / "x"], 1, "cannot write the run folder")
    fails(
        capsys, ["report", run, "--without", "features", "explanations", "--out", blocked / "r.html"], 1, "cannot write"
    )
    assert blocked.read_text() == "a file where a folder is needed"


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(Exception, match="no run folder"):
        main(["evaluate", str(tmp_path / "none"), "--debug"])
