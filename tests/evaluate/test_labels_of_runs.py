"""A run numbers the labels of other data as those that it was trained on, or refuses them."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.data.test_parquet import encode
from vitrail.cli.main import main
from vitrail.cli.recipes import load_run_recipe
from vitrail.errors import DataError
from vitrail.runs.images import open_prepared
from vitrail.runs.trained import load_trained

TINY = (
    "--model.name vit --model.img_size 8 --model.patch_size 4 --model.embed_dim 8 --model.depth 1 --model.num_heads 2 "
    "--data.loader.num_workers 0 --data.batch_size 16 --trainer.max_epochs 1 --trainer.accelerator cpu "
    "--trainer.precision 32-true --run.tensorboard false"
).split()
NAMES = ("zero", "one", "two")
NUMBERS = np.arange(60) % 3


def images(values, seed=0):
    noise = np.random.default_rng(seed).integers(0, 60, (len(values), 8, 8, 3))
    return (noise + 60 * np.asarray(values)[:, None, None, None]).astype(np.uint8)


def train(run, *settings):
    assert main(["train", *TINY, "--run.dir", str(run), *map(str, settings)]) == 0
    return yaml.safe_load((run / "recipe.yaml").read_text())["data"]


def targets(run):
    newest = max((run / "predictions").glob("other-*.parquet"), key=lambda p: p.stat().st_mtime_ns)
    return pd.read_parquet(newest)["target"].tolist()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    np.savez(folder / "train.npz", images=images(NUMBERS), labels=NUMBERS)
    data = train(folder / "run", "--data.source", "arrays", "--data.path", folder / "train.npz",
                 "--data.classes.names", "[zero,one,two]", "--data.bands.names", "[red,green,blue]")  # fmt: skip
    assert data["classes"]["names"] == list(NAMES)
    assert data["classes"]["values"] == [0, 1, 2]
    return folder / "run"


def evaluate(run, path, *settings):
    return main(["evaluate", str(run), "--resamples", "100", "--data.path", str(path), *settings])


def numbered(run, path, *settings):
    """The class indices of other data, opened as every verb opens it."""
    card = load_trained(run).card
    config = load_run_recipe(run / "recipe.yaml", ["--data.path", str(path), *settings]).data
    return open_prepared(card, config, split=False).source.targets.tolist()


@pytest.mark.fast_cases("0-str")
@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.float32, str, "one-hot"])
@pytest.mark.parametrize("first", [0, 1])
def test_arrays_in_which_the_first_class_may_be_missing(run, tmp_path, dtype, first):
    there = NUMBERS >= first
    labels = np.eye(3)[NUMBERS] if dtype == "one-hot" else NUMBERS.astype(dtype)
    np.savez(tmp_path / "other.npz", images=images(NUMBERS[there], 1), labels=labels[there])
    assert numbered(run, tmp_path / "other.npz") == NUMBERS[there].tolist()


@pytest.mark.fast_cases("<lambda>1-parquet")
@pytest.mark.parametrize("source", ["table", "parquet", "folder"])
@pytest.mark.parametrize("written", [lambda n: str(n), lambda n: f"{n}.0", lambda n: f"{NAMES[n]}\xa0"])
def test_other_kinds_of_data(run, tmp_path, source, written):
    numbers = NUMBERS[NUMBERS > 0]
    pixels, labels = images(numbers, 1), [written(int(n)) for n in numbers]
    path = tmp_path / "data"
    path.mkdir()
    if source == "parquet":
        path = path / "t.parquet"
        pq.write_table(pa.table({"image": [encode(x) for x in pixels], "label": labels}), path)
    for i, (x, label) in enumerate(zip(pixels, labels, strict=True)):
        if source == "folder":
            (path / label).mkdir(exist_ok=True)
            Image.fromarray(x).save(path / label / f"{i:03d}.png")
        elif source == "table":
            Image.fromarray(x).save(path / f"{i:03d}.png")
    if source == "table":
        pd.DataFrame({"path": [f"{i:03d}.png" for i in range(len(labels))], "label": labels}).to_csv(path / "t.csv")
        path = path / "t.csv"
    assert numbered(run, path, "--data.source", source) == (sorted(numbers) if source == "folder" else list(numbers))


@pytest.mark.fast_cases("-1")
@pytest.mark.parametrize("label", ["Zero", "3", "-1"])
def test_labels_that_the_run_does_not_know(run, tmp_path, label, capsys):
    np.savez(tmp_path / "other.npz", images=images(NUMBERS), labels=np.where(NUMBERS == 0, label, NUMBERS.astype(str)))
    assert evaluate(run, tmp_path / "other.npz") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert label in error
    assert "zero" in error


def test_a_run_from_before_numberings_were_recorded_asks(run, tmp_path):
    recipe = run / "recipe.yaml"
    known = recipe.read_text()
    content = yaml.safe_load(known)
    content["data"]["classes"]["values"] = None
    np.savez(tmp_path / "first.npz", images=images(NUMBERS[NUMBERS == 1], 1), labels=NUMBERS[NUMBERS == 1])
    try:
        recipe.write_text(yaml.safe_dump(content))
        with pytest.raises(DataError, match=r"Give data.classes.values \[0,1,2\] or \[1,2,3\]"):
            numbered(run, tmp_path / "first.npz")
        assert numbered(run, tmp_path / "first.npz", "--data.classes.values", "[0,1,2]") == [1] * 20
    finally:
        recipe.write_text(known)


def test_a_resumed_run_keeps_its_numbering(run):
    known = (run / "recipe.yaml").read_text()
    assert main(["train", str(run / "recipe.yaml"), "--resume"]) == 0
    assert yaml.safe_load((run / "recipe.yaml").read_text())["data"] == yaml.safe_load(known)["data"]


@pytest.mark.slow
def test_names_inside_parquet_are_remembered(tmp_path):
    """Of a set with names in its metadata, a part without them has the same numbers."""

    def write(path, names, numbers, seed=0):
        table = pa.table({"image": [encode(x) for x in images(numbers, seed)], "label": np.asarray(numbers)})
        if names is not None:
            features = {"label": {"names": list(names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, path)

    write(tmp_path / "train.parquet", ("emu", "cat", "dog"), NUMBERS)
    run = tmp_path / "run"
    data = train(run, "--data.source", "parquet", "--data.path", tmp_path / "train.parquet")
    assert (data["classes"]["names"], data["classes"]["values"]) == (["emu", "cat", "dog"], [0, 1, 2])
    write(tmp_path / "bare.parquet", None, NUMBERS[NUMBERS > 0], 1)
    assert numbered(run, tmp_path / "bare.parquet") == NUMBERS[NUMBERS > 0].tolist()
    write(tmp_path / "turned.parquet", ("dog", "emu", "cat"), NUMBERS, 2)
    assert numbered(run, tmp_path / "turned.parquet") == [[2, 0, 1][n] for n in NUMBERS]


def test_lists_of_labels_from_training_to_predictions(tmp_path):
    lists = [[["ant"], ["bee"], ["ant", "bee"]][n] for n in NUMBERS]
    for name, seed in (("train", 0), ("other", 1)):
        labels = lists if name == "train" else lists[2::3]
        pixels = images(NUMBERS if name == "train" else NUMBERS[2::3], seed)
        pq.write_table(pa.table({"image": [encode(x) for x in pixels], "label": labels}), tmp_path / f"{name}.parquet")
    run = tmp_path / "run"
    train(run, "--data.source", "parquet", "--data.path", tmp_path / "train.parquet", "--task.loss", "bce",
          "--trainer.monitor", "val_f1_macro")  # fmt: skip
    assert evaluate(run, tmp_path / "other.parquet") == 0
    assert np.stack(targets(run)).tolist() == [[1, 1]] * 20
    Image.fromarray(images([1])[0]).save(tmp_path / "x.png")
    assert main(["predict", str(run), str(tmp_path / "x.png"), "--out", str(tmp_path / "p.csv")]) == 0
    assert "labels" in pd.read_csv(tmp_path / "p.csv")


def test_the_report_opens_the_images_that_were_evaluated(run, tmp_path):
    """A table in another form is drawn as it was evaluated."""
    (tmp_path / "files").mkdir()
    rows = []
    for i, (x, n) in enumerate(zip(images(NUMBERS, 1), NUMBERS, strict=True)):
        Image.fromarray(x).save(tmp_path / "files" / f"{i:03d}.png")
        rows.append(f"{i:03d};{n}")
    (tmp_path / "t.csv").write_text("name;kind\n" + "\n".join(rows))
    form = ["--data.source", "table", "--data.table.image_column", "name", "--data.table.label_column", "kind",
            "--data.table.image_folder", str(tmp_path / "files")]  # fmt: skip
    assert evaluate(run, tmp_path / "t.csv", *form) == 0
    assert targets(run) == NUMBERS.tolist()
    assert main(["report", str(run), "--without", "features", "explanations"]) == 0


@pytest.mark.slow
def test_out_of_distribution_images_may_be_of_other_classes(run, tmp_path, capsys):
    for i, x in enumerate(images(NUMBERS[:12], 3)):
        file = tmp_path / "ood" / ["fox", "elk"][i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(file)
    assert (
        main(["evaluate", str(run), "--resamples", "100", "--ood", str(tmp_path / "ood"), "--ood-source", "folder"])
        == 0
    )
