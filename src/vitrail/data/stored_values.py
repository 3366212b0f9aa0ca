"""Survey of stored values: types, minimum and maximum, pixels without data or outside of the range."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrail.data.image_errors import OR, UnreadableError
from vitrail.data.value_range import KNOWN_TYPE, LEAST_FILLED, PHYSICAL, ValueRange, ValueRule, resolve_range
from vitrail.errors import DataError, few, plural

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

# Shares of values outside of the range: above the first a warning, above the second an error.
MANY_CUT_OFF = 0.01
MOST_CUT_OFF = 0.5
# An image with a larger share of pixels without data is named.
MOSTLY_NO_DATA = 0.5


@dataclass(frozen=True)
class Tally:
    """Counts of pixels by image and band, each of shape ``(N, C)``.

    Attributes:
        pixels: All.
        no_data: Pixels without a measurement.
        below: Pixels below the range, which become 0.
        above: Pixels above the range, which become 1.
    """

    pixels: npt.NDArray[np.int64]
    no_data: npt.NDArray[np.int64]
    below: npt.NDArray[np.int64]
    above: npt.NDArray[np.int64]

    def rows(self, indices: Sequence[int]) -> Tally:
        """Select images."""
        own = np.asarray(indices, dtype=np.int64)
        return Tally(self.pixels[own], self.no_data[own], self.below[own], self.above[own])

    def bands(self, indices: Sequence[int]) -> Tally:
        """Select bands, in the given order."""
        own = np.asarray(indices, dtype=np.int64)
        return Tally(self.pixels[:, own], self.no_data[:, own], self.below[:, own], self.above[:, own])

    def cut_shares(self) -> tuple[Array, Array]:
        """Return the shares of valid pixels below and above the range by band, shape ``(C,)``."""
        valid = np.maximum((self.pixels - self.no_data).sum(0), 1)
        return self.below.sum(0) / valid, self.above.sum(0) / valid

    def no_data_shares(self) -> Array:
        """Return the share of pixels without data by band, shape ``(C,)``."""
        shares: Array = self.no_data.sum(0) / np.maximum(self.pixels.sum(0), 1)
        return shares


@dataclass(frozen=True)
class Survey:
    """Stored values of one image, by band.

    Attributes:
        kind: Their type.
        physical: Whether the file's own scale and offset were applied.
        low: Smallest valid value of each band, shape ``(C,)``; infinite where none is valid.
        high: Largest, likewise.
        tally: The pixels, shape ``(1, C)`` (of arrays ``(N, C)``).
    """

    kind: str
    physical: bool
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    tally: Tally

    @property
    def label(self) -> str:
        """The type, or physical units."""
        return PHYSICAL if self.physical else self.kind

    @property
    def counts(self) -> Array:
        """Pixel counts of a single image, shape ``(4, C)``."""
        return np.stack([self.tally.pixels[0], self.tally.no_data[0], self.tally.below[0], self.tally.above[0]])


def survey(values: Array, invalid: Mask | None, rule: ValueRule, what: str, physical: bool = False) -> Survey:
    """Survey the values of one image.

    Args:
        values: Shape ``(C, H, W)``, or of several images ``(N, C, H, W)``.
        invalid: True where there is no measurement, the same shape.
        rule: The stream's.
        what: Name of the data in errors.
        physical: Whether the file's own scale and offset were applied.

    Raises:
        DataError: Values that are not numbers.
        UnreadableError: Values that are not finite and not declared no data.
    """
    kind = values.dtype.name
    if values.dtype.kind not in "buif":
        raise DataError(
            f"{what} holds {kind} values; integers or floats are wanted: write the parts of complex numbers as bands"
        )
    images = values if values.ndim == 4 else values[None]
    lost = None if invalid is None else (invalid if values.ndim == 4 else invalid[None])
    if kind[0] == "f":
        _refuse_not_finite(images, lost, rule, what)
    count, bands = images.shape[:2]
    shape = (count, bands)
    pixels = np.full(shape, images.shape[2] * images.shape[3], dtype=np.int64)
    no_data = np.zeros(shape, dtype=np.int64) if lost is None else lost.sum((2, 3), dtype=np.int64)
    axes = (0, 2, 3)
    if lost is None:
        low, high = images.min(axes), images.max(axes)
    else:
        wide = images.astype(np.float64)
        low, high = np.where(lost, np.inf, wide).min(axes), np.where(lost, -np.inf, wide).max(axes)
    low, high = low.astype(np.float64), high.astype(np.float64)
    below, above = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    limits = rule.range_of(kind, physical, bands)
    if limits is not None:
        bottom, top = limits.columns()
        valid = True if lost is None else ~lost
        if (low < bottom.ravel()).any():
            below = ((images < bottom) & valid).sum((2, 3), dtype=np.int64)
        if (high > top.ravel()).any():
            above = ((images > top) & valid).sum((2, 3), dtype=np.int64)
    return Survey(kind, physical, low, high, Tally(pixels, no_data, below, above))


def _refuse_not_finite(images: Array, lost: Mask | None, rule: ValueRule, what: str) -> None:
    bad = ~np.isfinite(images)
    if lost is not None:
        bad &= ~lost
    if not bad.any():
        return
    nan = int(np.isnan(images[bad]).sum())
    infinite = int(bad.sum()) - nan
    counts = " and ".join(part for n, part in ((nan, f"{nan} NaN"), (infinite, f"{infinite} infinite")) if n)
    marks = "nan" if not infinite else ("[nan, inf, -inf]" if nan else "[inf, -inf]")
    raise UnreadableError(
        f"{what} holds values that are not finite ({counts})",
        f"fill them{OR}leave the image out{OR}mark them as no data (--{rule.name_of('nodata')} '{marks}')",
    )


@dataclass
class Surveys:
    """Accumulator of the surveys of a stream's images.

    Attributes:
        bands: Names of the bands.
        kinds: Type of the values -> how many images are of it, and the name of the first.
        low: Smallest value of each band.
        high: Largest.
        own_extent: Smallest and largest value of the images to which their own scale and offset were applied.
    """

    bands: tuple[str, ...]
    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)
    low: Array = field(init=False)
    high: Array = field(init=False)
    own_extent: tuple[float, float] = (np.inf, -np.inf)

    def __post_init__(self) -> None:
        """Start empty."""
        self.low, self.high = np.full(len(self.bands), np.inf), np.full(len(self.bands), -np.inf)
        # Of whole pictures, of which there may be millions: index and pixels.
        self._pictures, self._sizes = array("q"), array("q")
        self._rows: dict[int, Array] = {}

    def add(self, index: int, name: str, seen: Survey | int) -> None:
        """Add one image.

        Args:
            index: Index of the image.
            name: Name in errors.
            seen: Its survey; the number of its pixels where it is a picture of 8 bits that is whole.
        """
        kind = KNOWN_TYPE if isinstance(seen, int) else seen.label
        count, first = self.kinds.get(kind, (0, name))
        self.kinds[kind] = (count + 1, first)
        if isinstance(seen, int):
            self._pictures.append(index)
            self._sizes.append(seen)
            return
        self.low, self.high = np.minimum(self.low, seen.low), np.maximum(self.high, seen.high)
        if seen.physical:
            low, high = self.own_extent
            self.own_extent = min(low, float(seen.low.min())), max(high, float(seen.high.max()))
        self._rows[index] = seen.counts

    def add_array(self, name: str, seen: Survey) -> None:
        """Add an array of several images of one type."""
        self.kinds[seen.label] = (len(seen.tally.pixels), name)
        self.low, self.high = np.minimum(self.low, seen.low), np.maximum(self.high, seen.high)

    def tally(self, indices: Sequence[int]) -> Tally | None:
        """Return the pixel counts of images; None if no pixel is without data or outside of the range."""
        if not any(row[1:].any() for row in self._rows.values()):
            return None
        table = np.zeros((4, len(indices), len(self.bands)), dtype=np.int64)
        sizes = dict(zip(self._pictures, self._sizes, strict=True))
        for column, index in enumerate(indices):
            if index in self._rows:
                table[:, column] = self._rows[index]
            else:
                table[0, column] = sizes[index]
        return Tally(*table)

    def decide(self, rule: ValueRule, kept: Sequence[int]) -> tuple[StreamValues, list[str]]:
        """Resolve the range of all images' values, with the lines to log; see :func:`resolve_range`.

        Args:
            rule: Value settings of the recipe.
            kept: The images that the source goes on with.
        """
        limits, notes = resolve_range(rule, self.kinds, self.extent, len(self.bands), self.own_extent)
        if limits.kind is None and self._pictures:
            notes.append(
                f"{plural(len(self._pictures), 'image is a picture', 'images are pictures')} of 8 bits, whose values 0 "
                f"to 255 become 0 to 1; {rule.setting} is for the others"
            )
        return StreamValues(self.bands, rule, limits, self.low, self.high, self.tally(kept)), notes

    @property
    def extent(self) -> tuple[float, float]:
        """Return minimum and maximum over all bands."""
        return float(self.low.min()), float(self.high.max())


@dataclass(frozen=True)
class StreamValues:
    """Stored values of one stream of a source.

    Attributes:
        bands: Names of the bands.
        rule: Value settings of the recipe.
        limits: The values that became 0 and 1.
        low: Smallest value of each band, shape ``(C,)``.
        high: Largest.
        tally: The pixels of each image of the source; None where none is without data or cut off.
    """

    bands: tuple[str, ...]
    rule: ValueRule
    limits: ValueRange
    low: Array
    high: Array
    tally: Tally | None = None

    def check(self, keys: Sequence[str], *, of_run: bool = False) -> tuple[list[str], list[str]]:
        """Return notices and warnings on pixels without data and pixels outside of the range.

        Args:
            keys: Name of each image.
            of_run: Whether a trained run reads them, whose range no setting changes any more.

        Raises:
            DataError: The range cuts off more than 50 % of a band's values.
        """
        notes: list[str] = []
        warnings = [] if (dim := self._barely_filled(of_run)) is None else [dim]
        if self.tally is None:
            return notes, warnings
        cut = self._cut_off(self.tally, of_run)
        if cut is not None:
            warnings.append(cut)
        lost = self.tally.no_data.sum(1) / np.maximum(self.tally.pixels.sum(1), 1)
        if lost.any():
            share = self.tally.no_data.sum() / max(int(self.tally.pixels.sum()), 1)
            notes.append(
                f"{share:.1%} of the values of {few(self.bands)} are no-data values, in {int((lost > 0).sum())} of "
                f"{plural(len(lost), 'image')}; they are left out of statistics and filled with the mean"
            )
        mostly = [keys[i] for i in np.flatnonzero(lost > MOSTLY_NO_DATA).tolist()]
        if mostly:
            warnings.append(
                f"{plural(len(mostly), 'image is', 'images are')} mostly no data: {few(mostly)}; remove them, or check "
                "data.values.nodata"
            )
        return notes, warnings

    def _remedy(self, of_run: bool, does: str) -> str:
        """Suggest an option that fits the observed values; a trained run keeps its range."""
        if of_run:
            return "bring the images to the units that the run was trained in"
        return f"{self.rule.suggest(float(self.low.min()), float(self.high.max()))} {does}"

    def _barely_filled(self, of_run: bool) -> str | None:
        """Return a warning if the values fill very little of the range in the recipe."""
        low, high = float(self.low.min()), float(self.high.max())
        if self.limits.kind is not None or not low <= high:
            return None
        whole = max(b - a for a, b in zip(self.limits.low, self.limits.high, strict=True))
        if low == high or high - low >= LEAST_FILLED * whole:
            return None
        return (
            f"{self.rule.setting}: the images' values, {low:g} to {high:g}, fill {(high - low) / whole:.2%} of the "
            f"stated range; {self._remedy(of_run, 'fills it')}"
        )

    def _cut_off(self, tally: Tally, of_run: bool) -> str | None:
        below, above = tally.cut_shares()
        worst = below + above
        many = [i for i in np.argsort(-worst, kind="stable").tolist() if worst[i] > MANY_CUT_OFF]
        if not many:
            return None
        names = few([f"{self.bands[i]} ({below[i]:.1%} below, {above[i]:.1%} above)" for i in many])
        remedy = self._remedy(of_run, "holds all that were seen")
        setting = f"{self.rule.name_of('range' if self.rule.limits is not None else 'scale')}: "
        outside = f"values of {names} lie outside of the range and"
        if worst[many[0]] > MOST_CUT_OFF:
            raise DataError(f"{setting}most {outside} would be cut off; {remedy}")
        return f"{setting}{outside} are cut off; {remedy}"

    def chosen(self, indices: Sequence[int]) -> StreamValues:
        """Select bands, in the given order."""
        own = np.asarray(indices, dtype=np.int64)
        return StreamValues(
            tuple(self.bands[i] for i in indices),
            self.rule,
            self.limits,
            self.low[own],
            self.high[own],
            None if self.tally is None else self.tally.bands(indices),
        )


def join_bands(parts: Sequence[StreamValues]) -> StreamValues:
    """Concatenate the bands of several streams."""
    first = parts[0]
    tallies = [part.tally for part in parts]
    tally = None
    known = next((t for t in tallies if t is not None), None)
    if known is not None:
        empty = np.zeros((len(known.pixels), 1), dtype=np.int64)
        filled = [Tally(known.pixels[:, :1], empty, empty, empty) if t is None else t for t in tallies]
        columns = ("pixels", "no_data", "below", "above")
        tally = Tally(*(np.concatenate([getattr(t, name) for t in filled], axis=1) for name in columns))
    return StreamValues(
        tuple(band for part in parts for band in part.bands),
        first.rule,
        first.limits,
        np.concatenate([part.low for part in parts]),
        np.concatenate([part.high for part in parts]),
        tally,
    )
