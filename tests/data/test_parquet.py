"""Parquet files with images inside: the same images as in files, names from the hub's metadata, faults by name."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.settings import data_config
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.sources import embedded
from vitrail.errors import ConfigError, DataError


def encode(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def write(path, number=24, labels=None, names=("cat", "dog", "emu"), struct=True, seed=0, paths=True, extra=None):
    """The images' levels tell their numbers."""
    rng = np.random.default_rng(seed)
    arrays = [
        np.full((9, 11, 3), 10 * i + 3, np.uint8) + rng.integers(0, 3, (9, 11, 3), np.uint8) for i in range(number)
    ]
    content = [encode(a) for a in arrays]
    images = (
        [{"bytes": c, "path": f"x/{i}.png" if paths else None} for i, c in enumerate(content)] if struct else content
    )
    table = pa.table({"image": images, "label": [i % 3 for i in range(number)] if labels is None else labels})
    for name, values in (extra or {}).items():
        table = table.append_column(name, pa.array(values))
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)
    return arrays


def opened(path, size=(9, 11), **settings):
    return open_data(data_config(source="parquet", path=str(path), **settings), size)


@pytest.mark.fast_cases("True-False", "True-True")
@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_images_and_labels_belong_together(tmp_path, monkeypatch, struct, kept):
    if not kept:
        monkeypatch.setattr(embedded, "_SMALL", 0)
    arrays = write(tmp_path / "t.parquet", struct=struct)
    data = opened(tmp_path / "t.parquet")
    assert data.source.classes == ("cat", "dog", "emu")
    assert data.source.in_memory == kept
    assert data.source.targets.tolist() == [i % 3 for i in range(24)]
    rows = [5, 0, 23, 5]
    pixels = data.source.read(rows)["image"]
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.numpy().transpose(0, 2, 3, 1), np.stack([arrays[i] for i in rows]))
    assert data.source.original_size(3) == (9, 11)
    for batch in data.loader("train", shuffle_seed=3):
        assert torch.equal((batch["image"].mean((1, 2, 3)) * 25.5 - 0.4).round().long(), batch["index"])
        assert torch.equal(batch["target"], batch["index"] % 3)


def test_keys_are_the_paths_inside_or_the_rows(tmp_path):
    write(tmp_path / "a.parquet")
    assert opened(tmp_path / "a.parquet").source.keys[:2] == ["x/0.png", "x/1.png"]
    write(tmp_path / "b.parquet", paths=False)
    assert opened(tmp_path / "b.parquet").source.keys[:2] == ["b/00000000", "b/00000001"]


def test_texts_and_unnamed_numbers_are_labels_too(tmp_path):
    texts = [["z", "a"][i % 2] for i in range(24)]
    write(tmp_path / "a.parquet", labels=texts, names=None)
    source = opened(tmp_path / "a.parquet").source
    assert [source.classes[t] for t in source.targets] == texts
    write(tmp_path / "b.parquet", labels=[7 if i % 2 else 4 for i in range(24)], names=None)
    assert opened(tmp_path / "b.parquet").source.classes == ("4", "7")
    write(tmp_path / "c.parquet", names=None)
    assert opened(tmp_path / "c.parquet", classes__names=("x", "y", "z")).source.classes == ("x", "y", "z")


