"""Findings of a suite in sentences and as Markdown; a variant beats another only by a significant test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vitrail.bootstrap import NOT_SHOWN
from vitrail.compare.results import Tables
from vitrail.compare.suite import PRETRAINED, Suite
from vitrail.errors import plural
from vitrail.evaluate.image_scores import ALL_SCORES
from vitrail.runs.suite_columns import PAIRS, RUNS, SUMMARY, captions, suite_table, table_of_tests

_NAMES = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "f1_macro": "macro F1", "nll": "log-loss",
    "miou": "mIoU", "miou_clouds": "mean mIoU of a point cloud",
}  # fmt: skip


def metric_name(metric: str) -> str:
    """Return the display name of a metric."""
    return _NAMES.get(metric, metric)


def sentences(suite: Suite, tables: Tables) -> list[str]:
    """Describe the result: comparison with the constant predictor, comparisons, times, variants.

    Args:
        suite: The suite.
        tables: Tables of the suite.
    """
    pairs: list[Any] = tables.pairs.to_dict("records")
    times = [line for row in pairs if (line := _time(row))]
    variants: list[Any] = tables.summary.to_dict("records")
    return [
        *_on_validation(tables),
        *_near_guess(suite, tables),
        *_seen(tables),
        *(_pair(row, suite) for row in pairs),
        *times,
        *(_variant(row, suite) for row in variants),
    ]


def _kind(tables: Tables) -> str:
    """Name the measured images by their split."""
    return "validation images" if tables.split == "val" else "test images"


def _on_validation(tables: Tables) -> list[str]:
    """Warn, in one sentence, where the measured images also chose the best epoch."""
    if tables.split != "val":
        return []
    return [
        "The data has no test split: the runs are measured on validation images, which also chose the best epoch of "
        "each. On new images they may do worse and differ otherwise; set data.splitting.test_fraction, or give a "
        "test split."
    ]


def _near_guess(suite: Suite, tables: Tables) -> list[str]:
    """Write a sentence if no variant is significantly better than the constant predictor."""
    if not tables.near_guess or tables.guess is None:
        return []
    kind = "part" if suite.of_parts else "class"
    guess = f"always the most frequent {kind}" if ALL_SCORES[suite.metric] else "the frequencies of the classes"
    return [
        f"No variant is shown to be better than guessing ({guess}: {metric_name(suite.metric)} "
        f"{amount(tables.guess, suite.metric)}): a comparison of these runs says little about their recipes. Check the "
        "labels and the learning rate, and train for longer."
    ]


def _seen(tables: Tables) -> list[str]:
    """Write a sentence for each variant whose weights were pre-trained on test images."""
    if "seen_in_pretraining" not in tables.results:
        return []
    lines = []
    for name, rows in tables.results.groupby("variant", sort=False):
        most = pd.to_numeric(rows["seen_in_pretraining"]).max()
        if most > 0:
            lines.append(
                f"The weights that {name} begins with were pre-trained on {most:.0f} of its {rows['images'].iloc[0]} "
                f"{_kind(tables)}: its result is optimistic for unseen images."
            )
    return lines


def method(suite: Suite, tables: Tables) -> str:
    """Describe the statistical method."""
    level = f"{1 - suite.alpha:.0%}"
    chosen = ", which also chose the best epoch" if tables.split == "val" else ""
    on = f"the same {tables.images} {_kind(tables)}{chosen}" + (
        "" if tables.groups is None else f", in {plural(tables.groups, 'group')}, the units of the analysis"
    )
    if suite.folds is None:
        how = (
            f"Each comparison pairs runs of one seed on {on}. Its {level} interval and its p-value generalise to other "
            f"seeds and other {_kind(tables)}, both random effects (multi-reader multi-case analysis, Dorfman, "
            "Berbaum & Metz 1992)."
        )
    else:
        how = (
            f"Each comparison pairs runs of one fold and seed on {on}. Its {level} interval and its p-value allow for "
            "the training images that folds share (corrected resampled t-test, Nadeau & Bengio 2003)."
        )
    equal = (
        ""
        if suite.margin is None
        else f" Two variants are said to be equal where two one-sided tests (Schuirmann 1987) show that they differ by "
        f"less than the margin, {difference(suite.margin, suite.metric)}; these p-values are corrected alike."
    )
    tests = "Sign-flip tests over images" + ("" if suite.of_parts else " and McNemar's test")
    return (
        f"{how}{equal} P-values are corrected for the number of comparisons, {len(tables.pairs)} (Holm 1979); one "
        f"variant is said to beat another only where the corrected one is below {suite.alpha:g}, the rest is not "
        f"shown. {tests} are about these trained models alone and decide nothing."
    )


def about_pretraining(suite: Suite) -> list[str]:
    """Describe the pre-trainings of the seeds, and the meaning of intervals."""
    used = {
        str(variant.recipe.model.weights).removeprefix(PRETRAINED)
        for variant in suite.variants
        if str(variant.recipe.model.weights).startswith(PRETRAINED)
    }
    lines = []
    if own := sorted(used - suite.shared):
        lines.append(f"Each seed has its own pre-training ({', '.join(own)}): intervals cover the seeds of both.")
    if once := sorted(used & suite.shared):
        lines.append(
            f"All seeds share one pre-training ({', '.join(once)}): intervals cover other seeds of fine-tuning "
            "from these weights, not other pre-trainings."
        )
    return lines


def markdown(suite: Suite, tables: Tables, failures: Sequence[Mapping[str, str]]) -> str:
    """Write the result as a Markdown page."""
    parts = [f"# {suite.title}", *([suite.about.strip()] if suite.about else []), "## Result",
             "\n".join(f"- {sentence}" for sentence in sentences(suite, tables)) or "No run is done yet.",
             method(suite, tables) if len(tables.pairs) else "", *about_pretraining(suite)]  # fmt: skip
    if failures:
        parts += ["## Failed", "\n".join(f"- {f['run']}: {f['error']} ({f['log']})" for f in failures)]
    unit = unit_of(suite.metric)
    texts = captions(unit, suite.alpha)
    shown = (
        ("Variants", tables.summary, SUMMARY, texts[0]),
        ("Comparisons", tables.pairs, PAIRS, texts[1]),
        ("Runs", tables.results, RUNS, texts[2]),
    )
    if (tests := table_of_tests(tables.summary, unit)) is not None:
        parts += ["## Tests", tests.markdown(), tests.caption]
    for title, table, columns, caption in shown:
        if len(table):
            shown_table = suite_table(title, table, columns, metric_name(suite.metric), unit, caption)
            parts += [f"## {title}", shown_table.markdown(), caption]
    return "\n\n".join(part for part in parts if part) + "\n"


def unit_of(metric: str) -> int:
    """Return 100 for measures in per cent, 1 for others."""
    return 1 if metric == "nll" else 100


def _variant(row: Mapping[str, Any], suite: Suite) -> str:
    shown = amount(row["mean"], suite.metric)
    interval = ""
    if not math.isnan(row["low"]):
        low, high = amount(row["low"], suite.metric), amount(row["high"], suite.metric)
        interval = f" (95 % interval over seeds {low} to {high})"
    elif row["seeds"] > 1:
        interval = " (all seeds alike: no interval)"
    runs = plural(row["runs"], "run")
    return f"{row['variant']}: {metric_name(suite.metric)} {shown}{interval}, {runs}, {row['parameters']:,} parameters."


def _pair(row: Mapping[str, Any], suite: Suite) -> str:
    size = abs(row["difference"])
    found = f"{difference(size, suite.metric)} {metric_name(suite.metric)}"
    flipped = row["difference"] < 0
    ends = (-row["high"], -row["low"]) if flipped else (row["low"], row["high"])
    interval = (
        "no interval"
        if math.isnan(ends[0])
        else f"interval {difference(ends[0], suite.metric)} to {difference(ends[1], suite.metric)}"
    )
    between = f"{interval}, corrected p {p_text(row['p_holm'])}"
    more, less = (row["b"], row["a"]) if flipped else (row["a"], row["b"])
    equal = ""
    if suite.margin is not None and row["equal"]:
        equal = f"within {difference(suite.margin, suite.metric)} (two one-sided tests, corrected p " \
                f"{p_text(row['p_equal_holm'])})"  # fmt: skip
    if row["statement"] not in (NOT_SHOWN, f"{row['a']} equals {row['b']}"):
        by = f"; the two are equal {equal}" if equal else ""
        return f"{row['statement']}: {more} has {found} more than {less} ({between}){by}."
    if equal:
        return f"{row['statement']} {equal}: {more} has {found} more than {less} ({between})."
    if size == 0:
        return f"Not shown: {row['a']} and {row['b']} have no measured difference."
    return f"Not shown: {more} has {found} more than {less} ({between}); {row['why']}."


def _time(row: Mapping[str, Any]) -> str:
    """Describe a ratio of times; empty without timing."""
    if "time_ratio" not in row:
        return ""
    return (
        f"{row['a']} takes {row['time_ratio']:.3g} times as long as {row['b']} for a forward pass (95 % interval "
        f"{row['time_low']:.3g} to {row['time_high']:.3g}, timed in alternation on this machine)."
    )


def amount(value: float, metric: str) -> str:
    """Format a measure."""
    return f"{value:.4f}" if metric == "nll" else f"{100 * value:.2f} %"


def difference(value: float, metric: str) -> str:
    """Format a difference, in percentage points for measures in per cent."""
    return f"{value:.4f}" if metric == "nll" else f"{100 * value:.2f} points"


def p_text(p: float) -> str:
    """Format a p-value."""
    return "below 0.0001" if p < 0.0001 else f"{p:.2g}"
