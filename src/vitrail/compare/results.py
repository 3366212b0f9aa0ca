"""Tables of a suite: runs, variants and comparisons, computed from recorded runs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitrail.bootstrap import NOT_SHOWN
from vitrail.compare.pairing import TestedRun, check_same_images, image_groups, read_tested, test_share
from vitrail.compare.plan import Run, training_seconds
from vitrail.compare.suite import Suite
from vitrail.errors import plural
from vitrail.evaluate import statistics
from vitrail.evaluate.image_scores import ALL_SCORES

# Measures of an evaluation that results.csv includes if available.
_MEASURES = ("accuracy", "balanced_accuracy", "f1_macro", "map", "nll", "top_5_accuracy", "miou", "miou_clouds")


@dataclass(frozen=True)
class Tables:
    """Tables of a suite.

    Attributes:
        results: One row per run.
        summary: One row per variant.
        pairs: One row per comparison.
        images: Number of test images, over all folds.
        groups: Number of groups of test images; None without groups.
        guess: Measure of the constant predictor (most frequent class; for the log-loss, class frequencies); None before
            the first finished run.
        near_guess: Whether no variant is significantly better than the constant predictor.
        split: Split whose images were measured; "val" where any run has no other.
    """

    results: pd.DataFrame
    summary: pd.DataFrame
    pairs: pd.DataFrame
    images: int
    groups: int | None
    guess: float | None = None
    near_guess: bool = False
    split: str = "test"


# Fold and seed of a run.
_Key = tuple[int | None, int]
# Group of each test image by fold; None without groups.
_Groups = Mapping[int | None, npt.NDArray[np.object_] | None]


def tabulate(suite: Suite, runs: Sequence[Run]) -> Tables:
    """Compute the tables of the finished runs.

    Args:
        suite: The suite.
        runs: Plan of the suite.

    Raises:
        DataError: Runs were tested on different images.
        RunError: A run folder is damaged.
    """
    done = [run for run in runs if not run.is_pretraining and run.state() == "done"]
    tested = [read_tested(run, suite.metric) for run in done]
    by_fold: dict[int | None, TestedRun] = {}
    for t in tested:
        check_same_images(by_fold.setdefault(t.run.fold, t), t)
    groups = {fold: image_groups(t) for fold, t in by_fold.items()}

    by_variant = {v.name: [t for t in tested if t.run.variant == v.name] for v in suite.variants}
    by_variant = {name: found for name, found in by_variant.items() if found}
    results = pd.DataFrame([_row_of_run(t, suite.metric) for t in tested])
    summary = pd.DataFrame(
        [
            _row_of_variant(variant.name, results[results["variant"] == variant.name], suite.metric)
            | _against_guess(by_variant[variant.name], suite, groups)
            | ({"subject": variant.subject, "test": variant.test} if variant.test else {})
            for variant in suite.variants
            if variant.name in by_variant
        ]
    )
    compared = [_row_of_pair(by_variant[a], by_variant[b], suite, groups) for a, b in comparisons(suite, by_variant)]
    pairs = pd.DataFrame(_add_conclusions([row for row in compared if row is not None], suite))

    num_groups = sum(len(set(g)) for g in groups.values() if g is not None)
    return Tables(
        results=results,
        summary=summary,
        pairs=pairs,
        images=sum(len(t.images) for t in by_fold.values()),
        groups=num_groups or None,
        guess=float(np.mean([t.guess.mean() for t in by_fold.values()])) if by_fold else None,
        near_guess=bool(tested) and not summary["better_than_guess"].any(),
        split="val" if any(t.metrics["split"] == "val" for t in tested) else "test",
    )


def comparisons(suite: Suite, names: Collection[str]) -> list[tuple[str, str]]:
    """List the pairs of variants to compare.

    Within each test all pairs, or each variant with ``suite.against``; between tests each variant with itself.

    Args:
        suite: The suite.
        names: Variants with results.
    """
    pairs = []
    for a, b in itertools.combinations([variant for variant in suite.variants if variant.name in names], 2):
        if a.subject == b.subject or (a.test == b.test and suite.against in (None, a.subject, b.subject)):
            swapped = a.subject == suite.against != b.subject
            pairs.append((b.name, a.name) if swapped else (a.name, b.name))
    return pairs


@dataclass(frozen=True)
class _PairedRuns:
    """Runs of two variants, paired by fold and seed.

    Attributes:
        first: Runs of the first variant.
        second: Runs of the second variant.
        groups: Groups of the test images.
        keys: Folds and seeds that both have, in order.
    """

    first: Mapping[_Key, TestedRun]
    second: Mapping[_Key, TestedRun]
    groups: _Groups
    keys: list[_Key]

    @classmethod
    def of(cls, first: Sequence[TestedRun], second: Sequence[TestedRun], groups: _Groups) -> _PairedRuns:
        """Pair runs."""
        mine, other = ({(t.run.fold, t.run.seed): t for t in runs} for runs in (first, second))
        keys = sorted(mine.keys() & other.keys(), key=lambda key: (str(key[0]), key[1]))
        return cls(mine, other, groups, keys)

    @property
    def folds(self) -> list[int | None]:
        """Folds with common runs, in order."""
        return list(dict.fromkeys(fold for fold, _ in self.keys))

    @property
    def seeds(self) -> list[int]:
        """Seeds with common runs, in order."""
        return sorted({seed for _, seed in self.keys})

    @property
    def complete_seeds(self) -> list[int]:
        """Seeds with common runs in all folds."""
        return [seed for seed in self.seeds if all((fold, seed) in self.keys for fold in self.folds)]

    @property
    def num_images(self) -> int:
        """Number of test images of all folds."""
        return sum({fold: len(self.first[fold, seed].images) for fold, seed in self.keys}.values())

    def mean_differences(self) -> npt.NDArray[np.float64]:
        """Compute the difference of the measure for each pair of runs."""
        return np.array([self.first[key].scores.mean() - self.second[key].scores.mean() for key in self.keys])

    def differences(self, fold: int | None, seeds: Sequence[int]) -> npt.NDArray[np.float64]:
        """Compute differences by seed and image (or group) of a fold, shape ``(S, N)``."""
        keys = [(fold, seed) for seed in seeds if (fold, seed) in self.keys]
        scores = np.stack([self.first[key].scores - self.second[key].scores for key in keys])
        groups = self.groups[fold]
        return scores if groups is None else statistics.join_groups(scores, groups)

    def mean_by_unit(self) -> npt.NDArray[np.float64]:
        """Compute the mean difference over seeds of each image (or group) of all folds."""
        seeds = self.complete_seeds or self.seeds
        return np.concatenate([self.differences(fold, seeds).mean(0) for fold in self.folds])

    def difference(self, suite: Suite) -> statistics.PairedDifference:
        """Estimate the difference of the two recipes with its variance components."""
        largest = 1.0 if ALL_SCORES[suite.metric] else None  # the log-loss is unbounded
        if suite.folds is None:
            return statistics.runs_and_images(self.differences(None, self.seeds), largest)
        means = self.mean_differences()
        if len(means) < 2:  # a single fold allows no inference
            unknown = np.array(math.nan)
            return statistics.PairedDifference(np.asarray(means.mean()), unknown, unknown, 1, 1, 1, "this fold alone")
        share = float(np.mean([test_share(self.first[key]) for key in self.keys]))
        return statistics.over_folds(means, share, math.inf if largest is None else largest)

    def mcnemar(self) -> statistics.McNemar | None:
        """Compare the correct images of the trained models, over all folds; None where points are labelled."""
        if any(tested.correct is None for side in (self.first, self.second) for tested in side.values()):
            return None  # points of a cloud are not independent
        seeds = self.complete_seeds or self.seeds[:1]
        folds = [fold for fold in self.folds if (fold, seeds[0]) in self.keys]
        first, second = (
            np.stack([np.concatenate([side[fold, seed].correct for fold in folds]) for seed in seeds])
            for side in (self.first, self.second)
        )
        return statistics.mcnemar(first, second)


def _against_guess(found: Sequence[TestedRun], suite: Suite, groups: _Groups) -> dict[str, Any]:
    """Compare a variant's runs with the constant predictor on the same images."""
    guesses = [dataclasses.replace(t, scores=t.guess) for t in found]
    difference = _PairedRuns.of(found, guesses, groups).difference(suite)
    p = float(difference.p_value())
    better = (float(difference.value) > 0) == ALL_SCORES[suite.metric] and difference.value != 0
    return {
        "guess": float(np.mean([t.guess.mean() for t in found])),
        "p_guess": p,
        "better_than_guess": bool(p < suite.alpha and better),
    }


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
    # Folds are not independent: the interval is over seeds, each with its mean over folds.
    values = rows.groupby("seed")[metric].mean().to_numpy()
    # All measures but the log-loss are in 0..1.
    mean, low, high = statistics.mean_interval(values, least=0.0, most=1.0 if ALL_SCORES[metric] else math.inf)
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
    first: Sequence[TestedRun], second: Sequence[TestedRun], suite: Suite, groups: _Groups
) -> dict[str, Any] | None:
    """Compute one comparison without the corrections for multiple comparisons; None without common runs."""
    pair = _PairedRuns.of(first, second, groups)
    if not pair.keys:
        return None
    found = pair.difference(suite)
    low, high = found.interval(1 - suite.alpha)
    means, by_unit = pair.mean_differences(), pair.mean_by_unit()
    of_both = (math.nan, math.nan)
    if suite.folds is None and len(pair.keys) > 1:
        of_both = statistics.bootstrap_runs_and_images(pair.differences(None, pair.seeds))
    of_images = statistics.bootstrap_images(by_unit[None])
    exact = pair.mcnemar()
    variance = float(found.runs + found.images)
    return {
        "a": first[0].run.variant,
        "b": second[0].run.variant,
        "metric": suite.metric,
        "runs": len(pair.keys),
        "seeds": len(pair.seeds),
        "images": pair.num_images,
        "groups": None if all(groups[fold] is None for fold in pair.folds) else len(by_unit),
        "difference": float(found.value),
        "low": float(low),
        "high": float(high),
        "p": float(found.p_value()),
        "p_holm": math.nan,
        "p_equal": math.nan if suite.margin is None else float(found.equivalence_p(suite.margin)),
        "p_equal_holm": math.nan,
        "cohens_dz": statistics.cohens_dz(means),
        "share_of_variance_from_runs": float(found.runs) / variance if variance > 0 else math.nan,
        "bootstrap_low": of_both[0],
        "bootstrap_high": of_both[1],
        "images_low": of_images[0],
        "images_high": of_images[1],
        "p_sign_flip_images": statistics.sign_flip(by_unit),
        "p_sign_flip_runs": statistics.sign_flip(means),
        "a_alone_right": None if exact is None else exact.first,
        "b_alone_right": None if exact is None else exact.second,
        "odds_ratio": math.nan if exact is None else exact.odds_ratio,
        "p_mcnemar": math.nan if exact is None else exact.p,
        "about": found.what,
        "_found": found,
    }


