"""Data of the runs on a page: balance, splits, and the record of an audit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from vitrail.analyze.evaluated import Evaluation
from vitrail.errors import DataError, RunError, plural
from vitrail.figures.data import SPLIT_NAMES, class_balance, duplicates, image_sizes
from vitrail.figures.picture import Picture
from vitrail.figures.tables import Column, Table
from vitrail.models.modality import MODALITIES, describe_unmet
from vitrail.report.evaluated import Section, Subject

# Classes with a bar of their own; of more, the largest and the smallest.
_MOST_BARS = 30
# Ratio of the largest to the smallest class that is worth a line.
_WORTH_A_LINE = 1.2
# Sizes with a mark of their own.
_MOST_SIZES = 400
# Duplicates drawn, and images of each.
_MOST_GROUPS, _MOST_COPIES = 6, 2

# Shows images of a run by their keys, each ``(H, W)`` or ``(H, W, 3)``.
Show = Callable[[Evaluation, Sequence[str]], Sequence[npt.NDArray[Any]]]


@dataclass
class Known:
    """One data set, and the runs that were trained on it.

    Attributes:
        record: Record by an evaluation; by an audit where there is none.
        audit: Record by an audit; None where there was none, or of other images.
        part: The first of the runs.
        names: Names of all runs.
        stale: Whether the images are others than the run was trained on.
        stale_audit: Whether there was an audit of other images.
        can_audit: Whether `vitrail data audit` takes its inputs.
    """

    record: dict[str, Any]
    audit: dict[str, Any] | None
    part: Evaluation
    names: list[str] = field(default_factory=list)
    stale: bool = False
    stale_audit: bool = False
    can_audit: bool = True

    @property
    def leaks(self) -> list[dict[str, Any]]:
        """Groups of copies that lie in several splits."""
        return [] if self.audit is None else [group for group in self.audit["duplicates"] if _leaks(group)]


def data_sections(subjects: Sequence[Subject], show: Show | None = None) -> list[Section]:
    """Build a section for each data set that the runs were trained on.

    Args:
        subjects: Runs or variants side by side; runs that recorded nothing of their data are left out.
        show: Shows images of a run; duplicates are not drawn without it.

    Returns:
        Nothing where nothing was recorded.

    Raises:
        RunError: A record that is damaged.
    """
    known: dict[str, Known] = {}
    for subject in subjects:
        for part in subject.parts:
            found = read_known(part)
            if found is None:
                continue
            code = f"{found.record['fingerprint']} {found.record['splits']} {found.audit is not None}"
            known.setdefault(code, found).names.append(part.run.name)
    sections = []
    for number, found in enumerate(known.values(), start=1):
        more = "" if number == 1 else f"_{number}"
        title = "Data" if len(known) == 1 else f"Data of {', '.join(found.names)}"
        section = Section(title, _words(found))
        if found.record["balance"]:
            section.shown.append(_balance(found, f"data{more}"))
        if found.audit is not None:
            section.shown += [*_sizes(found, f"sizes{more}"), *_copies(found, f"duplicates{more}", show)]
        section.tables = _tables(found, more)
        sections.append(section)
    return sections


def read_known(part: Evaluation) -> Known | None:
    """Read a run's record of its data.

    Returns:
        None where nothing was recorded.

    Raises:
        RunError: A record that is damaged.
    """
    record = part.content(part.run.balance)
    audit = part.content(part.run.audit)
    if record is None and audit is None:
        return None
    keys = ("fingerprint", "splits", "balance", "unreadable")
    for file, content in ((part.run.balance, record), (part.run.audit, audit)):
        lacking = [key for key in keys if content is not None and key not in content]
        if lacking:
            raise RunError(f"{file} holds no {', '.join(lacking)}; evaluate the run, or audit its data, again")
    stale_audit = record is not None and audit is not None and not _same_images(record, audit)
    chosen = audit if record is None else record
    assert chosen is not None, "one of them is there"
    environment = part.content(part.run.environment) or {}
    trained_on = environment.get("images") or {}
    return Known(
        chosen,
        None if stale_audit else audit,
        part,
        stale="fingerprint" in trained_on and not _same_images(trained_on, chosen),
        stale_audit=stale_audit,
        can_audit=_can_audit(part),
    )


def _can_audit(part: Evaluation) -> bool:
    streams = (part.content(part.run.card) or {}).get("streams") or {"image": None}
    return describe_unmet("data audit", MODALITIES[next(iter(streams))], part.run.name) is None


def _same_images(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two records are of the same images: by content, or by name where one is of an earlier version."""
    if "listing" in one and "listing" in other:
        return bool(one["fingerprint"] == other["fingerprint"])
    return bool(one.get("listing", one["fingerprint"]) == other.get("listing", other["fingerprint"]))


