"""What a page says of a run's data: what was recorded, and what was not."""

import json

import numpy as np
import pytest

from tests.report.test_measured import _make
from vitrail.cli.main import main
from vitrail.errors import DataError, RunError
from vitrail.report.data import data_sections
from vitrail.report.evaluated import Subject

BALANCE = {"a": {"train": 30, "test": 8}, "b": {"train": 10, "test": 2}}


@pytest.fixture
def part(tmp_path):
    return _make(tmp_path / "x", images=20, val=10)


def _record(part, **changes):
    content = {"fingerprint": "f", "splits": {"train": 40, "test": 10}, "balance": BALANCE, "unreadable": []}
    part.run.write_json(part.run.balance, content | changes)


def _group(splits, labels, kind="near"):
    return {"kind": kind, "rows": [0, 1], "keys": ["1.png", "2.png"], "splits": splits, "labels": labels}


def _audit(part, **changes):
    content = {"images": 50, "unreadable": [], "splits": {"train": 40, "test": 10}, "balance": BALANCE,
               "duplicates": [], "shared_groups": {}, "sizes": [[[8, 8], 50]], "constant": [], "empty_bands": [],
               "split_leaks": False, "distance": 8, "fingerprint": "f"}  # fmt: skip
    part.run.write_json(part.run.audit, content | changes)


def _section(part, show=None):
    (section,) = data_sections([Subject("x", [part])], show)
    return section, " ".join(section.words), {table.name: table.frame for table in section.tables}


def test_nothing_recorded_is_nothing_shown(part):
    assert data_sections([Subject("x", [part])]) == []


def test_the_balance_alone_says_that_there_was_no_audit(part):
    _record(part, unreadable=[["z.png", "z.png is empty"]])
    section, words, tables = _section(part)
    assert "50 images of 2 classes: training 40, test 10." in words
    assert "a has 3.0 times as many training images as b (30 and 10)" in words
    assert f"the data was not audited; `vitrail data audit --run {part.run}` does it" in words
    assert "leaks:" not in words
    assert set(tables) == {"balance", "unreadable"}
    assert tables["balance"]["all"].tolist() == [38, 12]
    ((picture, figure),) = section.shown
    widths = [bar.get_width() for bars in figure.axes[0].containers for bar in bars]
    assert widths == [30, 10, 8, 2]
    assert "a: training 30, test 8" in picture.alt
    assert "data.json of x" in picture.caption


def test_an_audit_says_what_leaks(part):
    _record(part)
    leak, conflict = _group(["train", "test"], ["a", "a"]), _group(["train", "train"], ["a", "b"], "exact")
    harmless = _group(["train", "train"], ["a", "a"])
    sizes = [[[8, 8], 40], [[8, 16], 10]]
    _audit(part, duplicates=[leak, conflict, harmless], split_leaks=True, sizes=sizes, shared_groups={"p": ["a", "b"]},
           constant=[["1.png", "image", "red"], ["1.png", "image", "blue"]])  # fmt: skip
    asked = []

    def show(evaluation, keys):
        assert evaluation is part
        asked.extend(keys)
        return [np.zeros((4, 4))] * len(keys)

    section, words, tables = _section(part, show)
    assert "The split leaks: 1 group of the same or nearly the same images and 1 group of the data's own" in words
    assert asked == ["1.png", "2.png"] * 2  # the harmless ones are not drawn
    assert [picture.name for picture, _ in section.shown] == ["data", "sizes", "duplicates"]
    found = tables["audit"].set_index("what")["number"]
    assert found["groups of near duplicates"] == 2
    assert found["duplicates across splits"] == found["duplicates of different classes"] == 1
    assert found["images with a constant band"] == 1
    assert found["sizes of images"] == 2
    assert tables["duplicates"]["images"].tolist() == [
        "1.png (training); 2.png (test)", "1.png (training); 2.png (training)",
    ]  # fmt: skip


def test_images_that_are_gone_are_said(part):
    _record(part)
    _audit(part, duplicates=[_group(["train", "test"], ["a", "a"])], split_leaks=True)

    def show(*_):
        raise DataError("no folder of images at y")

    section, _, _ = _section(part, show)
    picture, figure = section.shown[-1]
    assert figure is None
    assert "no folder of images at y" in picture.problem


def test_an_audit_of_other_images_is_not_shown(part):
    _record(part)
    _audit(part, fingerprint="g", split_leaks=True)
    _, words, tables = _section(part)
    assert "the audit that is recorded is of other images" in words
    assert set(tables) == {"balance"}
    part.run.write_json(part.run.environment, {"images": {"fingerprint": "h"}})
    assert "not the images that the run was trained on" in _section(part)[1]


def test_an_audit_alone_will_do_and_damage_is_said(part):
    _audit(part)
    section, words, _ = _section(part)
    assert "No image of one split was found in another." in words
    assert "audit.json of x" in section.shown[0][0].caption
    part.run.balance.write_text("{}")
    with pytest.raises(RunError, match=r"data.json holds no fingerprint, splits"):
        _section(part)


def test_runs_of_the_same_data_share_a_section(tmp_path):
    parts = [_make(tmp_path / name, i, images=20, val=10) for i, name in enumerate("xyz")]
    for one in parts[:2]:
        _record(one)
    _record(parts[2], fingerprint="g", balance={})
    sections = data_sections([Subject(part.run.name, [part]) for part in parts])
    assert [section.title for section in sections] == ["Data of x, y", "Data of z"]
    assert sections[1].shown == []


def test_the_command_records_an_audit_in_the_run(tmp_path, capsys):
    from tests.images import make_folder

    run = _make(tmp_path / "x", images=20, val=10).run
    classes = json.loads(run.card.read_text())["classes"]
    images = make_folder(tmp_path / "images", classes, splits=("train", "test"), per_class=4)
    recipe = f"data: {{source: folder, path: {images}, img_size: 16, num_workers: 0}}\nmodel: {{name: vit}}\n"
    run.recipe.write_text(recipe)
    main(["data", "audit", "--run", str(run)])
    told = json.loads(run.audit.read_text())
    assert told["images"] == 24
    assert told["fingerprint"]
    assert run.audit_page.is_file()
    assert "vitrail report" in capsys.readouterr().err
    for words, message in (
        (["--data.splitting.fold", "1"], "cannot be changed in vitrail data audit --run"),
        ([str(run.recipe)], "leave out"),
    ):
        assert main(["data", "audit", "--run", str(run), *words]) == 2
        assert message in capsys.readouterr().err
