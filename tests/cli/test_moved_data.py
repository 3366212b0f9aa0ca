"""A run's data that has moved, on every verb: recognised by content, with its split; mixed with others, no test."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.images import make_folder
from vitrail.cli.main import main
from vitrail.errors import RunError
from vitrail.runs import RunFolder
from vitrail.weights.hashes import tensors_hash

TINY = (
    "--model.name vit --model.img_size 16 --model.patch_size 8 --model.embed_dim 16 --model.depth 1 "
    "--model.num_heads 2 --trainer.max_epochs 1 --trainer.accelerator cpu --data.batch_size 16 "
    "--data.loader.num_workers 0 --trainer.precision 32-true --run.tensorboard false"
).split()
QUICK = ("--resamples", "100")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("moved")
    make_folder(root / "photos", splits=(), per_class=40)
    words = ["train", "--data.source", "folder", "--data.path", str(root / "photos"), *TINY]
    assert main([*words, "--run.dir", str(root / "r")]) == 0
    assert main(["evaluate", str(root / "r"), *QUICK]) == 0
    return root


@pytest.fixture
def moved(trained, tmp_path):
    """The run beside its images, which lie elsewhere than its recipe says."""
    shutil.copytree(trained / "r", tmp_path / "r")
    shutil.copytree(trained / "photos", tmp_path / "there")
    recipe = tmp_path / "r" / "recipe.yaml"
    content = yaml.safe_load(recipe.read_text())
    content["data"]["path"] = str(tmp_path / "gone")
    recipe.write_text(yaml.safe_dump(content))
    return tmp_path


def _do(capsys, *words, code=0):
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def _measured(text):
    found = re.search(r"accuracy[^\d]* ([\d.]+).*?(\d+) images", text)
    return found[1], int(found[2])


def _rename(folder):
    for number, file in enumerate(sorted(folder.rglob("*.*"), reverse=True)):
        file.rename(file.with_name(f"renamed_{number:03d}{file.suffix}"))


def _metrics(run):
    return json.loads((run / "evaluation" / "metrics.json").read_text())


@pytest.mark.fast_cases("in a table")
@pytest.mark.parametrize("how", ["renamed", "in a table"])
def test_the_same_images_elsewhere_give_the_same_measures(trained, moved, capsys, how):
    own = _metrics(trained / "r")
    before = f"{own['accuracy']:.4f}", own["images"]
    other = ["--data.path", moved / "there"]
    _rename(moved / "there")
    if how == "in a table":
        files = sorted((moved / "there").rglob("*.*"), key=lambda file: file.name[::-1])
        rows = [{"path": str(file), "label": file.parent.name} for file in files]
        pd.DataFrame(rows).to_csv(moved / "t.csv", index=False)
        other = ["--data.source", "table", "--data.path", moved / "t.csv"]
    output = _do(capsys, "evaluate", moved / "r", *other, *QUICK)
    assert _measured(output) == before
    assert "80 images are known" in output
    assert "on test:" in output
    one, two = _metrics(trained / "r"), _metrics(moved / "r")
    assert one["name"] == two["name"] == "test"
    assert one["calibration"] == two["calibration"]
    output = _do(capsys, "evaluate", moved / "r", *other, "--split", "train", *QUICK)
    assert re.search(r"of (\d+) images \1 were trained on: not a test\n.*on train: accuracy \(not a test\)", output)


def test_the_error_names_the_setting_on_each_verb(moved, capsys):
    run = moved / "r"
    for words in (["evaluate", run], ["explain", run, "--out", moved / "e"], ["features", run]):
        output = _do(capsys, *words, code=1)
        assert re.search(rf"`vitrail {words[0]} \S+ --data\.path NEW` names their new path", output)
    metrics = _metrics(run)
    metrics["data"]["path"] = str(moved / "gone")  # where they were evaluated
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    _do(capsys, "report", run)
    assert "--data.path NEW" in (run / "report.md").read_text()
    assert "cannot be changed in vitrail explain" in _do(
        capsys, "explain", run, "--out", moved / "e", "--data.splitting.fold", "1", code=2
    )


def test_other_verbs_take_the_new_place(trained, moved, capsys):
    _rename(moved / "there")
    run, other = moved / "r", ["--data.path", moved / "there"]
    for folder, words in ((trained / "r", []), (run, other)):
        _do(capsys, "explain", folder, *words, "--number", "2", "--out", moved / f"e_{folder.parent.name}")
        _do(capsys, "features", folder, *words, "--layout", "pca", "--out", moved / f"f_{folder.parent.name}")
    explained = [json.loads((moved / f"e_{p.name}" / "explanations.json").read_text()) for p in (trained, moved)]
    one, two = ([(image["true"], image["probability"]) for image in content["images"]] for content in explained)
    assert one == two
    tables = [pd.read_csv(moved / f"f_{p.name}" / "coordinates.csv") for p in (trained, moved)]
    assert np.allclose(tables[0][["x", "y"]], tables[1][["x", "y"]], atol=1e-4)
    assert tables[0]["class"].tolist() == tables[1]["class"].tolist()
    _do(capsys, "report", run, *other, "--without", "explanations", "mistakes")
    assert "Not drawn" not in (run / "report.md").read_text()
    # Evaluated there, the report finds them there by itself.
    _do(capsys, "evaluate", run, *other, *QUICK)
    _do(capsys, "report", run, "--without", "features")
    page = (run / "report.md").read_text()
    assert "Not drawn" not in page
    assert "not the images that the run was trained on" not in page
    _do(capsys, "data", "audit", "--run", run, *other)
    _do(capsys, "report", run, "--without", "features", "explanations", "mistakes")
    assert "the audit that is recorded is of other images" not in (run / "report.md").read_text()
    assert (
        json.loads((run / "audit.json").read_text())["splits"] == json.loads((run / "data.json").read_text())["splits"]
    )


def test_mixed_with_others_it_is_no_test(trained, moved, capsys):
    make_folder(moved / "more", splits=(), per_class=10, seed=77)
    for file in sorted((moved / "more").rglob("*.*")):
        shutil.move(file, moved / "there" / file.parent.name / f"more_{file.name}")
    own = _metrics(trained / "r")
    run, other = moved / "r", ["--data.path", moved / "there"]
    output = _do(capsys, "evaluate", run, *other, *QUICK)
    known = pd.read_parquet(run / "images.parquet")["split"].value_counts()
    assert "80 of 100 images are known" in output
    assert (
        f"of 100 images {known['train']} were trained on and {known['val']} were used to choose the best epoch: not a "
        "test; --split test measures the test images alone" in output
    )
    assert "-mixed: accuracy (not a test)" in output
    assert _metrics(run) == own  # the run's own evaluation stays
    output = _do(capsys, "evaluate", run, *other, "--split", "test", *QUICK)
    assert _measured(output)[1] == own["images"]
    assert "not a test" not in output
    assert _metrics(run)["accuracy"] == own["accuracy"]
    output = _do(capsys, "evaluate", run, *other, "--split", "new", *QUICK)
    assert _measured(output)[1] == 20
    assert "not a test" not in output


def test_a_part_of_the_images_does_not_speak_for_all(trained, moved, capsys):
    table = pd.read_parquet(moved / "r" / "images.parquet")
    gone = table[table["split"] == "test"]["path"].iloc[::2]
    for path in gone:
        (moved / "there" / path).unlink()
    output = _do(capsys, "evaluate", moved / "r", "--data.path", moved / "there", *QUICK)
    assert f"({len(gone)} others not there)" in output
    assert re.search(r"on other-there-\w+-test: accuracy", output)
    assert _metrics(moved / "r")["images"] == _metrics(trained / "r")["images"]


@pytest.mark.slow
def test_copies_that_were_written_anew_are_not_known_and_hinted_at(moved, capsys):
    for file in (moved / "there").rglob("*.*"):
        with Image.open(file) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(file)
    output = _do(capsys, "evaluate", moved / "r", "--data.path", moved / "there", *QUICK)
    assert "none of 80 images is one that" in output
    assert "but 80 have the names of those; re-encoded copies are not unseen images" in output
    make_folder(moved / "quite_other", splits=(), per_class=5, seed=3, classes=("dark", "light"))
    _rename(moved / "quite_other")
    output = _do(capsys, "evaluate", moved / "r", "--data.path", moved / "quite_other", *QUICK)
    assert "none of 10 images is one that" in output
    assert "have the names" not in output


def test_a_run_that_recorded_no_contents_goes_by_names(trained, moved, capsys):
    run = RunFolder(moved / "r")
    run.images.unlink()
    environment = json.loads(run.environment.read_text())
    images = environment["images"]
    environment["images"] = {"number": images["number"], "fingerprint": images["listing"]}
    run.environment.write_text(json.dumps(environment))
    other = ["--data.path", moved / "there"]
    output = _do(capsys, "evaluate", run, *other, *QUICK)
    assert "have the names and classes of those of" in output
    assert _measured(output) == _measured(_do(capsys, "evaluate", trained / "r", *QUICK))
    recipe = ["train", run.recipe, "--resume", *other, "--trainer.max_epochs", "2"]
    _do(capsys, *recipe)
    assert run.images.is_file()  # recorded from then on
    run.images.unlink()
    shutil.copytree(moved / "there", moved / "other")
    _rename(moved / "other")
    output = _do(capsys, "evaluate", run, "--data.path", moved / "other", *QUICK)
    assert "which of these it was trained on is not known" in output


@pytest.mark.slow
def test_a_run_goes_on_with_images_that_moved_as_if_they_had_not(trained, moved, capsys):
    _rename(moved / "there")
    shutil.copytree(trained / "r", moved / "straight")
    more = ["--resume", "--trainer.max_epochs", "3"]
    _do(capsys, "train", moved / "straight" / "recipe.yaml", *more)
    _do(capsys, "train", moved / "r" / "recipe.yaml", *more, "--data.path", moved / "there")
    assert tensors_hash(moved / "r" / "model.safetensors") == tensors_hash(moved / "straight" / "model.safetensors")
    assert RunFolder(moved / "r").read_metrics()["val_loss"].tolist() == pytest.approx(
        RunFolder(moved / "straight").read_metrics()["val_loss"].tolist()
    )
    next((moved / "there").rglob("*.*")).unlink()
    output = _do(capsys, "train", moved / "r" / "recipe.yaml", "--resume", "--trainer.max_epochs", "4", code=1)
    assert re.search(r"\(80 images then, 79 now\).*--data\.path", output)


@pytest.mark.slow
def test_files_that_were_trained_on_are_counted(moved, capsys):
    output = _do(capsys, "predict", moved / "r", moved / "there", "--out", moved / "p.csv")
    assert re.search(r"of 80 images \d+ were trained on and \d+ were used to choose the best epoch: results of", output)
    for file in sorted((moved / "there" / "dark").iterdir())[8:]:
        file.unlink()
    words = ["explain", moved / "r", moved / "there" / "dark", "--method", "rollout"]
    output = _do(capsys, *words, "--out", moved / "e")
    assert re.search(r"of 8 images \d+ were trained on", output)


def test_what_was_stored_of_other_weights_is_not_read(trained, tmp_path, capsys):
    run = RunFolder(shutil.copytree(trained / "r", tmp_path / "r"))
    state = {name: 1.5 * value for name, value in load_file(run.weights).items()}
    save_file(state, run.weights)
    words = ["features", run, "--layout", "pca", "--out"]
    output = _do(capsys, "report", run, code=1)
    assert "was evaluated with other weights than it holds now" in output
    output = _do(capsys, "evaluate", run, "--from-predictions", code=1)
    assert "is of other weights than" in output
    with pytest.raises(RunError, match="is of other weights than"):
        run.read_embeddings("test")
    _do(capsys, *words, tmp_path / "with")
    shutil.rmtree(tmp_path / "r" / "predictions")
    _do(capsys, *words, tmp_path / "without")
    _do(capsys, "features", trained / "r", "--layout", "pca", "--out", tmp_path / "before")
    tables = [pd.read_csv(tmp_path / name / "features.csv")["silhouette"][0] for name in ("with", "without", "before")]
    assert tables[0] == pytest.approx(tables[1], abs=1e-5)
    assert tables[0] != pytest.approx(tables[2], abs=1e-5)


@pytest.mark.slow_cases("False")
@pytest.mark.parametrize("second", [False, True])
def test_inspect_reads_what_a_run_was_trained_on(tmp_path, capsys, second):
    rng = np.random.default_rng(0)
    for name in "ab":
        for i in range(10):
            for root, bands in (("d", 5), ("s", 4)):
                file = tmp_path / root / name / f"{i}.tif"
                file.parent.mkdir(parents=True, exist_ok=True)
                image = rng.integers(0, 9000, (bands, 16, 16)).astype("uint16")
                tifffile.imwrite(file, image, photometric="minisblack")
    model = [word if word != "vit" else "hvt" for word in TINY] if second else TINY
    more = ["--data.spectral.path", str(tmp_path / "s"), "--data.spectral.names", "[w,x,y,z]",
            "--data.spectral.scale", "10000"] if second else []  # fmt: skip
    if second:
        model = ("--model.name hvt --model.img_size 16 --model.patch_size 4 --model.embed_dim 8 --model.depths [1,1] "
                 "--model.num_heads [1,2]").split() + TINY[TINY.index("--trainer.max_epochs"):]  # fmt: skip
    words = ["train", "--data.source", "folder", "--data.path", str(tmp_path / "d"), "--data.bands.names",
             "[a,b,c,d,e]", "--data.scale", "10000", *more, *model, "--run.dir", str(tmp_path / "r")]  # fmt: skip
    assert main(words) == 0
    image = tmp_path / "d" / "a" / "0.tif"
    given = ["--spectral", tmp_path / "s" / "a" / "0.tif"] if second else []
    output = _do(
        capsys, "inspect", tmp_path / "r", "--image", image, *given, "--figures", tmp_path / "f", "--repeats", 1
    )
    assert f"{image}, as in training" in output
    assert "noise" not in output
    if second:
        assert "give their folder with --spectral" in _do(
            capsys, "inspect", tmp_path / "r", "--image", image, "--repeats", 1, code=2
        )
    other = tmp_path / "d" / "a" / "x.tif"
    tifffile.imwrite(other, np.zeros((3, 16, 16), "uint16"), photometric="minisblack")
    assert "where 5 are wanted" in _do(capsys, "inspect", tmp_path / "r", "--image", other, *given, code=1)


def test_images_that_changed_their_class_are_counted(moved, capsys):
    one, other = sorted(folder for folder in (moved / "there").iterdir() if folder.is_dir())[:2]
    changed = sorted(one.iterdir())[:7]
    for file in changed:
        file.rename(other / f"from_{file.name}")
    output = _do(capsys, "evaluate", moved / "r", "--data.path", moved / "there", *QUICK)
    line = f"7 of 80 known images have other labels than when {moved / 'r'} was made"
    assert line in output
    assert f"({one.name}, now {other.name}): they are measured by their labels of now" in output
    for file in changed:
        (other / f"from_{file.name}").rename(file)
    assert "other labels" not in _do(capsys, "evaluate", moved / "r", "--data.path", moved / "there", *QUICK)


def test_a_split_that_other_images_lack_is_an_error_with_a_remedy(moved, capsys):
    for file in (moved / "there").rglob("*.*"):
        Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()
    output = _do(capsys, "evaluate", moved / "r", "--data.path", moved / "there", *QUICK, "--split", "test", code=1)
    assert "no 'test' split, only all; leave --split out to measure all images" in output
    output = _do(capsys, "evaluate", moved / "r", "--data.path", moved / "there", *QUICK)
    number = len(list((moved / "there").rglob("*.bmp")))
    assert f"but {number} have the names of those; re-encoded copies are not unseen images" in output