TYPES = [pa.int8(), pa.uint64(), pa.bool_(), pa.float32(), pa.string(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("names", [None, ("cat", "dog")])
@pytest.mark.fast_cases("None-float", "names1-int8", "names1-dictionary<values=string, indices=int32, ordered=0>")
def test_the_type_of_labels_does_not_change_the_classes(tmp_path, kind, names):
    numbers = [i % 2 for i in range(24)]
    texts = pa.types.is_string(kind) or pa.types.is_dictionary(kind)
    labels = pa.array([str(n) for n in numbers]).cast(kind) if texts else pa.array(numbers).cast(kind)
    write(tmp_path / "t.parquet", labels=labels, names=names)
    source = opened(tmp_path / "t.parquet").source
    assert source.classes == (names if names is not None and not texts else ("0", "1"))
    assert source.targets.tolist() == numbers


def test_keys_beyond_64_bits_with_a_sign(tmp_path):
    keys = [2**64 - 1, 2**63 + 5, 7]
    write(tmp_path / "t.parquet", labels=pa.array([keys[i % 3] for i in range(24)], pa.uint64()), names=None)
    source = opened(tmp_path / "t.parquet").source
    assert source.classes == tuple(map(str, sorted(keys)))
    assert source.targets.tolist() == [[2, 1, 0][i % 3] for i in range(24)]
    with pytest.raises(DataError, match="have no name"):
        opened(tmp_path / "t.parquet", classes__names=("x", "y", "z"))
    named = opened(tmp_path / "t.parquet", classes__names=("x", "y", "z"), classes__values=tuple(keys)).source
    assert named.targets.tolist() == [i % 3 for i in range(24)]


@pytest.mark.parametrize("names", [None, ("cat", "dog", "emu")])
def test_lists_of_labels(tmp_path, names):
    lists = [[[0], [1, 2], [2, 2, 0]][i % 3] for i in range(24)]
    write(tmp_path / "t.parquet", labels=lists, names=None)
    if names is not None:
        table = pq.read_table(tmp_path / "t.parquet")
        features = {"label": {"feature": {"names": list(names), "_type": "ClassLabel"}, "_type": "Sequence"}}
        meta = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(table.replace_schema_metadata(meta), tmp_path / "t.parquet")
    source = opened(tmp_path / "t.parquet").source
    assert source.classes == (names or ("0", "1", "2"))
    assert source.targets.tolist() == [[[1, 0, 0], [0, 1, 1], [1, 0, 1]][i % 3] for i in range(24)]


def test_a_folder_of_shards_is_split_by_their_names(tmp_path):
    write(tmp_path / "d" / "train-00000-of-00002.parquet", paths=False)
    write(tmp_path / "d" / "train-00001-of-00002.parquet", paths=False, seed=1)
    write(tmp_path / "d" / "validation-00000-of-00001.parquet", paths=False, seed=2)
    data = opened(tmp_path / "d")
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 48, "val": 24}
    assert len(set(data.source.keys)) == 72


def test_groups_are_a_column(tmp_path):
    write(tmp_path / "t.parquet", number=25, extra={"plant": [f"p{i // 5}" for i in range(25)]})
    data = opened(tmp_path / "t.parquet", split="grouped", splitting__group="plant")
    for rows in data.splits.values():
        assert {i // 5 for i in rows}.isdisjoint(
            {i // 5 for other in data.splits.values() if other is not rows for i in other}
        )


def test_broken_images_are_all_named_or_left_out(tmp_path):
    write(tmp_path / "t.parquet")
    table = pd.read_parquet(tmp_path / "t.parquet")
    for i in (3, 17):
        table.at[i, "image"] = {"bytes": b"nothing", "path": f"x/{i}.png"}
    table.at[20, "image"] = {"bytes": None, "path": "x/20.png"}
    table.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"3 of 24 images.*x/3.png.*x/17.png.*x/20.png"):
        opened(tmp_path / "t.parquet")
    data = opened(tmp_path / "t.parquet", errors__on_unreadable="skip")
    assert [key for key, _ in data.source.left_out] == ["x/3.png", "x/17.png", "x/20.png"]
    assert len(data.source) == 21
    assert data.source.targets.tolist() == [i % 3 for i in range(24) if i not in (3, 17, 20)]
    assert (data.source.load([3])["image"].mean() * 25.5).round() == 4


FAULTS = [
    ({"labels": [None, *[0, 1] * 11, 1]}, {}, "1 of 24 labels"),
    ({"labels": [9, *[0, 1] * 11, 1]}, {}, "labels 9 have no name"),
    ({"labels": [0.5] * 24}, {}, "numbers or texts are wanted"),
    ({"labels": [{"x": 1, "name": "a"}] * 24}, {}, r"'label' holds structs \(x, name\); take one of these fields"),
    ({"labels": [[{"x": 1}]] * 24}, {}, r"holds lists of structs \(x\)"),
    ({"labels": ["a", " ", *["b"] * 22], "names": None}, {}, "1 of 24 labels is missing"),
    ({}, {"table__group_column": "plant"}, "no column 'plant'"),
    ({}, {"table__label_column": "lable"}, "no column 'lable'.*did you mean 'label'"),
    ({}, {"table__image_column": "label"}, "bytes of images are wanted"),
]


@pytest.mark.parametrize(("content", "settings", "message"), FAULTS)
def test_faults(tmp_path, content, settings, message):
    write(tmp_path / "t.parquet", **content)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "t.parquet", **settings)


