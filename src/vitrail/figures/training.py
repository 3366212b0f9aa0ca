"""Loss and accuracy by epoch, of runs and of variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy import stats

from vitrail.figures.labels import legend_below
from vitrail.figures.style import PALETTE, plain, variant_style

# Runs of a variant from which on its mean has a band.
FEWEST_FOR_BAND = 5


def convergence(curves: Mapping[str, pd.DataFrame], metric: str = "accuracy", name: str = "accuracy") -> Figure:
    """Draw loss and a measure by epoch: training dashed (where it is measured), validation solid, a colour a run.

    Args:
        curves: Run -> metrics.csv.
        metric: The measure, a column of it after "val_" and "train_".
        name: Name of the measure for the axis.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for number, table in enumerate(curves.values()):
        color = PALETTE[number % len(PALETTE)]
        for axis, value in zip(axes, ("loss", metric), strict=True):
            for split, style in (("train", "--"), ("val", "-")):
                if (column := f"{split}_{value}") not in table:
                    continue
                values = table[column]
                axis.plot(table["epoch"] + 1, values, style, color=color, linewidth=1.6, marker=".", markersize=4)
    for axis, value in zip(axes, ("cross-entropy", name), strict=True):
        axis.set(xlabel="epoch", ylabel=value)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axis)
    keys = [Line2D([], [], color=PALETTE[i % len(PALETTE)], label=name) for i, name in enumerate(curves)]
    keys.append(Line2D([], [], color="gray", linestyle="--", label="training"))
    keys.append(Line2D([], [], color="gray", linestyle="-", label="validation"))
    legend_below(figure, keys)
    return figure


def convergence_bands(curves: Mapping[str, Sequence[pd.DataFrame]], metric: str, name: str) -> Figure:
    """Draw validation loss and a measure by epoch: the mean over a variant's runs, and its spread.

    From five runs on the spread is a 95 % band of the mean; of fewer runs each is a thin line, since a band of two to
    four values is wider than what it describes.

    Args:
        curves: Variant -> metrics.csv of each of its runs.
        metric: Column of the measure.
        name: Name of the measure for the axis.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    banded = any(len(tables) >= FEWEST_FOR_BAND for tables in curves.values())
    single = any(1 < len(tables) < FEWEST_FOR_BAND for tables in curves.values())
    for number, tables in enumerate(curves.values()):
        color, dashes = variant_style(number)
        for axis, column in zip(axes, ("val_loss", metric), strict=True):
            joined = pd.concat([t.set_index("epoch")[column] for t in tables if column in t], axis=1)
            mean, count = joined.mean(axis=1), joined.count(axis=1)
            epochs = joined.index.to_numpy() + 1
            axis.plot(epochs, mean, color=color, linestyle=dashes, linewidth=1.6, marker="." if len(mean) < 3 else "")
            if 1 < joined.shape[1] < FEWEST_FOR_BAND:
                axis.plot(epochs, joined.to_numpy(), color=color, linewidth=0.6, alpha=0.6)
            elif joined.shape[1] > 1:
                half = stats.t.ppf(0.975, np.maximum(count - 1, 1)) * joined.std(axis=1, ddof=1) / np.sqrt(count)
                # The mean cannot be where the values cannot: a share lies in 0..1, a loss from 0 on.
                most = np.inf if column == "val_loss" else 1.0
                low, high = (mean - half).clip(0, most), (mean + half).clip(0, most)
                axis.fill_between(epochs, low, high, color=color, alpha=0.18, linewidth=0)
    for axis, label in zip(axes, ("validation loss", f"validation {name}"), strict=True):
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axis)
    # Measures lie in 0..1.
    low, high = axes[1].get_ylim()
    axes[1].set_ylim(max(low, -0.02), min(high, 1.02))
    keys: list[Line2D | Patch] = [
        Line2D([], [], color=variant_style(i)[0], linestyle=variant_style(i)[1], label=name)
        for i, name in enumerate(curves)
    ]
    if banded:
        keys.append(Patch(color="gray", alpha=0.25, label="95 % band of the mean over runs"))
    if single:
        keys.append(Line2D([], [], color="gray", linewidth=0.6, label="single runs"))
    legend_below(figure, keys)
    return figure
