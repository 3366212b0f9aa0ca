"""The export of a run on its page."""

import json

import pytest

from tests.report.test_measured import _make
from vitrail.engines.load import FORMAT, RECORD_FILE, sealed
from vitrail.errors import RunError
from vitrail.report.evaluated import Subject
from vitrail.report.export import exports


def _measured(speed, size, precision):
    speeds = [{"batch": n, "p50": n / speed, "images_per_second": float(speed)} for n in (1, 8)]
    return {"speeds": speeds, "bytes": size, "memory_bytes": None, "precision": precision}


def _candidate(name, speed, chosen, **verdict):
    empty = {"agreement": None, "agreement_low": None, "status": "not tested", "reason": "r"}
    measured = None if speed is None else _measured(speed, 2_000_000, "fp32")
    return {
        "name": name,
        "chosen": chosen,
        "images_per_second": speed,
        "verdict": empty | verdict,
        "measured": measured,
    }


RECORD = {
    "format": FORMAT,
    "engine": "openvino",
    "precision": "fp32",
    "weights": None,
    "processor": "Some CPU",
    "threads": 1,
    "eager": _measured(1234.5, None, "fp32"),
    "candidates": [
        _candidate("openvino fp32", 250, True, status="passed", agreement=1.0, agreement_low=0.983),
        _candidate("openvino bf16", 300, False, status="refused", reason="decisions agree for 179 of 179 images"),
        _candidate("torch fp32", None, False, status="not built", reason="no operator"),
    ],
    "test": {
        "images": 360, "available": 360, "metric": "accuracy", "original": [0.98, 0.96, 0.99],
        "export": [0.98, 0.96, 0.99], "difference": [0.0, -0.01, 0.01], "agreement": 1.0, "agreement_low": 0.992,
    },
}  # fmt: skip


def _subject(tmp_path, name="r", **changes):
    part = _make(tmp_path / name)
    folder = part.run.export / "1"
    folder.mkdir(parents=True)
    (folder / RECORD_FILE).write_text(json.dumps(sealed({**RECORD, **changes})))
    return Subject(name, [part])


def test_the_section_has_candidates_verdicts_the_final_comparison_and_how_to_load_it(tmp_path):
    subjects = [_subject(tmp_path), Subject("none", [_make(tmp_path / "none")])]
    (section,) = exports(subjects)
    text = " ".join(section.words)
    assert "r is exported for openvino fp32: 250 images/s in batches of 8, 0.20 times the run in eager mode" in text
    assert "on Some CPU with 1 thread" in text
    assert "It decides like the run for 360 of 360 test images" in text
    assert f"`vitrail predict {tmp_path / 'r' / 'export'} FILES`" in text
    candidates, final = (table.shown() for table in section.tables)
    rows = [[cell["text"] for cell in row] for row in candidates["rows"]]
    assert [row[1] for row in rows] == ["the run in eager mode", "openvino fp32", "openvino bf16", "torch fp32"]
    assert [[row[2], row[-1]] for row in rows[1:]] == [
        ["passed, chosen", "r"], ["refused", "decisions agree for 179 of 179 images"], ["not built", "no operator"],
    ]  # fmt: skip
    assert rows[0][3:5] == ["1,234", "1,234"]
    assert rows[1][3:6] == ["250", "250", "2"]
    assert [cell["text"] for cell in final["rows"][0]][:3] == ["r", "360", "accuracy"]
    assert "+0.0000 (-0.0100 to +0.0100)" in final["rows"][0][5]["text"]


def test_without_an_export_or_test_images_there_is_no_section_or_table(tmp_path):
    assert exports([Subject("none", [_make(tmp_path / "none")])]) == []
    (section,) = exports([_subject(tmp_path, test=None)])
    assert [table.name for table in section.tables] == ["export_candidates"]


def test_an_export_of_other_weights_is_named_and_not_shown(tmp_path, monkeypatch):
    subject = _subject(tmp_path, weights="of another training")
    monkeypatch.setattr(type(subject.parts[0].run), "made_with", lambda self, code: False)
    (section,) = exports([subject])
    assert section.tables == []
    assert "other weights than the run holds now; `vitrail export" in section.words[0]


def test_an_edited_record_is_an_error(tmp_path):
    subject = _subject(tmp_path)
    file = subject.parts[0].run.export / "1" / RECORD_FILE
    file.write_text(file.read_text().replace("250", "900"))
    with pytest.raises(RunError, match="was edited"):
        exports([subject])
