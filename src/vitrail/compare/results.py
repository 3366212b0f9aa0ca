"""The tables of a suite: one row a run, one a variant, one a comparison; each number from a recorded run."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vitrail.compare.pairing import TestedRun, check_same_images, image_groups, read_tested, test_share
from vitrail.compare.plan import Run, training_seconds
from vitrail.compare.suite import Suite
from vitrail.evaluate import statistics
from vitrail.evaluate.image_scores import SCORES

# Measures that results.csv takes from an evaluation, where it has them.
_MEASURES = ("accuracy", "balanced_accuracy", "f1_macro", "map", "nll", "top_5_accuracy")
NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class Tables:
    """Tables of a suite.

    Attributes:
        results: One row a run.
        summary: One row a variant.
        pairs: One row a comparison.
        images: How many test images a comparison is on; of folds, all together.
        groups: How many groups they are; None where each image is on its own.
        guess: Measure of the constant predictor (the most frequent class; for the log-loss, the frequencies); None
            where no run is done.
        near_guess: Whether no variant is shown to be better than that.
    """

    results: pd.DataFrame
    summary: pd.DataFrame
    pairs: pd.DataFrame
    images: int
    groups: int | None
    guess: float | None = None
    near_guess: bool = False


def tabulate(suite: Suite, runs: Sequence[Run]) -> Tables:
    """Make the tables from the runs that are done.

    Args:
        suite: The suite.
        runs: Its plan.

    Raises:
        DataError: Runs that were tested on different images.
        RunError: A run folder that is damaged.
    """
    done = [run for run in runs if not run.is_pretraining and run.state() == "done"]
    tested = [read_tested(run, suite.metric) for run in done]
    of_variant = {v.name: [t for t in tested if t.run.variant == v.name] for v in suite.variants}
    of_variant = {name: found for name, found in of_variant.items() if found}
    by_fold: dict[int | None, TestedRun] = {}
    for t in tested:
        check_same_images(by_fold.setdefault(t.run.fold, t), t)
    results = pd.DataFrame([_row_of_run(t, suite.metric) for t in tested])
    groups = {fold: image_groups(t) for fold, t in by_fold.items()}
    summary = pd.DataFrame(
        [
            _row_of_variant(name, results[results["variant"] == name], suite.metric)
            | _against_guess(found, suite, groups)
            for name, found in of_variant.items()
        ]
    )
    names = list(of_variant)
    if suite.against is None:
        wanted = list(itertools.combinations(names, 2))
    else:
        wanted = [(name, suite.against) for name in names if name != suite.against and suite.against in names]
    rows = [_row_of_pair(of_variant[a], of_variant[b], suite, groups) for a, b in wanted]
    known = [len(set(g)) for g in groups.values() if g is not None]
    pairs = pd.DataFrame(_decide([row for row in rows if row is not None], suite))
    guess = float(np.mean([t.guess.mean() for t in by_fold.values()])) if by_fold else None
    near = bool(tested) and not summary["better_than_guess"].any()
    images = sum(len(t.images) for t in by_fold.values())
    return Tables(results, summary, pairs, images, sum(known) if known else None, guess, near)


def _largest(metric: str) -> float | None:
    """Largest possible difference of a measure: shares lie between 0 and 1, the log-loss has no limit."""
    return 1.0 if SCORES[metric] else None


def _against_guess(found: Sequence[TestedRun], suite: Suite, groups: Mapping[int | None, Any]) -> dict[str, Any]:
    """Compare a variant's runs with the constant predictor on the same images."""
    own = {(t.run.fold, t.run.seed): t for t in found}
    guess = {key: dataclasses.replace(t, scores=t.guess) for key, t in own.items()}
    difference = _difference(own, guess, sorted(own, key=str), suite, groups)
    value = float(difference.value) * (1 if SCORES[suite.metric] else -1)
    return {"guess": float(np.mean([t.guess.mean() for t in found])),
            "p_guess": float(difference.p_value()),
            "better_than_guess": bool(difference.p_value() < suite.alpha and value > 0)}  # fmt: skip


