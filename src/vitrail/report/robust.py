"""Robustness of the runs on a page: corruptions, missing bands, attacks, out-of-distribution images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from vitrail.analyze.evaluated import Evaluation
from vitrail.errors import plural
from vitrail.figures import evaluation as draw
from vitrail.figures.picture import Picture
from vitrail.figures.tables import Column, Table, is_nothing
from vitrail.report.evaluated import Section, Subject, names_of, several, who

_SCORES = {
    "msp": "largest probability", "max_logit": "largest logit", "energy": "energy", "mahalanobis": "Mahalanobis",
    "knn": "nearest neighbours",
}  # fmt: skip


def robustness(subjects: Sequence[Subject]) -> list[Section]:
    """Build a section for each robustness measurement.

    Args:
        subjects: Runs or variants side by side; a measurement leaves out those without it.
    """
    return [*_corruptions(subjects), *_missing(subjects), *_attacks(subjects), *_out_of_distribution(subjects)]


def _found(
    subjects: Sequence[Subject], name: str, keys: Sequence[str], first: str
) -> tuple[list[Subject], dict[str, pd.DataFrame]]:
    """Merge the tables of each subject whose runs have the same cases: accuracies, means over several runs."""
    there, tables = [], {}
    for subject in subjects:
        found = subject.each(lambda part: part.robustness(name, *keys, "images", "accuracy", "low", "high"))
        if found is None:
            continue
        if found[0][first].iloc[0] != "none" or any(not t[keys].equals(found[0][keys]) for t in found[1:]):
            continue
        table = found[0].copy()
        if len(found) > 1:
            table["accuracy"] = sum(t["accuracy"] for t in found) / len(found)
            table[["low", "high"]] = float("nan")  # those of one run are of its images alone
        there.append(subject)
        tables[subject.label] = table
    return there, tables


def _images(tables: Sequence[pd.DataFrame]) -> str:
    numbers = sorted({int(table["images"].iloc[0]) for table in tables})
    if len(numbers) == 1:
        return plural(numbers[0], "image")
    return f"{numbers[0]} to {numbers[-1]} images, not the same number for each"


def _joined(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table.assign(name=name) for name, table in tables.items()])


def _corruptions(subjects: Sequence[Subject]) -> list[Section]:
    there, tables = _found(subjects, "corruptions", ["corruption", "severity"], "corruption")
    if not there:
        return []
    grids = {
        name: table[table["severity"] > 0].pivot(index="corruption", columns="severity", values="accuracy")
        for name, table in tables.items()
    }
    common = [n for n in next(iter(grids.values())).index if all(n in grid.index for grid in grids.values())]
    clean = {name: float(table["accuracy"].iloc[0]) for name, table in tables.items()}
    shown: list[Any] = []
    on = _images(list(tables.values()))
    if common:
        means = {
            name: pd.concat([pd.Series({0: clean[name]}), grid.loc[common].mean()]) for name, grid in grids.items()
        }
        which = "the corruption" if len(common) == 1 else f"the {len(common)} corruptions"
        caption = (
            f"Accuracy under {which} {', '.join(n.replace('_', ' ') for n in common)}, on {on}"
            + ("; their mean at each severity" if len(common) > 1 else "")
            + f". From corruptions.csv of {names_of(there)}.{several(there)}"
        )
        alt = "Accuracy by severity of corruption; " + "; ".join(
            f"{name}: {series.iloc[0]:.3f} as they are, {series.iloc[-1]:.3f} at severity {series.index[-1]}"
            for name, series in means.items()
        )
        picture = Picture("severity", "Corruptions", caption, alt)
        shown.append((picture, draw.over_severity(means, "accuracy" if len(common) == 1 else "mean accuracy")))
    caption = f"Accuracy under each corruption at each severity, on {on}. From corruptions.csv of {names_of(there)}."
    worst = {name: str(grid.min(axis=1).idxmin()) for name, grid in grids.items()}
    alt = "Accuracy under each corruption; " + "; ".join(
        f"{name}: lowest {grid.to_numpy().min():.3f} under {worst[name]}" for name, grid in grids.items()
    )
    shown.append((Picture("corruptions", "Corruptions", caption + several(there), alt), draw.corruption_grid(grids)))
    frame = pd.concat(
        [
            grid.add_prefix("severity_").assign(mean=grid.mean(axis=1), name=name).reset_index()
            for name, grid in grids.items()
        ]
    )
    severities = [str(c) for c in frame if str(c).startswith("severity_")]
    table = Table(
        "corruptions",
        "Accuracy by severity, and its mean; as they are: "
        + ", ".join(f"{name} {value:.3f}" for name, value in clean.items())
        + f". On {on}. Runs: {names_of(there)}.{several(there)}",
        frame,
        [Column("corruption", "corruption", "text"), *([who(subjects)] if len(grids) > 1 else []),
         *(Column(c, c.removeprefix("severity_")) for c in severities), Column("mean", "mean")],
    )  # fmt: skip
    return [Section("Corruptions", [], shown, [table])]


def _missing(subjects: Sequence[Subject]) -> list[Section]:
    there, tables = _found(subjects, "missing", ["stream", "band", "how"], "stream")
    if not there:
        return []
    for cases in tables.values():
        streams = cases["stream"].nunique() > 2
        cases["case"] = [
            "as it is"
            if row["stream"] == "none"
            else f"without {row['stream']}" if row["band"] == "all" else f"without {row['band']}"
            + (f" ({row['stream']})" if streams else "")
            for row in cases.to_dict("records")
        ]  # fmt: skip
    on = _images(list(tables.values()))
    caption = (
        f"Accuracy with each band replaced by its mean over the training images, with 95 % intervals, on {on}; the "
        f"line is accuracy as it is. From missing.csv of {names_of(there)}.{several(there)}"
    )
    lowest = {name: table.iloc[int(table["accuracy"].to_numpy().argmin())] for name, table in tables.items()}
    alt = "Accuracy with bands missing; " + "; ".join(
        f"{name}: {tables[name]['accuracy'].iloc[0]:.3f} as it is, lowest {row['accuracy']:.3f} {row['case']}"
        for name, row in lowest.items()
    )
    table = Table(
        "missing",
        f"Accuracy without each band or stream, on {on}, and its drop, paired image by image; the verdict is corrected "
        f"for the number of bands (needed: the accuracy is shown to drop). Runs: {names_of(there)}.{several(there)}",
        _joined(tables),
        [Column("case", "case", "text"), *([who(subjects)] if len(tables) > 1 else []),
         Column("how", "replaced by", "text"), Column("accuracy", "accuracy", "share", "low", "high"),
         Column("drop", "drop", "share", "drop_low", "drop_high"), Column("verdict", "verdict", "text")],
    )  # fmt: skip
    picture = Picture("missing", "Missing bands", caption, alt)
    return [Section(picture.title, [], [(picture, draw.without(tables))], [table])]


def _attacks(subjects: Sequence[Subject]) -> list[Section]:
    there, tables = _found(subjects, "attacks", ["attack", "epsilon_of_255", "steps"], "attack")
    if not there:
        return []
    on = _images(list(tables.values()))
    caption = (
        f"Accuracy under attack by what each pixel may change at most, on {on}; what withstands these may yield to "
        f"others. From attacks.csv of {names_of(there)}.{several(there)}"
    )
    alt = "Accuracy under FGSM and PGD; " + "; ".join(
        f"{name}: {t['accuracy'].iloc[0]:.3f} as they are, {t['accuracy'].iloc[-1]:.3f} under "
        f"{t['attack'].iloc[-1].upper()} of {t['epsilon_of_255'].iloc[-1]:g} of 255"
        for name, t in tables.items()
    )
    table = Table(
        "attacks",
        f"Accuracy under attack, on {on}. Runs: {names_of(there)}.{several(there)}",
        _joined(tables),
        [Column("attack", "attack", "text"), *([who(subjects)] if len(tables) > 1 else []),
         Column("epsilon_of_255", "of 255", "number"), Column("steps", "steps", "count"),
         Column("accuracy", "accuracy", "share", "low", "high")],
    )  # fmt: skip
    picture = Picture("attacks", "Attacks", caption, alt)
    return [Section(picture.title, [], [(picture, draw.under_attack(tables))], [table])]


def _out_of_distribution(subjects: Sequence[Subject]) -> list[Section]:
    """Tabulate out-of-distribution detection of single runs: each may have been given other images."""
    rows, there = [], []
    for subject in subjects:
        content = _ood_of(subject.parts[0]) if len(subject.parts) == 1 else None
        if content is None:
            continue
        there.append(subject)
        rows += [
            {
                "name": subject.label, "score": _SCORES.get(name, name.replace("_", " ")), "other": content["path"],
                **{key: score[key] for key in ("auroc", "auroc_low", "auroc_high", "fpr_at_95_tpr")},
                "images_known": content["images_known"], "images_other": content["images_other"],
            }
            for name, score in content["scores"].items()
        ]  # fmt: skip
    if not rows:
        return []
    frame = pd.DataFrame(rows)
    caption = (
        "AUROC of out-of-distribution scores between the evaluated images and others, with 95 % intervals; 0.5 is "
        f"chance. From ood.json of {names_of(there)}."
    )
    alt = "AUROC of known against other images; " + "; ".join(
        f"{r['name']} {r['score']}: {r['auroc']:.3f}" for r in rows
    )
    drawn = [
        (
            f"{row['name']}, {row['score']}" if len(there) > 1 else row["score"],
            row["auroc"],
            *(float("nan") if is_nothing(row[end]) else row[end] for end in ("auroc_low", "auroc_high")),
        )
        for row in rows
    ]
    table = Table(
        "out_of_distribution",
        "Out-of-distribution detection; FPR: share of the others above a threshold that 95 % of the known images pass. "
        f"Runs: {names_of(there)}.",
        frame,
        [Column("score", "score", "text"), *([who(subjects)] if len(there) > 1 else []),
         Column("auroc", "AUROC", "share", "auroc_low", "auroc_high"), Column("fpr_at_95_tpr", "FPR at 95 % TPR"),
         Column("images_known", "known images", "count"), Column("images_other", "other images", "count"),
         Column("other", "the others", "text")],
    )  # fmt: skip
    picture = Picture("out_of_distribution", "Out-of-distribution images", caption, alt)
    return [Section(picture.title, [], [(picture, draw.spans(drawn, "AUROC", 0.5))], [table])]


def _ood_of(part: Evaluation) -> dict[str, Any] | None:
    content = part.content(part.files.ood)
    return content if content and part.of_these_weights(content) else None