def _words(found: Known) -> list[str]:
    record, audit, run = found.record, found.audit, found.part.run
    splits = ", ".join(f"{SPLIT_NAMES.get(name, name)} {number:,}" for name, number in record["splits"].items())
    classes = f" of {plural(len(record['balance']), 'class')}" if record["balance"] else ""
    words = [f"{plural(sum(record['splits'].values()), 'image')}{classes}: {splits}."]
    own = {name: row.get("train", 0) for name, row in record["balance"].items()}
    if len(own) > 1:
        most, least = max(own, key=lambda name: own[name]), min(own, key=lambda name: own[name])
        if own[least] == 0:
            words.append(f"{least} has no training image.")
        elif own[most] >= _WORTH_A_LINE * own[least]:
            words.append(
                f"{most} has {own[most] / own[least]:.1f} times as many training images as {least} "
                f"({own[most]:,} and {own[least]:,})."
            )
    if record["unreadable"]:
        words.append(f"{plural(len(record['unreadable']), 'file')} could not be read and took no part.")
    if found.stale:
        words.append(
            "These are not the images that the run was trained on: files, labels or splits have changed since."
        )
    if audit is None and not found.can_audit:
        return words
    if audit is None:
        why = "the audit that is recorded is of other images" if found.stale_audit else "the data was not audited"
        words.append(f"Duplicates, leaks, sizes and constant bands: {why}; `vitrail data audit --run {run}` does it.")
        return words
    across = found.leaks
    if audit["split_leaks"]:
        parts = [
            *([f"{plural(len(across), 'group')} of the same or nearly the same images"] if across else []),
            *([f"{plural(len(audit['shared_groups']), 'group')} of the data's own"] if audit["shared_groups"] else []),
        ]
        words.append(f"The split leaks: {' and '.join(parts)} lie in several splits; metrics are overestimated.")
    else:
        words.append("No image of one split was found in another.")
    return words


def _leaks(group: dict[str, Any]) -> bool:
    return len(set(group["splits"]) - {""}) > 1


def _conflicts(group: dict[str, Any]) -> bool:
    return len(set(group["labels"])) > 1


def _balance(found: Known, name: str) -> tuple[Picture, Figure]:
    balance = found.record["balance"]
    order = sorted(balance, key=lambda key: -sum(balance[key].values()))
    told = ""
    if len(order) > _MOST_BARS:
        half = _MOST_BARS // 2
        told = f" The {half} largest and the {half} smallest of {len(order)}."
        order = [*order[:half], *order[-half:]]
    what = "labels" if found.record.get("several_labels") else "classes"
    caption = f"Images of the {what} in each split.{told} From {_origin(found)} of {', '.join(found.names)}."
    shown = order[:8]
    alt = f"Bars of the images of the {what} by split; " + "; ".join(
        f"{key}: " + ", ".join(f"{SPLIT_NAMES.get(s, s)} {n}" for s, n in balance[key].items()) for key in shown
    )
    splits = list(found.record["splits"])
    figure = class_balance({key: balance[key] for key in order}, splits)
    return Picture(name, "Balance", caption, alt), figure


def _origin(found: Known) -> str:
    return found.part.run.audit.name if found.record is found.audit else found.part.run.balance.name


def _sizes(found: Known, name: str) -> list[tuple[Picture, Figure | None]]:
    """Plot height against width, where there are several."""
    assert found.audit is not None
    sizes = found.audit["sizes"]
    if len(sizes) < 2:
        return []
    shown = sizes[:_MOST_SIZES]
    height, width = (np.array([size[i] for size, _ in shown], dtype=float) for i in (0, 1))
    number = np.array([images for _, images in shown], dtype=float)
    some = f" The {_MOST_SIZES} most frequent." if len(sizes) > _MOST_SIZES else ""
    caption = (
        f"{plural(len(sizes), 'size')} of images, {height.min():.0f} to {height.max():.0f} high and {width.min():.0f} "
        f"to {width.max():.0f} wide; larger marks are of more images.{some} From audit.json of "
        f"{', '.join(found.names)}."
    )
    picture = Picture(name, "Sizes", caption, f"Height against width; {caption}")
    return [(picture, image_sizes(height, width, number))]


def _copies(found: Known, name: str, show: Show | None) -> list[tuple[Picture, Figure | None]]:
    """Show the first relevant duplicates as images: across splits, or of several classes."""
    assert found.audit is not None
    groups = [g for g in found.audit["duplicates"] if _leaks(g) or _conflicts(g)][:_MOST_GROUPS]
    if not groups or show is None:
        return []
    chosen = [_apart(group)[:_MOST_COPIES] for group in groups]
    title = "The same image twice"
    try:
        keys = [group["keys"][i] for group, rows in zip(groups, chosen, strict=True) for i in rows]
        pictures = iter(show(found.part, keys))
    except (DataError, RunError) as error:
        return [(Picture(name, title, "", problem=f"Duplicates are not drawn: {error}."), None)]
    drawn = [[(next(pictures), group["splits"][row], group["labels"][row]) for row in rows]
             for group, rows in zip(groups, chosen, strict=True)]  # fmt: skip
    names = [" and ".join(f"{group['keys'][row]} ({group['splits'][row]})" for row in rows)
             for group, rows in zip(groups, chosen, strict=True)]  # fmt: skip
    caption = (
        "Images that are the same, or nearly, in several splits or classes, one above the other. Near duplicates are "
        f"rotated, mirrored, cropped, recompressed, scaled, brighter or darker copies. From audit.json of "
        f"{', '.join(found.names)}."
    )
    return [(Picture(name, title, caption, f"Duplicates as images; {'; '.join(names)}"), duplicates(drawn))]