def _difference(
    mine: Mapping[Any, TestedRun],
    other: Mapping[Any, TestedRun],
    common: Sequence[Any],
    suite: Suite,
    groups: Mapping[int | None, Any],
) -> statistics.PairedDifference:
    """Compute the difference of two variants over the runs that both have."""
    largest = _largest(suite.metric)
    if suite.folds is None:
        differences = np.stack([mine[key].scores - other[key].scores for key in common])
        own = groups[None]
        return statistics.runs_and_images(
            differences if own is None else statistics.join_groups(differences, own), largest
        )
    means = np.array([mine[key].scores.mean() - other[key].scores.mean() for key in common])
    if len(common) < 2:
        return _nothing(means)
    share = float(np.mean([test_share(mine[key]) for key in common]))
    return statistics.over_folds(means, share, math.inf if largest is None else largest)


def _row_of_run(tested: TestedRun, metric: str) -> dict[str, Any]:
    run, metrics = tested.run, tested.metrics
    folder = run.folder
    environment = folder.read_json(folder.environment)
    card = folder.read_json(folder.card)
    efficiency: Mapping[str, Any] = metrics["efficiency"]  # type: ignore[assignment]
    rate = float(efficiency["inference_images_per_second"])
    return {
        "variant": run.variant,
        "seed": run.seed,
        "fold": run.fold,
        "run": str(folder),
        "evaluated_on": metrics["name"],
        "images": len(tested.images),
        metric: float(tested.scores.mean()),
        **{name: metrics[name] for name in _MEASURES if name in metrics and name != metric},
        "seen_in_pretraining": metrics.get("seen_in_pretraining"),
        "parameters": efficiency["parameters"],
        "gmacs": efficiency["gmacs"],
        "milliseconds_per_image": 1000 / rate,
        "batch_size": efficiency["batch_size"],
        "device": efficiency["device"],
        "training_seconds": training_seconds(folder),
        "epochs": len(folder.read_metrics()),
        "best_epoch": card["epoch"],
        "vitrail": environment["vitrail"],
        "git_commit": f"{environment['git_commit']} with changes"
        if environment.get("git_changes")
        else environment["git_commit"],
        "finished": environment["finished"],
    }


