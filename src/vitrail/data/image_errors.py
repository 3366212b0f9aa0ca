"""Errors of image files, and messages that summarise those of a data set.

A fault keeps what is wrong with a file apart from what helps, so that a message on many files gives each remedy once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vitrail.errors import DataError, count_of, few, plural
from vitrail.files import LFS_REMEDY, is_lfs_pointer

# Values of `BandError.kind`: bands that `data.color` reads as they are, more than 8 bits a band, and another
# number of bands than are named.
GRAY, RGB, DEEP, BAND_COUNT = "gray", "rgb", "deep", "band count"
# Between the alternatives of a remedy.
OR = ", or "
# A setting that is decided in training: a trained run takes those that leave out or convert images alone.
_TRAINING_SETTING = re.compile(r"\bdata\.(?!on_)[a-z_]")
SKIP = "--data.errors.on_unreadable skip goes on without them"
# Damaged files in a message; with skip the run lists all.
_MOST_NAMED = 10
CONVERT = "pass --data.errors.on_band_mismatch convert"


class ImageFault(DataError):
    """Error of one image.

    Args:
        problem: The problem, with the image's name.
        remedy: The remedy.
        kind: Faults of one kind share a remedy.
        summary: The problem without the name, for a line about many: "have 1 band (L)".
    """

    def __init__(self, problem: str, remedy: str = "", kind: str = "", summary: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem, self.remedy, self.kind, self.summary = problem, remedy, kind, summary


class BandError(ImageFault):
    """Readable image with other bands than expected."""


class UnreadableError(ImageFault):
    """File that is damaged or not an image."""


class PointerError(UnreadableError):
    """Git LFS pointer instead of an image."""

    def __init__(self, name: str | Path) -> None:
        super().__init__(f"{name} is a Git LFS pointer instead of an image", LFS_REMEDY, "pointer")


def too_large(path: object, size: tuple[int, int], max_pixels: int) -> UnreadableError:
    """Build the error for an image with more pixels than may be decoded."""
    height, width = size
    return UnreadableError(
        f"{path} has {height} x {width} = {height * width} pixels, more than data.images.max_pixels {max_pixels}",
        "scale it down, or raise data.images.max_pixels",
    )


def refuse_pointer(file: Path) -> None:
    """Raise an error if a file of images or a table is a Git LFS pointer.

    Raises:
        DataError: It is one.
    """
    if is_lfs_pointer(file):
        raise DataError(f"{file} is a Git LFS pointer instead of the data; {LFS_REMEDY}")


Fault = tuple[str, DataError]


def unreadable_message(
    faults: Sequence[Fault], total: int, of: str, *, skipped: bool = False, of_run: bool = False
) -> str:
    """Summarise all unreadable images in one message: pointers are counted, of the others the first are named.

    Args:
        faults: Name and fault of each.
        total: Number of images.
        of: The images with their number: "28 files", "the 28 images in train.parquet".
        skipped: Whether what cannot be read is left out already, so that to leave it out is not a remedy.
        of_run: Whether the images are given to a trained run, which has no settings of training.
    """
    pointers = [name for name, error in faults if isinstance(error, PointerError)]
    damaged = [error for _, error in faults if not isinstance(error, PointerError)]
    parts = []
    skip = "" if skipped or len(faults) == total else f" ({SKIP})"
    if pointers:
        parts.append(
            plural(len(pointers), f"of {of} is a Git LFS pointer", f"of {of} are Git LFS pointers")
            + f" instead of images ({head(pointers)}): {LFS_REMEDY}"
        )
    if damaged:
        offered = [e.remedy for e in damaged if isinstance(e, ImageFault) and e.remedy]
        # Of remedies that begin alike the longest says all.
        remedies = [r for r in dict.fromkeys(offered) if not any(o != r and o.startswith(r) for o in offered)]
        if of_run:
            remedies = list(dict.fromkeys(filter(None, map(for_run, remedies))))
        problems = [e.problem if isinstance(e, ImageFault) else str(e) for e in damaged]
        names = [name for name, error in faults if not isinstance(error, PointerError)]
        reasons = {text.replace(name, "", 1).strip() for name, text in zip(names, problems, strict=True)}
        no_images = plural(len(damaged), f"of {of} is not a readable image", f"of {of} are not readable images")
        # A reason shared by all is stated once.
        same = len(damaged) == total > 1 and len(reasons) == 1
        named = f"{reasons.pop()}: {head(names)}" if same else head(problems, _MOST_NAMED)
        parts.append(
            (f"each of {of} " if same else f"{no_images}{skip}: ")
            + named
            + "".join(f"; {remedy}" for remedy in remedies)
        )
    elif 0 < len(pointers) < total and not skipped:
        parts.append(SKIP)
    return "; ".join(parts)


def bands_message(faults: Sequence[Fault], total: int, *, of_run: bool = False) -> str:
    """Summarise all images with other bands in one message: the number of each kind, and each remedy once.

    Args:
        faults: Name and fault of each.
        total: Number of images.
        of_run: Whether the images are given to a trained run, whose bands no setting changes any more.
    """
    groups: dict[str, list[Fault]] = {}
    for name, error in faults:
        summary = error.summary if isinstance(error, ImageFault) else ""
        groups.setdefault(summary, []).append((name, error))
    texts, remedies = [], []
    for summary, members in sorted(groups.items(), key=lambda item: (item[0] == "", -len(item[1]))):
        if summary and len(members) > 1:
            texts.append(f"{len(members):,} of {total:,} images {summary}: {head([name for name, _ in members])}")
        else:
            texts.append(head([e.problem if isinstance(e, ImageFault) else str(e) for _, e in members]))
        remedies += _remedies(members, total, of_run)
    # One kind alone says it already.
    begin = (
        ""
        if len(groups) == 1 < len(faults) and "" not in groups
        else f"{count_of(len(faults), total, 'image', 'has', 'have')} other bands: "
    )
    return begin + "; ".join([*texts, *dict.fromkeys(remedies)])


def _remedies(members: Sequence[Fault], total: int, of_run: bool) -> list[str]:
    fault = members[0][1]
    if not isinstance(fault, ImageFault) or not fault.remedy:
        return []
    if fault.kind in (GRAY, RGB) and not of_run:
        if 2 * len(members) <= total:
            return [fault.remedy]
        return [f"--data.color {fault.kind} reads them as they are; or {CONVERT}"]
    if fault.kind == DEEP and of_run:
        return ["scale them to 8 bits, as the run's images were"]
    if fault.kind == BAND_COUNT:
        remedy = "give the run files of its own bands" if of_run else fault.remedy
        return [remedy if len(members) == total else f"{remedy}; {SKIP}"]
    remedy = for_run(fault.remedy) if of_run else fault.remedy
    return [remedy] if remedy else []


def for_run(remedy: str) -> str:
    """Keep the alternatives of a remedy that apply to a trained model; empty if there are none.

    Args:
        remedy: Alternatives with :data:`OR` between them.
    """
    return OR.join(part for part in remedy.split(OR) if not _TRAINING_SETTING.search(part))


def head(items: Sequence[str], most: int = 3) -> str:
    """List the first items, and the number of the others."""
    return few(items, most, between="; ")