def _apart(group: dict[str, Any]) -> list[int]:
    """Order the numbers of a group's images, the first of each split and class before the others."""
    kinds = list(zip(group["splits"], group["labels"], strict=True))
    first = [i for i, kind in enumerate(kinds) if kinds.index(kind) == i]
    return [*first, *(i for i in range(len(kinds)) if i not in first)]


def _tables(found: Known, more: str) -> list[Table]:
    record, audit = found.record, found.audit
    whose = ", ".join(found.names)
    tables = []
    if record["balance"]:
        splits = list(record["splits"])
        rows = [{"class": name, **row, "all": sum(row.values())} for name, row in record["balance"].items()]
        columns = [Column("class", "class", "text"), *(Column(s, SPLIT_NAMES.get(s, s), "count") for s in splits),
                   Column("all", "all", "count")]  # fmt: skip
        frame = pd.DataFrame(rows).sort_values("all", ascending=False, kind="stable")
        caption = f"Images of each class by split. From {_origin(found)} of {whose}."
        tables.append(Table(f"balance{more}", caption, frame, columns, most=40))
    if record["unreadable"]:
        frame = pd.DataFrame(record["unreadable"], columns=["path", "problem"])
        columns = [Column("path", "file", "text"), Column("problem", "problem", "text")]
        caption = f"Files that were left out. From {_origin(found)} of {whose}."
        tables.append(Table(f"unreadable{more}", caption, frame, columns, most=10))
    if audit is None:
        return tables
    caption = (
        f"What an audit found in {plural(audit['images'], 'image')}. Near duplicates are confirmed on pixels; possible "
        "leaks are look-alikes in different splits that are not, with hashes that differ in at most "
        f"{audit.get('distance', 8)} of 64 bits. From audit.json of {whose}."
    )
    columns = [Column("what", "looked for", "text"), Column("number", "found", "count"), Column("first", "", "text")]
    tables.append(Table(f"audit{more}", caption, _findings(audit), columns))
    matter = [g for g in audit["duplicates"] if _leaks(g) or _conflicts(g)]
    if matter:
        frame = pd.DataFrame([
            {
                "kind": g["kind"], "where": "several splits" if _leaks(g) else "one split",
                "labels": ", ".join(dict.fromkeys(g["labels"])),
                "images": "; ".join(
                    f"{key} ({SPLIT_NAMES.get(s, s)})" for key, s in zip(g["keys"], g["splits"], strict=True)
                ),
            }
            for g in matter
        ])  # fmt: skip
        columns = [Column("kind", "duplicates", "text"), Column("where", "in", "text"),
                   Column("labels", "classes", "text"), Column("images", "images", "text")]  # fmt: skip
        caption = f"Duplicates across splits or classes. From audit.json of {whose}."
        tables.append(Table(f"duplicates{more}", caption, frame, columns, most=12))
    return tables


def _findings(audit: dict[str, Any]) -> pd.DataFrame:
    """Tabulate the checks of an audit: name, number of findings, the first of them."""
    kinds = {kind: [g for g in audit["duplicates"] if g["kind"] == kind] for kind in ("exact", "near")}
    constant = list(dict.fromkeys(key for key, _, _ in audit["constant"]))
    empty = [f"{stream}: {band}" for stream, band in audit["empty_bands"]]
    clips = audit.get("clips")
    found: list[tuple[str, list[str]]] = [
        ("files that cannot be read", [path for path, _ in audit["unreadable"]]),
        *(
            []
            if clips is None
            else [
                ("clips with damaged frames", [key for key, _ in clips["damaged"]]),
                ("clips without motion", clips["still"]),
            ]
        ),
        ("groups of exact duplicates", [_pair(g) for g in kinds["exact"]]),
        ("groups of near duplicates", [_pair(g) for g in kinds["near"]]),
        ("duplicates across splits", [_pair(g) for g in audit["duplicates"] if _leaks(g)]),
        ("possible leaks", [_pair(pair) for pair in audit.get("look_alikes", []) if _leaks(pair)]),
        ("duplicates of different classes", [_pair(g) for g in audit["duplicates"] if _conflicts(g)]),
        ("groups of the data's own across splits", list(audit["shared_groups"])),
        ("images with a constant band", constant),
        ("bands constant in every image", empty),
        ("sizes of images", [f"{height} x {width}" for (height, width), _ in audit["sizes"]]),
    ]
    return pd.DataFrame([
        {"what": what, "number": len(names), "first": names[0] if names else None} for what, names in found
    ])  # fmt: skip


def _pair(group: dict[str, Any]) -> str:
    return " = ".join(group["keys"][:2])