def test_what_is_no_parquet(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="as Parquet"):
        opened(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="no Parquet file at"):
        opened(tmp_path / "none.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no Parquet file"):
        opened(tmp_path / "empty")
    pq.write_table(pa.table({"a": [1], "label": [0]}), tmp_path / "n.parquet")
    with pytest.raises(DataError, match="it has none"):
        opened(tmp_path / "n.parquet")


def test_settings_of_other_sources_are_refused():
    with pytest.raises(ConfigError, match=r"data.table.label_column 'x' does not apply to data.source digits"):
        open_data(DataConfig(table={"label_column": "x"}), (8, 8))


def test_each_file_names_its_own_numbers(tmp_path):
    write(tmp_path / "d" / "train-0.parquet", names=("cat", "dog", "emu"))
    write(tmp_path / "d" / "test-0.parquet", names=("emu", "dog", "cat"), seed=1)
    source = opened(tmp_path / "d").source
    assert source.classes == ("cat", "dog", "emu")
    labels = [source.label(i) for i in range(len(source))]
    of_split = {
        s: [x for x, own in zip(labels, source.given_split, strict=True) if own == s] for s in ("train", "test")
    }
    assert of_split == {"train": ["cat", "dog", "emu"] * 8, "test": ["emu", "dog", "cat"] * 8}
    write(tmp_path / "d" / "test-0.parquet", names=None, seed=1)
    with pytest.raises(DataError, match="are numbers without names, and other files name theirs"):
        opened(tmp_path / "d")


@pytest.mark.parametrize("kind", [pa.uint64(), pa.int8(), pa.float64(), pa.string()])
def test_files_may_store_their_labels_in_other_types(tmp_path, kind):
    numbers = [i % 3 for i in range(24)]
    write(tmp_path / "d" / "train-0.parquet", names=None)
    write(tmp_path / "d" / "test-0.parquet", names=None, labels=pa.array(numbers).cast(kind), seed=1)
    source = opened(tmp_path / "d").source
    assert source.classes == ("0", "1", "2")
    assert sorted(source.targets.tolist()) == sorted(numbers * 2)


def test_groups_and_splits_of_images_inside(tmp_path):
    groups = [f"p{i // 2} " if i % 2 else f"p{i // 2}" for i in range(24)]
    splits = [("train", "Val", "testing")[i // 8] for i in range(24)]
    write(tmp_path / "t.parquet", extra={"Group": groups, "Split": splits})
    source = opened(tmp_path / "t.parquet").source
    assert source.groups == [f"p{i // 2}" for i in range(24)]
    assert source.given_split == [("train", "val", "test")[i // 8] for i in range(24)]
    write(tmp_path / "t.parquet", extra={"group": [None if i < 3 else float(i // 2) for i in range(24)]})
    with pytest.raises(DataError, match="3 images have no group"):
        opened(tmp_path / "t.parquet")
    assert opened(tmp_path / "t.parquet", split="stratified").source.groups[3:5] == ["1", "2"]


def test_missing_numbers_are_counted(tmp_path):
    write(tmp_path / "t.parquet", labels=[float("nan") if i % 3 == 0 else 1.0 for i in range(24)], names=None)
    with pytest.raises(DataError, match="8 of 24 labels are missing"):
        opened(tmp_path / "t.parquet")
