"""A data set: images of each class and split, sizes, and copies side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitrail.figures.picture import shorten
from vitrail.figures.style import PALETTE, plain

_MOST_LETTERS = 28
_SPLIT_LOOKS = {
    "train": (PALETTE[0], ""), "val": (PALETTE[4], "///"), "test": (PALETTE[2], "..."),
    "unlabelled": ("#b9c0c7", "xxx"),
}  # fmt: skip
SPLIT_NAMES = {"train": "training", "val": "validation"}


def class_balance(balance: Mapping[str, Mapping[str, int]], splits: Sequence[str]) -> Figure:
    """Draw the images of each class as bars, a colour a split.

    Args:
        balance: Class -> split -> number of images.
        splits: Names of the splits, in the order of the bars' parts.
    """
    figure = Figure(figsize=(6.4, 1.2 + 0.28 * len(balance)), layout="constrained")
    axis = figure.subplots()
    rows = np.arange(len(balance))
    left = np.zeros(len(balance))
    for split in splits:
        width = np.array([counts[split] for counts in balance.values()], dtype=float)
        color, hatch = _SPLIT_LOOKS.get(split, (PALETTE[3], ""))
        axis.barh(
            rows, width, 0.72, left, color=color, hatch=hatch, edgecolor="white", linewidth=0.5,
            label=SPLIT_NAMES.get(split, split),
        )  # fmt: skip
        left += width
    for row, whole in enumerate(left.tolist()):
        axis.text(whole + 0.01 * float(left.max()), row, f"{int(whole):,}", va="center", fontsize=8, color="#59636e")
    axis.set_yticks(rows, [shorten(name, _MOST_LETTERS) for name in balance], fontsize=8)
    axis.set(xlabel="images", ylim=(len(balance) - 0.4, -0.6), xlim=(0, 1.12 * left.max()))
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    plain(axis)
    axis.grid(False, axis="y")
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=max(1, len(splits)))
    return figure


def image_sizes(height: npt.NDArray[Any], width: npt.NDArray[Any], number: npt.NDArray[Any]) -> Figure:
    """Draw height against width, a mark a size, its area by the number of images.

    Args:
        height: Heights in pixels, shape ``(sizes,)``.
        width: Widths in pixels, shape ``(sizes,)``.
        number: Images of each size, shape ``(sizes,)``.
    """
    figure = Figure(figsize=(4.4, 3.9), layout="constrained")
    axis = figure.subplots()
    axis.scatter(width, height, s=10 + 120 * number / number.max(), color=PALETTE[0], alpha=0.45, linewidths=0)
    top = 1.06 * max(height.max(), width.max())
    axis.plot([0, top], [0, top], color="gray", linewidth=1, linestyle=":")
    axis.set(xlabel="width, pixels", ylabel="height, pixels", xlim=(0, top), ylim=(0, top), aspect="equal")
    plain(axis)
    return figure


def duplicates(groups: Sequence[Sequence[tuple[npt.NDArray[Any], str, str]]]) -> Figure:
    """Draw groups of copies, a column a group.

    Args:
        groups: Images of each group: pixels of shape ``(H, W)`` or ``(H, W, 3)`` in 0..1, split and class.
    """
    rows = max(map(len, groups))
    figure = Figure(figsize=(1.75 * len(groups) + 0.1, rows * 2.05), layout="constrained")
    axes = figure.subplots(rows, len(groups), squeeze=False)
    for column, group in enumerate(groups):
        for axis, (pixels, split, label) in zip(axes[:, column], group, strict=False):
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            axis.set_title(f"{SPLIT_NAMES.get(split, split)}\n{shorten(label, _MOST_LETTERS)}", fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure
