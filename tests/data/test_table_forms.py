"""Tables as other programs and data sets write them: columns, separators, headers, encodings, names of files, lists."""

import itertools
import unicodedata

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.settings import data_config
from tests.tiers import in_turn
from vitrail.cli.main import main
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.errors import ConfigError, DataError


def draw(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return path


@pytest.fixture
def images(tmp_path):
    """Twelve images i0.png ... i11.png; the label of each is its number by three."""
    for i in range(12):
        draw(tmp_path / f"i{i}.png", 20 * i)
    return tmp_path


def opened(path, **settings):
    return open_data(data_config(source="table", path=str(path), **settings), (8, 8)).source


def labels_of(source):
    return {key: source.label(i) for i, key in enumerate(source.keys)}


WANTED = {f"i{i}.png": str(i % 3) for i in range(12)}


FORMS = itertools.product([True, False], ["\n", "\r\n"], ["utf-8", "utf-8-sig", "utf-16"])


@pytest.mark.parametrize(("mark", "form"), in_turn([",", ";", "\t", "|", " ", "   ", " \t"], FORMS))
def test_separator_header_and_encoding_are_found(images, mark, form):
    header, end, encoding = form
    rows = [
        f"i{i}.png{mark}{30 + i},5{mark}{i % 3}" if mark != "," else f'i{i}.png,"{30 + i},5",{i % 3}' for i in range(12)
    ]
    text = end.join([mark.join(["name", "age", "kind"])] * header + rows) + end
    (images / "t.csv").write_bytes(text.encode(encoding))
    columns = {"table__image_column": "name", "table__label_column": "kind"} if header else {"table__label_column": "2"}
    source = opened(images / "t.csv", **columns)
    assert labels_of(source) == WANTED
    assert source.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("given", "mark"), [("comma", ","), ("semicolon", ";"), ("tab", "\t"), ("space", "  "), ("#", "#"), ("pipe", "|")]
)
@pytest.mark.fast_cases("comma-,", "space-  ")
def test_a_named_separator(images, given, mark):
    text = "\n".join(["path" + mark + "label", *(f"i{i}.png{mark}{i % 3}" for i in range(12))])
    (images / "t.csv").write_text(text)
    assert labels_of(opened(images / "t.csv", table__separator=given)) == WANTED


def test_two_separators_that_fit_are_asked_about(images):
    (images / "t.csv").write_text("\n".join(f"i{i};{i},{i % 3}" for i in range(12)))
    with pytest.raises(ConfigError, match=r"can be divided by comma and semicolon; name its separator"):
        opened(images / "t.csv", table__label_column="1")
    with pytest.raises(ConfigError, match=r"data.table.separator 'semikolon' is neither .* did you mean 'semicolon'"):
        opened(images / "t.csv", table__separator="semikolon")


def test_spreadsheet_habits(images):
    lines = ["sep=;", " path ;label;;", *(f'"i{i}.png"; {i % 3}\xa0;;' for i in range(12)), ";;;", "", "  "]
    (images / "t.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    assert labels_of(opened(images / "t.csv")) == WANTED


def test_another_encoding_is_named(images):
    text = "path,label\n" + "".join(f"i{i}.png,{['blé', 'maïs'][i % 2]}\n" for i in range(12))
    (images / "t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        DataError, match=r"is not UTF-8 text \(.* at byte 20, line 2: e9 0a .*data.table.encoding \(latin-1"
    ):
        opened(images / "t.csv")
    assert opened(images / "t.csv", table__encoding="latin-1").classes == ("blé", "maïs")
    with pytest.raises(ConfigError, match=r"data.table.encoding 'latin-77' is unknown"):
        opened(images / "t.csv", table__encoding="latin-77")
    with pytest.raises(DataError, match=r"is not ascii text .*change data.table.encoding"):
        opened(images / "t.csv", table__encoding="ascii")
    (images / "t.csv").write_bytes(text.encode("utf-16-le"))
    with pytest.raises(DataError, match=r"data.table.encoding"):
        opened(images / "t.csv")
    assert opened(images / "t.csv", table__encoding="utf-16-le").classes == ("blé", "maïs")


def test_a_header_that_is_not_certain(images):
    (images / "names").mkdir()
    rows = "".join(f"i{i},{i % 3}\n" for i in range(12))
    (images / "t.csv").write_text(rows)
    with pytest.raises(
        DataError, match=r"no column 'path', only 'i0', '0'.*data.table.image_column.*data.table.header false"
    ):
        opened(images / "t.csv")
    columns = {"table__image_column": "0", "table__label_column": "1"}
    assert labels_of(opened(images / "t.csv", table__header=False, **columns)) == WANTED
    (images / "t.csv").write_text("i0.png,kind\n" + rows)  # a header that looks like a row
    source = opened(images / "t.csv", table__header=True, table__image_column="i0.png", table__label_column="kind")
    assert labels_of(source) == WANTED
    with pytest.raises(
        DataError, match=r"has no header .* name one by its position with data.table.label_column \(0 to 1\)"
    ):
        opened(images / "t.csv")


@pytest.mark.parametrize(
    "write",
    [
        lambda i: f"i{i}",
        lambda i: f".\\i{i}.png",
        lambda i: f"I{i}.PNG",
        lambda i: f"./i{i}.png",
        lambda i: f"some/elsewhere/../../i{i}.png" if i else "i0.png",
    ],
)
def test_names_of_files(images, write):
    (images / "some" / "elsewhere").mkdir(parents=True)
    (images / "t.csv").write_text("path,label\n" + "".join(f"{write(i)},{i % 3}\n" for i in range(12)))
    source = opened(images / "t.csv")
    assert [source.label(i) for i in range(12)] == [str(i % 3) for i in range(12)]
    assert [int(source.read([i])["image"][0, 0, 0, 0]) for i in range(12)] == [20 * i for i in range(12)]


def test_names_without_the_folders_inside_and_in_another_unicode_form(tmp_path):
    for i in range(8):
        draw(tmp_path / "all" / f"part_{i % 2}" / unicodedata.normalize("NFD", f"é{i}.jpg"), 30 * i)
        (tmp_path / "all" / f"part_{i % 2}" / unicodedata.normalize("NFD", f"é{i}.xml")).write_text("<box/>")
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"é{i},{i % 2}\n" for i in range(8)), encoding="utf-8")
    source = opened(tmp_path / "t.csv", table__image_folder=str(tmp_path / "all"))
    assert [round(int(source.read([i])["image"].float().mean()) / 30) for i in range(8)] == list(range(8))


def test_names_that_fit_several_files_or_none(images):
    draw(images / "i3.jpg")
    draw(images / "more" / "i5.png")
    table = images / "t.csv"
    table.write_text("path,label\n" + "".join(f"i{i},{i % 3}\n" for i in range(12)))
    with pytest.raises(DataError, match=r"1 of 12 names .* fits several files: i3 \(i3.jpg and i3.png\)"):
        opened(table)
    table.write_text("path,label\n" + "".join(f"i{i},{i % 3}\n" for i in range(4, 15)))
    with pytest.raises(DataError, match=r"3 of 11 images that .* do not exist: .*i12; .*data.table.image_folder"):
        opened(table)
    with pytest.raises(DataError, match=r"no folder of images at nowhere; check data.table.image_folder"):
        opened(table, table__image_folder="nowhere")


def test_an_image_folder_beside_the_table_or_the_working_directory(tmp_path, monkeypatch):
    for i in range(6):
        draw(tmp_path / "set" / "pictures" / f"{i}.png", 40 * i)
    (tmp_path / "set" / "t.csv").write_text("path,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(6)))
    beside = opened(tmp_path / "set" / "t.csv", table__image_folder="pictures")
    monkeypatch.chdir(tmp_path / "set")
    assert beside.keys == opened("t.csv", table__image_folder="pictures").keys == [f"{i}.png" for i in range(6)]


def test_a_spreadsheet_is_no_table(tmp_path):
    for name, beginning in (("t.xlsx", b"PK\x03\x04...."), ("t.xls", b"\xd0\xcf\x11\xe0....")):
        (tmp_path / name).write_bytes(beginning)
        with pytest.raises(DataError, match=r"a spreadsheet.* save it as CSV"):
            opened(tmp_path / name)


def test_columns_named_twice_and_cells_too_many(images):
    (images / "t.csv").write_text("path,label,label\n" + "".join(f"i{i}.png,{i % 3},x\n" for i in range(12)))
    with pytest.raises(DataError, match="has 2 columns named 'label'"):
        opened(images / "t.csv")
    (images / "t.csv").write_text("path,label\n" + "".join(f"i{i}.png,{i % 3}{',x' * (i == 7)}\n" for i in range(12)))
    with pytest.raises(DataError, match="line 9 has 3 cells and the table 2 columns"):
        opened(images / "t.csv")
    (images / "t.csv").write_text('path,label\ni0.png,"a\ni1.png,b\n')
    with pytest.raises(DataError, match=r"cannot read .* as a table: .*line 2"):
        opened(images / "t.csv")


def test_numeric_labels_are_in_numeric_order_and_get_names(tmp_path):
    rows = []
    for i in range(33):
        draw(tmp_path / f"{i}.png", 5 * i)
        rows.append((f"{i}.png", i % 11, float(i % 11), f"{i % 11}.0"))
    table = pd.DataFrame(rows, columns=["path", "whole", "float", "text"])
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    names = tuple(f"sign {i}" for i in range(11))
    for column in ("whole", "float", "text"):
        for file in ("t.csv", "t.parquet"):
            source = opened(tmp_path / file, table__label_column=column)
            assert source.classes == tuple(str(i) for i in range(11))
        named = opened(tmp_path / file, table__label_column=column, classes__names=names)
        assert named.classes == names
        assert [named.label(i) for i in range(33)] == [names[i % 11] for i in range(33)]


def test_splits_and_groups_of_other_names(images):
    splits = ["Train", "TRAINING", "validation ", "test"]
    table = pd.DataFrame({
        "path": [f"i{i}.png" for i in range(12)], "label": [str(i % 3) for i in range(12)],
        "Set": [splits[i // 3] for i in range(12)], "plant": [i // 3 for i in range(12)],
    })  # fmt: skip
    table.to_csv(images / "t.csv", index=False)
    source = opened(images / "t.csv", table__split_column="Set", table__group_column="plant")
    assert source.given_split == ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    assert list(source.groups) == [str(i // 3) for i in range(12)]
    for setting in ("group_column", "split_column"):
        with pytest.raises(DataError, match=rf"no column 'plants'.*data.table.{setting}"):
            opened(images / "t.csv", **{f"table__{setting}": "plants"})


def test_an_image_in_several_rows(images):
    """Tables of object detection have a row for each box."""
    rows = [(f"i{i % 6}.png", ["red", "white", "platelet"][i % 3] if i < 6 else "red") for i in range(12)]
    pd.DataFrame(rows, columns=["filename", "cell_type"]).to_csv(images / "t.csv", index=False)
    columns = {"table__image_column": "filename", "table__label_column": "cell_type"}
    with pytest.raises(
        DataError, match=r"lists 6 images more than once, 4 of them with different labels: i1.png \(red, white\).*"
        r"data.classes.multi_label true"
    ):  # fmt: skip
        opened(images / "t.csv", **columns)
    source = opened(
        images / "t.csv", classes__multi_label=True, splitting__val_fraction=0, splitting__test_fraction=0, **columns
    )
    assert source.classes == ("platelet", "red", "white")
    assert source.targets.tolist() == [[0, 1, 0], [0, 1, 1], [1, 1, 0]] * 2
    rows = pd.DataFrame([*rows, ("./i0.png", "red")], columns=["filename", "cell_type"]).assign(split="train")
    rows.loc[0, "split"] = "val"
    rows.to_csv(images / "t.csv", index=False)
    with pytest.raises(DataError, match=r"puts 1 image into several splits or groups: .*i0.png"):
        opened(images / "t.csv", classes__multi_label=True, **columns)


LISTS = [["ant"], ["bee", "ant"], [" bee "], []]


@pytest.mark.parametrize("separator", [None, ";"])
def test_labels_that_are_lists(images, separator):
    labels = [LISTS[i % 4] for i in range(12)]
    pd.DataFrame({"path": [f"i{i}.png" for i in range(12)], "label": labels}).to_parquet(images / "t.parquet")
    source = opened(images / "t.parquet", table__label_separator=separator)
    assert source.classes == ("ant", "bee")
    assert source.targets.tolist() == [[1, 0], [1, 1], [0, 1], [0, 0]] * 3


def test_labels_of_the_types_of_arrow(images):
    paths = pa.array([f"i{i}.png" for i in range(12)])
    numbers = [i % 2 for i in range(12)]
    texts = pa.array([["ant", "bee"][n] for n in numbers])
    for column, classes in (
        (pa.array(numbers, pa.uint64()), ("0", "1")),
        (pa.array([bool(n) for n in numbers]), ("0", "1")),
        (pa.array([2**64 - 1 if n else 5 for n in numbers], pa.uint64()), ("5", str(2**64 - 1))),
        (texts.dictionary_encode(), ("ant", "bee")),
        (pa.array(texts, pa.large_string()), ("ant", "bee")),
    ):
        pq.write_table(pa.table({"path": paths, "label": column, "box": [{"x": 1, "y": 2}] * 12}), images / "t.parquet")
        source = opened(images / "t.parquet")
        assert source.classes == classes
        assert source.targets.tolist() == numbers
    with pytest.raises(DataError, match=r"the column 'box' holds structs \(x, y\)"):
        opened(images / "t.parquet", table__label_column="box")


def test_class_and_group_from_the_path(tmp_path):
    rows = []
    for i in range(12):
        name = draw(tmp_path / "flat" / f"{['cat', 'dog'][i % 2]}_{i // 4:02d}_{i}.png", 20 * i).name
        rows.append(name)
    folder = DataConfig(
        source="folder",
        path=str(tmp_path / "flat"),
        classes={"label_pattern": r"^([a-z]+)_"},
        splitting={"group_pattern": r"_(\d\d)_"},
    )
    source = open_data(folder, (8, 8)).source
    assert source.classes == ("cat", "dog")
    assert [source.label(i) for i in range(12)] == [key[:3] for key in source.keys]
    assert list(source.groups) == [key[4:6] for key in source.keys]
    (tmp_path / "t.csv").write_text("path\n" + "".join(f"{name}\n" for name in rows))
    listed = opened(
        tmp_path / "t.csv", classes__label_pattern=r"^([a-z]+)_", table__image_folder=str(tmp_path / "flat")
    )
    assert labels_of(listed) == labels_of(source)
    draw(tmp_path / "flat" / "x" / "17.png")
    with pytest.raises(DataError, match=r"data.classes.label_pattern .* finds nothing in 1 of 13 paths: x/17.png"):
        open_data(folder, (8, 8))
    for pattern, message in (("(", "is not a valid regular expression"), ("cat", "has no parenthesis")):
        with pytest.raises(ConfigError, match=rf"data.classes.label_pattern .*{message}"):
            opened(tmp_path / "t.csv", classes__label_pattern=pattern, table__image_folder=str(tmp_path / "flat"))


def test_a_split_folder_whose_names_hold_the_class(tmp_path):
    for i in range(12):
        draw(tmp_path / ("train", "val")[i % 3 == 2] / f"{['cat', 'dog'][i % 2]}.{i}.png", 20 * i)
    config = DataConfig(source="folder", path=str(tmp_path), classes={"label_pattern": r"/(cat|dog)\.\d+"})
    data = open_data(config, (8, 8))
    assert data.source.classes == ("cat", "dog")
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 8, "val": 4}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_folders_of_one_name_are_one_class(tmp_path, form):
    for split, own in (("train", "NFC"), ("val", form)):
        for i in range(4):
            draw(tmp_path / split / unicodedata.normalize(own, "blé ") / f"{i}.png", 30 * i)
            draw(tmp_path / split / "maïs" / f"{i}.png", 30 * i)
    draw(tmp_path / "train" / "blé" / "more.png")
    source = open_data(DataConfig(source="folder", path=str(tmp_path)), (8, 8)).source
    assert source.classes == ("blé", "maïs")
    assert np.bincount(source.targets).tolist() == [9, 8]


def test_folders_of_numbers_are_in_numeric_order(tmp_path):
    for name in ("1", "2", "10"):
        for i in range(4):
            draw(tmp_path / name / f"{i}.png", 30 * i)
    config = DataConfig(source="folder", path=str(tmp_path))
    assert open_data(config, (8, 8)).source.classes == ("1", "2", "10")
    assert open_data(config, (8, 8), ("1", "10", "2")).source.classes == ("1", "10", "2")  # as an older run has it


SIMILAR = ["anger", "ANGER", "joy"]


@pytest.fixture
def similar(images):
    table = pd.DataFrame({"path": [f"i{i}.png" for i in range(12)], "label": [SIMILAR[i % 3] for i in range(12)]})
    table.to_csv(images / "t.csv", index=False)
    return images / "t.csv"


def test_similar_class_names_are_named_by_the_audit_and_by_training(similar, tmp_path, capsys):
    data = ["--data.source", "table", "--data.path", str(similar)]
    main(["data", "audit", *data])
    assert "ANGER = anger" in capsys.readouterr().out
    model = "--model.name vit --model.img_size 8 --model.patch_size 4 --model.embed_dim 8 --model.depth 1".split()
    model += ["--model.num_heads", "2"]
    assert main(["train", *data, *model, "--trainer.max_epochs", "1", "--data.loader.num_workers", "0",
                 "--run.tensorboard", "false", "--run.dir", str(tmp_path / "run")]) == 0  # fmt: skip
    warning = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: class names"))
    assert "'ANGER' and 'anger'" in warning
    assert opened(similar, classes__merge="similar").classes == ("ANGER", "joy")


def test_too_few_images_of_one_spelling(similar):
    table = pd.read_csv(similar)
    table[(table["label"] != "ANGER") | (table.index == 1)].to_csv(similar, index=False)
    for split in ("stratified", "exact"):
        with pytest.raises(DataError, match=r"'ANGER' \(also spelled 'anger'; .*classes.merge similar\) has 1 image:"):
            opened(similar, split=split)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("name", ["photo {}, {} b.png", "photo {} {}.png", "a;b {},{}.png"])
@pytest.mark.fast_cases("photo {}, {} b.png-True", "photo {}, {} b.png-False")
def test_a_single_column_is_not_divided(tmp_path, header, name):
    names = [draw(tmp_path / name.format(["cat", "dog"][i % 2], i), 20 * i).name for i in range(12)]
    (tmp_path / "t.txt").write_text("path\n" * header + "\n".join(names) + "\n")
    source = opened(tmp_path / "t.txt", classes__label_pattern="(cat|dog)")
    assert source.keys == names
    assert [source.label(i) for i in range(12)] == ["cat", "dog"] * 6


def test_a_header_that_is_the_name_of_a_file_is_a_header(images):
    for name in ("path", "label"):
        (images / name).write_bytes((images / "i0.png").read_bytes())
    (images / "t.csv").write_text("path,label\n" + "".join(f"i{i}.png,{i % 3}\n" for i in range(12)))
    assert labels_of(opened(images / "t.csv")) == WANTED


def test_a_group_pattern_holds_for_other_images_only_where_it_is_found(images):
    (images / "t.csv").write_text("path,label\n" + "".join(f"i{i}.png,{i % 3}\n" for i in range(12)))
    config = DataConfig(source="table", path=str(images / "t.csv"), splitting={"group_pattern": r"plant(\d+)"})
    with pytest.raises(DataError, match=r"data.splitting.group_pattern .* finds nothing in 12 of 12 paths: i0.png"):
        open_data(config, (8, 8))
    assert open_data(config, (8, 8), ("0", "1", "2"), split=False).source.groups is None


@pytest.mark.parametrize("name", ["Group", "GROUP", " group "])
def test_columns_of_groups_and_splits_are_found_in_any_letter_case(images, name):
    rows = [f"i{i}.png,{i % 2},{i // 2},{('Train', 'VAL', 'test')[i // 4]}" for i in range(12)]
    (images / "t.csv").write_text("\n".join([f"path,label,{name},{name.upper().replace('GROUP', 'SPLIT')}", *rows]))
    source = opened(images / "t.csv")
    assert source.groups == [str(i // 2) for i in range(12)]
    assert source.given_split == [("train", "val", "test")[i // 4] for i in range(12)]


@pytest.mark.parametrize("written", [["1", "1.0"], ["1.0", "1.00"], [" 1", "1"]])
def test_a_group_is_the_same_however_its_number_is_written(images, written):
    rows = [f"i{i}.png,{i % 2},{written[i % 2] if i < 6 else i}" for i in range(12)]
    (images / "t.csv").write_text("\n".join(["path,label,group", *rows]))
    assert opened(images / "t.csv").groups == ["1"] * 6 + [str(i) for i in range(6, 12)]


@pytest.mark.parametrize("word", ["nan", "None", "<NA>", ""])
def test_words_for_no_value_are_no_group(images, word):
    rows = [f"i{i}.png,{i % 2},{word if i < 3 else f'p{i}'}" for i in range(12)]
    (images / "t.csv").write_text("\n".join(["path,label,group", *rows]))
    with pytest.raises(DataError, match="3 images have no group"):
        opened(images / "t.csv")


def test_columns_that_look_like_groups_or_splits_are_reported(images, capsys):
    rows = [f"i{i}.png,{i % 2},{i // 2},{i % 3}" for i in range(12)]
    (images / "t.csv").write_text("\n".join(["path,label,Patient_ID,fold", *rows]))
    opened(images / "t.csv")
    told = capsys.readouterr().err
    assert "the column 'Patient_ID' is not used" in told
    assert "the column 'fold' is not used" in told
    opened(images / "t.csv", table__group_column="Patient_ID")
    assert "Patient_ID" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cells", "plain"),
    [
        (["['red ant']", "['bee']", "['bee', 'red ant']"], "bee;red ant"),
        (['["ant"]', '["bee"]', '["ant","bee"]'], "ant;bee"),
        (["[0]", "[1]", "[0, 1]"], "0;1"),
    ],
)
@pytest.mark.parametrize("separator", [None, ";"])
def test_printed_lists_are_no_names(images, cells, plain, separator):
    pd.DataFrame({"path": [f"i{i}.png" for i in range(12)], "label": cells * 4}).to_csv(images / "t.csv", index=False)
    with pytest.raises(DataError, match=f"label holds printed lists .* write the labels as {plain}"):
        opened(images / "t.csv", table__label_separator=separator)


def test_a_missing_list_is_not_an_empty_one(images):
    table = pd.DataFrame({"path": [f"i{i}.png" for i in range(12)], "label": [["ant", "bee"], [], ["bee"]] * 4})
    table.to_parquet(images / "t.parquet")
    assert opened(images / "t.parquet").targets.sum() == 12
    table.loc[3, "label"] = None
    table.to_parquet(images / "t.parquet")
    with pytest.raises(DataError, match="label is empty in 1 row"):
        opened(images / "t.parquet")


def test_classes_without_an_image_are_reported(images, capsys):
    (images / "t.csv").write_text("\n".join(["path,label", *(f"i{i}.png,{i % 2}" for i in range(12))]))
    opened(images / "t.csv", classes__names=("ant", "bee", "cat"))
    assert "1 of 3 classes has no image: cat; a model cannot learn them" in capsys.readouterr().err
