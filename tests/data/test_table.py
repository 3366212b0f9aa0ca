"""Tables of images: the same images as a folder's, and every fault told at once."""

import random

import pandas as pd
import pytest
import torch

from tests.images import make_folder
from vitrail.cli.main import main
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.errors import DataError


@pytest.fixture
def listed(tmp_path):
    folder = make_folder(tmp_path / "images", splits=("train", "val"), per_class=3)
    rows = [
        {
            "path": str(file.relative_to(tmp_path)),
            "label": file.parent.name,
            "split": file.parent.parent.name,
            "site": 3,
        }
        for file in sorted(folder.rglob("*.*"))
    ]
    random.Random(1).shuffle(rows)
    return folder, pd.DataFrame(rows)


def _write(table, path):
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return path


@pytest.mark.fast_cases("images.csv")
@pytest.mark.parametrize("name", ["images.csv", "images.parquet"])
def test_equals_the_folder(listed, tmp_path, name):
    folder, table = listed
    path = _write(table, tmp_path / name)
    ours = open_data(DataConfig(source="table", path=str(path)), (16, 20))
    theirs = open_data(DataConfig(source="folder", path=str(folder)), (16, 20))
    assert ours.source.classes == theirs.source.classes
    for split in ("train", "val"):
        a = {ours.source.keys[i].removeprefix("images/"): i for i in ours.indices(split)}
        b = {theirs.source.keys[i]: i for i in theirs.indices(split)}
        assert a.keys() == b.keys()
        for key in a:
            assert ours.source.targets[a[key]] == theirs.source.targets[b[key]]
        keys = sorted(a)
        mine = ours.source.load([a[k] for k in keys])["image"]
        assert torch.equal(mine, theirs.source.load([b[k] for k in keys])["image"])


def test_without_splits_it_is_split(listed, tmp_path):
    _, table = listed
    path = _write(table.drop(columns="split"), tmp_path / "t.csv")
    data = open_data(
        DataConfig(source="table", path=str(path), splitting={"val_fraction": 0.25, "test_fraction": 0.25}), (8, 8)
    )
    assert set(data.splits) == {"train", "val", "test"}


def _change(column, row, value):
    def change(table):
        table = table.astype(object)
        table.loc[table.index[row], column] = value
        return table

    return change


FAULTS = [
    (lambda t: t.rename(columns={"label": "lable"}), "no column 'label'.*did you mean 'lable'"),
    (lambda t: t.drop(columns="path"), "no column 'path'"),
    (_change("label", 2, ""), r"label is empty in 1 row \(line 4\)"),
    (_change("path", 0, "nowhere.png"), r"1 of \d+ images that .* does not exist: .*nowhere.png"),
    (_change("split", 1, "part 1"), "split must be train, val, test or empty, got 'part 1'"),
    (lambda t: pd.concat([t, t.iloc[:2]]), "lists 2 images more than once"),
    (lambda t: t.assign(label="all"), "one class only"),
    (_change("split", 3, ""), "1 of 12 images belongs to no split where the others do, .* is the first"),
    (lambda t: t.iloc[:0], "lists no images"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_faults_are_told(listed, tmp_path, change, message):
    _, table = listed
    path = _write(change(table), tmp_path / "t.csv")
    with pytest.raises(DataError, match=message):
        open_data(DataConfig(source="table", path=str(path)), (8, 8))


def test_what_is_no_table(tmp_path, capsys):
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    for name in ("t.parquet", "missing.csv"):
        with pytest.raises(DataError, match="table"):
            open_data(DataConfig(source="table", path=str(tmp_path / name)), (8, 8))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="cannot read"):
        open_data(DataConfig(source="table", path=str(tmp_path / "empty.csv")), (8, 8))
    assert main(["train", "--data.source", "table", "--run.dir", str(tmp_path / "r")]) == 2
    assert "needs data.path" in capsys.readouterr().err


def test_a_run_is_trained_and_evaluated_from_tables(listed, tmp_path, capsys):
    _, table = listed
    path = _write(table, tmp_path / "t.csv")
    run = str(tmp_path / "run")
    model = "--model.name vit --model.img_size 16 --model.patch_size 8 --model.embed_dim 8 --model.depth 1".split()
    assert main(["train", "--data.source", "table", "--data.path", str(path), *model, "--model.num_heads", "2",
                 "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--data.loader.num_workers", "0",
                 "--data.batch_size", "4", "--run.tensorboard", "false", "--run.dir", run]) == 0  # fmt: skip
    other = _write(table[table["split"] == "val"].drop(columns="split"), tmp_path / "other.csv")
    assert main(["evaluate", run, "--data.path", str(other)]) == 0
    assert f"{(table['split'] == 'val').sum()} images" in capsys.readouterr().out


def test_what_a_spreadsheet_may_write(listed, tmp_path):
    _, table = listed
    path = tmp_path / "t.csv"
    for mark in ";\t| ":
        table.to_csv(path, index=False, sep=mark)
        assert open_data(DataConfig(source="table", path=str(path)), (8, 8)).source.classes == ("dark", "light")
    table.assign(label="\xe9t\xe9").to_csv(path, index=False, encoding="latin-1")
    with pytest.raises(DataError, match=r"is not UTF-8 text \(.* e9 .*data.table.encoding .*, or save it as UTF-8"):
        open_data(DataConfig(source="table", path=str(path)), (8, 8))


def test_a_column_of_groups_that_is_not_there_is_not_another(listed, tmp_path):
    """Images must not be grouped by the column "group" where another was asked for."""
    _, table = listed
    path = _write(table.drop(columns="split").assign(group=range(len(table))), tmp_path / "t.csv")
    config = DataConfig(source="table", path=str(path), split="grouped", splitting={"group": "farm"})
    with pytest.raises(
        DataError, match=r"data.splitting.group 'farm' is not a column of .*'site', 'group'\) and is found in no path"
    ):
        open_data(config, (8, 8))
