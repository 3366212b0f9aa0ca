"""Exports of runs on a page: the candidates with their verdicts, the final comparison, and how to load the file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vitrail.engines.load import find_export, read_record
from vitrail.errors import plural
from vitrail.figures.tables import Column, Table
from vitrail.report.evaluated import Section, Subject, names_of, who


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


_CANDIDATES = (
    Column("candidate", "candidate", "text"),
    Column("gate", "gate", "text"),
    Column("images_per_second_1", "images/s at 1", _speed),
    Column("images_per_second_8", "images/s at 8", _speed),
    Column("megabytes", "file MB", "number"),
    Column("memory_megabytes", "memory MB", "number"),
    Column("agreement", "same decisions", "share"),
    Column("agreement_low", "shown at least", "share"),
    Column("why", "why", "text"),
)

_FINAL = (
    Column("images", "test images", "count"),
    Column("metric", "metric", "text"),
    Column("run", "run", "error", "run_low", "run_high"),
    Column("export", "export", "error", "export_low", "export_high"),
    Column("difference", "export minus run", "{:+.4f}".format, "difference_low", "difference_high"),
    Column("agreement", "same decisions"),
    Column("agreement_low", "at least"),
)
# Engine -> the package that runs its file.
_PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime", "torch": "torch", "inductor": "torch"}


def exports(subjects: Sequence[Subject]) -> list[Section]:
    """Show the exports in the run folders.

    Args:
        subjects: Runs, one each; those without an export are left out.

    Returns:
        The section, or nothing where no run has an export.

    Raises:
        RunError: An export whose record is damaged or was edited.
    """
    words: list[str] = []
    candidates: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    there = []
    for subject in subjects:
        run = subject.parts[0].run
        if (folder := find_export(run.export)) is None:
            continue
        record = read_record(folder)
        if not run.made_with(record["weights"]):
            words.append(
                f"The export of {subject.label} is of other weights than the run holds now; `vitrail export {run}` "
                "renews it."
            )
            continue
        there.append(subject)
        words += _in_words(subject.label, record, folder)
        candidates += [{"name": subject.label, **row} for row in _candidates(record)]
        if record["test"] is not None:
            compared.append({"name": subject.label, **_final(record["test"])})
    if not there:
        return [Section("Export", words)] if words else []
    tables = [_table_of_candidates(subjects, there, candidates)]
    if compared:
        tables.append(_table_on_test_images(subjects, there, compared))
    return [Section("Export", words, [], tables)]


def _table_of_candidates(
    subjects: Sequence[Subject], there: Sequence[Subject], rows: Sequence[Mapping[str, Any]]
) -> Table:
    caption = (
        "Candidates of the exports, engines and precisions, timed in turns with the run. The gate compares decisions "
        "of each with those of the run on images that the run was not trained on; the fastest that passes is chosen. "
        f"From export.json of {names_of(there)}."
    )
    return Table("export_candidates", caption, pd.DataFrame(rows), [who(subjects), *_CANDIDATES])


def _table_on_test_images(
    subjects: Sequence[Subject], there: Sequence[Subject], rows: Sequence[Mapping[str, Any]]
) -> Table:
    caption = (
        "The runs and their exports on the test images, which have no part in the choice, with 95 % intervals. From "
        f"export.json of {names_of(there)}."
    )
    return Table("export_test", caption, pd.DataFrame(rows), [who(subjects), *_FINAL])


def _in_words(label: str, record: Mapping[str, Any], folder: Path) -> list[str]:
    """Describe an export: its engine, speed beside the run, decisions, and how to load it."""
    chosen = next(row for row in record["candidates"] if row["chosen"])
    own, eager = (speeds["speeds"][-1] for speeds in (chosen["measured"], record["eager"]))
    words = [
        f"{label} is exported for {chosen['name']}: {own['images_per_second']:,.0f} images/s in batches of "
        f"{own['batch']}, {own['images_per_second'] / eager['images_per_second']:.2f} times the run in eager mode, on "
        f"{record['processor']} with {plural(record['threads'], 'thread')}."
    ]
    if (test := record["test"]) is not None:
        same = round(test["agreement"] * test["images"])
        words.append(f"It decides like the run for {same:,} of {plural(test['images'], 'test image')}.")
    words.append(
        f"With vitrail: `vitrail predict {shlex.quote(str(folder.parent))} FILES`. Without it, with "
        f"{_PACKAGES[record['engine']]} alone: the code in `{folder / 'README.md'}`."
    )
    return words


def _candidates(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    eager = {"candidate": "the run in eager mode", **_measures(record["eager"])}
    rows = []
    for row in record["candidates"]:
        verdict = row["verdict"]
        rows.append(
            {
                "candidate": row["name"],
                **_measures(row["measured"] or {}),
                "agreement": verdict["agreement"],
                "agreement_low": verdict["agreement_low"],
                "gate": "passed, chosen" if row["chosen"] else verdict["status"],
                "why": verdict["reason"],
            }
        )
    return [eager, *rows]


def _measures(measured: Mapping[str, Any]) -> dict[str, Any]:
    speeds = {f"images_per_second_{own['batch']}": own["images_per_second"] for own in measured.get("speeds", ())}
    found: dict[str, Any] = {**speeds, "computes_in": measured.get("precision")}
    for name, key in (("megabytes", "bytes"), ("memory_megabytes", "memory_bytes")):
        value = measured.get(key)
        found[name] = None if value is None else value / 1e6
    return found


def _final(test: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: test[name] for name in ("images", "metric", "agreement", "agreement_low")}
    for name, key in (("run", "original"), ("export", "export"), ("difference", "difference")):
        row[name], row[f"{name}_low"], row[f"{name}_high"] = test[key]
    return row