def _row_of_variant(name: str, rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    # The seeds of one fold are one sample, the folds are not independent of each other: of folds the mean of each seed.
    values = rows.groupby("seed")[metric].mean().to_numpy()
    # All measures but the loss are shares.
    mean, low, high = statistics.mean_interval(values, least=0.0, most=1.0 if SCORES[metric] else math.inf)
    return {
        "variant": name,
        "runs": len(rows),
        "seeds": len(values),
        "metric": metric,
        "mean": mean,
        "low": low,
        "high": high,
        "standard_deviation": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        "parameters": int(rows["parameters"].iloc[0]),
        "gmacs": float(rows["gmacs"].iloc[0]),
        "milliseconds_per_image": float(rows["milliseconds_per_image"].median()),
        "training_seconds": float(rows["training_seconds"].median()),
    }


def _row_of_pair(
    first: Sequence[TestedRun], second: Sequence[TestedRun], suite: Suite, groups: Mapping[int | None, Any]
) -> dict[str, Any] | None:
    """One comparison, but for what needs all of them; None where no seed was trained for both."""
    mine = {(t.run.fold, t.run.seed): t for t in first}
    other = {(t.run.fold, t.run.seed): t for t in second}
    common = sorted(mine.keys() & other.keys(), key=str)
    if not common:
        return None
    seeds = sorted({seed for _, seed in common})
    folds = sorted({fold for fold, _ in common}, key=str)
    common = [(f, s) for f in folds for s in seeds if (f, s) in mine and (f, s) in other]
    means = np.array([mine[key].scores.mean() - other[key].scores.mean() for key in common])
    row: dict[str, Any] = {"a": first[0].run.variant, "b": second[0].run.variant, "metric": suite.metric,
                           "runs": len(common), "seeds": len(seeds)}  # fmt: skip
    found = _difference(mine, other, common, suite, groups)
    if suite.folds is None:
        differences = np.stack([mine[key].scores - other[key].scores for key in common])
        images = differences.shape[1]
        own = groups[None]
        units = differences if own is None else statistics.join_groups(differences, own)
        per_unit = units.mean(0)
        ways = statistics.bootstrap_runs_and_images(units) if len(common) > 1 else (math.nan, math.nan)
        as_they_are = statistics.bootstrap_images(units)
    else:
        complete = [s for s in seeds if all((f, s) in common for f in folds)]
        parts = [_mean_units(mine, other, f, complete or seeds, groups[f]) for f in folds]
        per_unit = np.concatenate(parts)
        images = sum(len(next(mine[f, s] for s in seeds if (f, s) in mine).images) for f in folds)
        ways = (math.nan, math.nan)
        as_they_are = statistics.bootstrap_images(per_unit[None])
    low, high = found.interval(1 - suite.alpha)
    complete = [s for s in seeds if all((f, s) in common for f in folds)] or seeds[:1]
    rights = [
        np.stack([np.concatenate([side[f, s].right for f in folds if (f, s) in common]) for s in complete])
        for side in (mine, other)
    ]
    exact = statistics.mcnemar(*rights)
    return row | {
        "images": images,
        "groups": None if all(groups[f] is None for f in folds) else len(per_unit),
        "difference": float(found.value),
        "low": float(low),
        "high": float(high),
        "p": float(found.p_value()),
        "p_holm": math.nan,
        "p_equal": math.nan if suite.margin is None else float(found.equivalence_p(suite.margin)),
        "p_equal_holm": math.nan,
        "cohens_dz": statistics.cohens_dz(means),
        "share_of_variance_from_runs": _share(found),
        "bootstrap_low": ways[0],
        "bootstrap_high": ways[1],
        "images_low": as_they_are[0],
        "images_high": as_they_are[1],
        "p_sign_flip_images": statistics.sign_flip(per_unit),
        "p_sign_flip_runs": statistics.sign_flip(means),
        "a_alone_right": exact.first,
        "b_alone_right": exact.second,
        "odds_ratio": exact.odds_ratio,
        "p_mcnemar": exact.p,
        "about": found.what,
        "_found": found,
    }


def _mean_units(
    mine: Mapping[Any, TestedRun], other: Mapping[Any, TestedRun], fold: int | None, seeds: Sequence[int], groups: Any
) -> Any:
    differences = np.mean(
        [mine[fold, s].scores - other[fold, s].scores for s in seeds if (fold, s) in mine and (fold, s) in other],
        axis=0,
    )
    return differences if groups is None else statistics.join_groups(differences, groups)


def _nothing(means: Any) -> statistics.PairedDifference:
    """A single fold says nothing of others."""
    unknown = np.array(math.nan)
    return statistics.PairedDifference(np.asarray(means.mean()), unknown, unknown, 1, 1, 1, "this fold alone")


def _share(found: statistics.PairedDifference) -> float:
    whole = float(found.runs + found.images)
    return float(found.runs) / whole if whole > 0 else math.nan


def _decide(rows: list[dict[str, Any]], suite: Suite) -> list[dict[str, Any]]:
    """Correct for the number of comparisons, state what is shown, and how many runs the rest would need."""
    if not rows:
        return rows
    corrected = statistics.holm([1.0 if math.isnan(row["p"]) else row["p"] for row in rows])
    # Of a pair either the difference or the equality can be claimed falsely, never both: each has its own correction.
    equal = statistics.holm([1.0 if math.isnan(row["p_equal"]) else row["p_equal"] for row in rows])
    for row, p, p_equal in zip(rows, corrected, equal, strict=True):
        found: statistics.PairedDifference = row.pop("_found")
        row["p_holm"] = float(p)
        several = found.num_runs > 1
        needed = statistics.runs_needed(found, suite.alpha / len(rows)) if several else None
        row["runs_needed"] = needed
        shown = several and p < suite.alpha and row["difference"] != 0
        row["equal"] = False
        if suite.margin is not None:
            row["p_equal_holm"] = float(p_equal)
            row["equal"] = bool(several and p_equal < suite.alpha)
        better = (row["difference"] > 0) == SCORES[suite.metric]
        winner, loser = (row["a"], row["b"]) if better else (row["b"], row["a"])
        row["statement"] = (
            f"{winner} beats {loser}" if shown else f"{row['a']} equals {row['b']}" if row["equal"] else NOT_SHOWN
        )
        row["why"] = _why(row, shown or row["equal"], several)
    return rows


def _why(row: Mapping[str, Any], shown: bool, several: bool) -> str:
    if shown:
        return ""
    if not several:
        return "one run of each cannot tell the variants from their seeds"
    if row["difference"] == 0:
        return "no difference was found"
    if math.isnan(row["low"]):
        return "all folds differ alike, which leaves no spread to judge by; it needs more test images"
    if row["runs_needed"] is None:
        more = "test images" if row["groups"] is None else "groups of test images"
        return f"more runs alone would not show a difference of this size: it needs more {more}"
    return f"about {row['runs_needed']} runs of each would show a difference of this size (4 times in 5)"
