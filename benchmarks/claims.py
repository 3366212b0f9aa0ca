"""Rates of false claims, power, and coverage of intervals, by simulation.

What a comparison of two variants claims from 2 to 5 seeds and 5 to 100 test images; how often the intervals of ROC-AUC
and average precision hold the true value where a class has 1 to 20 images. "Before" is the test without pseudo-images
and the bootstrap of images, as vitrail had them.

    python benchmarks/claims.py [--repeats 2000] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from scipy.special import expit
from sklearn.metrics import average_precision_score

from vitrail.bootstrap import Bootstrap
from vitrail.evaluate import statistics
from vitrail.evaluate.bootstrap_measures import Ranker
from vitrail.evaluate.rank_intervals import area_interval, average_precision_interval, rank_class
from vitrail.files import write_text

Array = npt.NDArray[Any]
SEEDS, IMAGES = (2, 3, 4, 5), (5, 10, 20, 50, 100)
ACCURACIES, SEED_SDS = (0.5, 0.7, 0.9, 0.99), (0.0, 0.02, 0.05)
# Standard deviations, on the logit scale, of an image's difficulty for both models and for one of them.
KINDS = ((0, 0), (2, 0), (1, 1.5), (2, 4))
GAPS = ((0.6, 0.27), (0.8, 0.13))


def draw(
    rng: np.random.Generator, repeats: int, seeds: int, images: int, accuracy: float, sd: float, kind: Any, gap: float
) -> Array:
    """Correct or not, of one model minus the other, shape ``(repeats, seeds, images)``.

    Args:
        rng: Random numbers.
        repeats: Experiments.
        seeds: Of each model.
        images: Test images.
        accuracy: Of the weaker model.
        sd: Standard deviation of the accuracy between seeds.
        kind: One of :data:`KINDS`.
        gap: By how much the first is more accurate.
    """
    spread = np.random.default_rng(0).normal(size=20_000) * math.hypot(*kind)
    first, second = (_centre(spread, value) for value in (min(accuracy + gap, 0.999), accuracy))
    slope = (expit(second + spread) * (1 - expit(second + spread))).mean()
    logit = np.array([first, second]).reshape(1, 2, 1, 1) + kind[0] * rng.normal(size=(repeats, 1, 1, images))
    logit = logit + kind[1] * rng.normal(size=(repeats, 2, 1, images))
    logit = logit + sd / slope * rng.normal(size=(repeats, 2, seeds, 1))
    correct = (rng.random((repeats, 2, seeds, images)) < expit(logit)).astype(np.float64)
    difference: Array = correct[:, 0] - correct[:, 1]
    return difference


def _centre(spread: Array, accuracy: float) -> float:
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(middle + spread).mean() < accuracy else (low, middle)
    return low


def claims(differences: Array) -> tuple[float, float]:
    """Share of experiments in which one model is said to beat the other: before, and now."""
    now = statistics.runs_and_images(differences, largest=1.0)
    # A limit beyond all scores takes the pseudo-images away, and nothing else.
    plain = statistics.runs_and_images(differences + 1e-9 * np.arange(differences.shape[-1]))
    before = np.abs(plain.value) > plain.limit(0.05) * plain.error
    low, high = now.interval()
    return float((before & (np.abs(differences.mean((-2, -1))) > 1e-12)).mean()), float(((low > 0) | (high < 0)).mean())


def false_claims(rng: np.random.Generator, repeats: int) -> Iterator[dict[str, Any]]:
    """Tabulate the highest and mean rate over all other settings, for each number of seeds and images."""
    for seeds, images in itertools.product(SEEDS, IMAGES):
        rates = np.array(
            [
                claims(draw(rng, repeats, seeds, images, accuracy, sd, kind, 0.0))
                for accuracy, sd, kind in itertools.product(ACCURACIES, SEED_SDS, KINDS)
            ]
        )
        (before, now), (mean_before, mean_now) = rates.max(0), rates.mean(0)
        yield {"seeds": seeds, "images": images, "most, before": before, "most": now, "mean, before": mean_before,
               "mean": mean_now}  # fmt: skip


def power(rng: np.random.Generator, repeats: int) -> Iterator[dict[str, Any]]:
    """How often a true difference is shown, mean over the kinds of images."""
    for (accuracy, gap), seeds, images in itertools.product(GAPS, SEEDS, IMAGES[1:]):
        rates = [claims(draw(rng, repeats, seeds, images, accuracy, 0.01, kind, gap)) for kind in KINDS]
        before, now = np.mean(rates, axis=0)
        yield {"accuracy": accuracy, "difference": gap, "seeds": seeds, "images": images, "before": before, "now": now}


def over_folds(rng: np.random.Generator, repeats: int) -> Iterator[dict[str, Any]]:
    """Measure false claims of cross-validations with few folds."""
    for folds, total in itertools.product((2, 3, 4, 5), (10, 20, 50, 100)):
        rates = []
        for accuracy, sd, kind in itertools.product(ACCURACIES, SEED_SDS, KINDS):
            d = draw(rng, repeats * folds, 1, total // folds, accuracy, sd, kind, 0.0)
            means = d.mean((1, 2)).reshape(repeats, folds)
            low, high = statistics.over_folds(means, 1 / (folds - 1), 1.0).interval()
            error = np.sqrt(means.var(-1, ddof=1) * (1 / folds + 1 / (folds - 1)))
            before = np.abs(means.mean(-1)) > stats.t.isf(0.025, folds - 1) * error
            rates.append((before.mean(), ((low > 0) | (high < 0)).mean()))
        before, now = np.max(rates, axis=0)
        yield {"folds": folds, "images": total, "most, before": before, "most": now}


def _scores(rng: np.random.Generator, kind: str, m: int, n: int, area: float) -> Array:
    if kind == "mixture":
        found = rng.random(m) < 2 * area - 1
        return np.concatenate([np.where(found, 10, 0) + rng.random(m), rng.random(n)])
    spread = {"equal": 1.0, "wide": 2.0, "narrow": 0.5}[kind]
    mean = stats.norm.ppf(area) * math.hypot(1, spread)
    return np.concatenate([mean + spread * rng.normal(size=m), rng.normal(size=n)])


def coverage(rng: np.random.Generator, repeats: int) -> Iterator[dict[str, Any]]:
    """Coverage of 95 % intervals of a class of m among 100 images: least, and mean, over kinds of scores and areas."""
    for m in (1, 2, 3, 5, 10, 20):
        positive = np.arange(100) < m
        weights = np.concatenate(list(Bootstrap(100, None, 300, 0).weights()), axis=1)
        boot = Bootstrap(100, None, 300, 0)
        rows = []
        for kind, area in itertools.product(("equal", "wide", "narrow", "mixture"), (0.6, 0.8, 0.95)):
            many = np.arange(100 * 300) < m * 300
            truth = average_precision_score(many, _scores(rng, kind, 300 * m, 300 * (100 - m), area))
            held = []
            for _ in range(repeats):
                scores = _scores(rng, kind, m, 100 - m, area)
                ranks = rank_class(positive, scores)
                now = area_interval(ranks.area, m, 100 - m, ranks.variance)
                ap = average_precision_interval(float(average_precision_score(positive, scores)), m)
                old = [boot.interval(values) for values in Ranker(positive, scores)(weights)]
                held.append(
                    [_inside(old[0], area), _inside(now, area), _inside(old[1], truth), _inside(ap, truth),
                     now[1] - now[0], math.nan if ap is None else ap[1] - ap[0]]
                )  # fmt: skip
            rows.append(np.nanmean(np.array(held, dtype=float), axis=0) if m > 1 else _mean_of_one(held))
        least, mean = np.nanmin(rows, axis=0), np.nanmean(rows, axis=0)
        yield {
            "images": m, "AUC least, before": least[0], "AUC least": least[1], "AUC mean": mean[1],
            "AUC width": mean[4],
            "AP least, before": least[2], "AP least": least[3], "AP mean": mean[3], "AP width": mean[5],
        }  # fmt: skip


def _mean_of_one(held: list[list[float]]) -> Array:
    """Average over classes but those of one image, which have no interval of average precision."""
    means: Array = np.array(held, dtype=float)
    return np.array([np.nanmean(column) if np.isfinite(column).any() else np.nan for column in means.T])


def _inside(pair: tuple[float, float] | None, truth: float) -> float:
    return math.nan if pair is None else float(pair[0] <= truth <= pair[1])


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as a table of Markdown, rates in per cent."""
    table = pd.DataFrame(rows)
    cells = [[_cell(name, value) for name, value in row.items()] for row in table.to_dict("records")]
    lines = [[str(name) for name in table], ["---"] * table.shape[1], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(name: Any, value: Any) -> str:
    if name in ("seeds", "images", "folds"):
        return f"{value:.0f}"
    if name in ("accuracy", "difference") or "width" in str(name):
        return "none" if math.isnan(value) else f"{value:.2f}"
    return "none" if math.isnan(value) else f"{100 * value:.1f} %"


PARTS = {
    "False claims, seeds": (
        false_claims,
        "Two recipes of equal accuracy; how often one is said to beat the other (level 5 %). The highest and the mean "
        "rate over accuracies of 0.5, 0.7, 0.9 and 0.99, standard deviations between seeds of 0, 0.02 and 0.05, and "
        "four correlations of the models on the images.",
    ),
    "Power, seeds": (power, "How often a true difference is shown; mean over the four correlations."),
    "False claims, folds": (over_folds, "The same for cross-validation with one seed; images of all folds together."),
    "Coverage of 95 % intervals, classes of few among 100 images": (
        coverage,
        "Least and mean over four kinds of scores and areas of 0.6, 0.8 and 0.95. Before: the expanded percentile "
        "bootstrap, where it gives an interval. The true average precision is that of 300 times as many images.",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000, help="experiments a setting; a fifth of it for coverages")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    parts = [
        "# What claims rest on: simulated rates\n",
        f"Recorded by `python benchmarks/claims.py --repeats {arguments.repeats}`. A rate of 5 % has a standard error "
        f"of {100 * math.sqrt(0.05 * 0.95 / arguments.repeats):.1f} points; the highest of 48 rates is above its own "
        "expectation.\n",
    ]
    for title, (simulate, about) in PARTS.items():
        repeats = arguments.repeats if simulate is not coverage else max(50, arguments.repeats // 5)
        parts += [f"## {title}\n", f"{about}\n", markdown(list(simulate(np.random.default_rng(1), repeats))) + "\n"]
        print(parts[-3], parts[-1], sep="\n", flush=True)
    write_text(arguments.out / "claims.md", "\n".join(parts))


if __name__ == "__main__":
    main()