def _add_conclusions(rows: list[dict[str, Any]], suite: Suite) -> list[dict[str, Any]]:
    """Add corrected p-values, conclusions, and the number of runs that inconclusive comparisons need."""
    if not rows:
        return rows
    corrected = statistics.holm([1.0 if math.isnan(row["p"]) else row["p"] for row in rows])
    # Difference and equality exclude each other, so that each family has its own correction.
    equal = statistics.holm([1.0 if math.isnan(row["p_equal"]) else row["p_equal"] for row in rows])
    for row, p, p_equal in zip(rows, corrected, equal, strict=True):
        found: statistics.PairedDifference = row.pop("_found")
        row["p_holm"] = float(p)
        several = found.num_runs > 1
        row["runs_needed"] = statistics.runs_needed(found, suite.alpha / len(rows)) if several else None
        shown = several and p < suite.alpha and row["difference"] != 0
        row["equal"] = False
        if suite.margin is not None:
            row["p_equal_holm"] = float(p_equal)
            row["equal"] = bool(several and p_equal < suite.alpha)
        better = (row["difference"] > 0) == ALL_SCORES[suite.metric]
        winner, loser = (row["a"], row["b"]) if better else (row["b"], row["a"])
        row["statement"] = (
            f"{winner} beats {loser}" if shown else f"{row['a']} equals {row['b']}" if row["equal"] else NOT_SHOWN
        )
        row["why"] = _reason(row, shown or row["equal"], several)
    return rows


def _reason(row: Mapping[str, Any], shown: bool, several: bool) -> str:
    """Explain an inconclusive comparison."""
    if shown:
        return ""
    if not several:
        return "one run of each cannot separate the variants from their seeds"
    if row["difference"] == 0:
        return "no difference was found"
    if math.isnan(row["low"]):
        return "all folds differ equally, which leaves no variance to infer from; it needs more test images"
    if row["runs_needed"] is None:
        more = "test images" if row["groups"] is None else "groups of test images"
        return f"more runs alone would not show a difference of this size: it needs more {more}"
    return f"about {plural(row['runs_needed'], 'run')} of each would show a difference of this size (4 times in 5)"
