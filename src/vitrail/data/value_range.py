"""Convert stored values to 0..1: one rule for pictures, rasters, arrays and tables of images.

The range of the values is known (8 bits; ``data.scale``, ``data.values.offset`` or ``data.values.range``; the files'
own scale and offset), or the recipe is asked for it. One range is decided by type: that of 16-bit integers of one type
throughout.
Pixels without a measurement ("no data") become NaN here and are filled once the statistics are known: see
:class:`vitrail.data.dataset.ImageData`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.errors import ConfigError, DataError, plural

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

# The largest value of the types whose range may be that of the type.
_TYPE_RANGES = {"bool": 1.0, "uint8": 255.0, "uint16": 65535.0, "int16": 32767.0}
# The type of pictures, whose range needs no statement and no remark; and all such types.
KNOWN_TYPE = "uint8"
_KNOWN_TYPES = ("bool", KNOWN_TYPE)
# Values to which the file's own scale and offset were applied, whatever type they are stored as.
PHYSICAL = "physical"
# Images that fill less than this share of the type's range were not stored to fill it.
LEAST_FILLED = 0.01
# Remedy if only some files have a scale and offset of their own.
_ONE_UNIT = "write all files in one unit (with the same scale and offset, or without)"


@dataclass(frozen=True)
class ValueRange:
    """Stored values that map to 0 and 1.

    Attributes:
        low: Value that becomes 0, one for all bands or one per band.
        high: Value that becomes 1, likewise.
        kind: Reason for the range: a type ("bool", "uint8", "uint16", "int16"), or "physical" (the files' own scale and
            offset); None where the recipe states it.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    kind: str | None = None

    def columns(self) -> tuple[Array, Array]:
        """Return ``low`` and ``high``, shape ``(C or 1, 1, 1)``, float64."""
        return np.array(self.low)[:, None, None], np.array(self.high)[:, None, None]


@dataclass(frozen=True)
class ValueRule:
    """Settings of the values of one stream, from the recipe and the record of a run.

    Attributes:
        scale: Difference between the values that become 0 and 1.
        offset: The value that becomes 0.
        limits: The values that become 0 and 1.
        no_data: Stored values that are not measurements, besides those that files declare; empty where the files'
            own declarations are to be ignored.
        recorded: The type whose range a run was trained with.
        group: Group of the settings.
    """

    scale: float | tuple[float, ...] | None = None
    offset: float | tuple[float, ...] | None = None
    limits: tuple[tuple[float, float], ...] | None = None
    no_data: tuple[float, ...] | None = None
    recorded: str | None = None
    group: str = "data.values"

    @property
    def setting(self) -> str:
        """Name of the scale setting in a recipe."""
        return self.name_of("scale")

    def name_of(self, setting: str) -> str:
        """Return the dotted name of a setting; the scale of the image stream belongs to no group."""
        return "data.scale" if (self.group, setting) == ("data.values", "scale") else f"{self.group}.{setting}"

    def stated(self, number: int) -> ValueRange | None:
        """Return the range in the recipe for a number of bands; None if there is none.

        Raises:
            ConfigError: A range for another number of bands.
        """
        if self.limits is not None:
            self._fit("range", len(self.limits), number)
            return ValueRange(tuple(low for low, _ in self.limits), tuple(high for _, high in self.limits))
        if self.scale is None:
            return None
        scale, offset = _as_tuple(self.scale), _as_tuple(0.0 if self.offset is None else self.offset)
        self._fit("scale", len(scale), number)
        self._fit("offset", len(offset), number)
        count = max(len(scale), len(offset))
        scale, offset = scale * (count // len(scale)), offset * (count // len(offset))
        return ValueRange(offset, tuple(low + step for low, step in zip(offset, scale, strict=True)))

    def suggest(self, low: float, high: float) -> str:
        """Suggest an option that fits values from ``low`` to ``high``."""
        if not (math.isfinite(low) and math.isfinite(high)) or low == high == 0:
            return f"--{self.setting}"
        if low >= 0:
            return f"--{self.setting} {_rounded(high, up=True):g}"
        return f"--{self.name_of('range')} '[{_rounded(low, up=False):g}, {_rounded(high, up=True):g}]'"

    def _fit(self, name: str, given: int, number: int) -> None:
        if given not in (1, number):
            raise ConfigError(
                f"{self.name_of(name)} has {plural(given, 'entry', 'entries')} and the images have "
                f"{plural(number, 'band')}; give one for all bands or one per band"
            )

    def range_of(self, kind: str, physical: bool, number: int) -> ValueRange | None:
        """Return the range of one image's values if known without the others; None otherwise."""
        stated = self.stated(number)
        if stated is not None:
            return stated
        if physical:
            return ValueRange((0.0,), (1.0,))
        if kind in _TYPE_RANGES:
            return ValueRange((0.0,), (_TYPE_RANGES[kind],), kind)
        return None


def value_rules(config: DataConfig) -> dict[str, ValueRule]:
    """Return the value settings of each stream."""
    rules = {}
    for stream, stated, scale, group in (
        ("image", config.values, config.scale, "data.values"),
        ("spectral", config.spectral, config.spectral.scale, "data.spectral"),
    ):
        limits = stated.range
        if limits is not None and not isinstance(limits[0], (tuple, list)):
            limits = (limits,)
        given = stated.nodata
        no_data = None if given is None else tuple(float(v) for v in (given if isinstance(given, tuple) else (given,)))
        rules[stream] = ValueRule(
            scale,
            stated.offset,
            None if limits is None else tuple((float(low), float(high)) for low, high in limits),
            no_data,
            stated.value_type,
            group,
        )
    return rules


def resolve_range(
    rule: ValueRule,
    kinds: Mapping[str, tuple[int, str]],
    extent: tuple[float, float],
    bands: int,
    own_extent: tuple[float, float] | None = None,
) -> tuple[ValueRange, list[str]]:
    """Resolve the range of a stream's values once for all images.

    Args:
        rule: Value settings of the recipe.
        kinds: Reason for the range of a single image (its type, or "physical" where its own scale and offset
            were applied) -> how many images are of it, and the name of the first.
        extent: Smallest and largest value of all images.
        bands: Number of bands.
        own_extent: The same of the images to which their own scale and offset were applied; of all when not given.

    Returns:
        The range, and what to log of it.

    Raises:
        DataError: A range that only the user knows, types that differ, another type than the run's, 16-bit images
            that fill less than 1 % of their type's range, or a range in other units than the files' own.
    """
    low, high = extent
    stated = rule.stated(bands)
    own_units = [first for kind, (_, first) in kinds.items() if kind == PHYSICAL]
    if stated is not None:
        own_low, own_high = own_extent or extent
        filled = max(own_high - own_low, 0.0) / max(b - a for a, b in zip(stated.low, stated.high, strict=True))
        if own_units and filled < LEAST_FILLED:
            remedy = f"state it in these units ({rule.suggest(own_low, own_high)})"
            raise DataError(
                f"{rule.setting}: the values of {own_units[0]} go from {own_low:g} to {own_high:g} once its own scale "
                f"and offset are applied, {filled:.2%} of the stated range; "
                + (f"{remedy}, or leave it out" if len(kinds) == 1 else f"{_ONE_UNIT}, and {remedy}")
            )
        return stated, []
    strangers = [kind for kind in kinds if kind != rule.recorded]
    if rule.recorded is not None and strangers:
        first = kinds[strangers[0]][1]
        raise DataError(
            f"{first} holds {strangers[0]} values and the run was trained on {rule.recorded}, which decided their "
            f"range; convert it to {rule.recorded} in the same units"
        )
    if len(kinds) > 1:
        types = ", ".join(f"{kind} ({count}, first {first})" for kind, (count, first) in kinds.items())
        remedy = f"{rule.suggest(low, high)} ({rule.setting}, the value that shall become 1)"
        raise DataError(
            f"the images are of several types: {types}; the range of their values is not known; "
            + (f"{_ONE_UNIT}, and give its range (data.scale)" if own_units else f"give {remedy}")
        )
    ((kind, (count, first)),) = kinds.items()
    others = f" (as {plural(count - 1, 'other does', 'others do')})" if count > 1 else ""
    if kind == PHYSICAL:
        note = (
            f"the files' own scale and offset give values from {low:g} to {high:g}, of which 0 to 1 are used (another "
            f"range: --{rule.name_of('range')} '[LOW, HIGH]')"
        )
        return ValueRange((0.0,), (1.0,), kind), [] if rule.recorded else [note]
    if kind not in _TYPE_RANGES:
        raise DataError(
            f"{first} holds {kind} values{others}, whose range is unknown; give {rule.setting} the value that "
            f"shall become 1 (values from {low:g} to {high:g} were seen: {rule.suggest(low, high)})"
        )
    top = _TYPE_RANGES[kind]
    found = ValueRange((0.0,), (top,), kind)
    if kind in _KNOWN_TYPES or rule.recorded is not None or not math.isfinite(low):
        return found, []
    filled = max(high - low, 0.0) / top
    if filled < LEAST_FILLED:
        raise DataError(
            f"{rule.setting}: the images' values, {low:g} to {high:g}, fill {filled:.2%} of the range of {kind} (0 to "
            f"{top:g}); give {rule.suggest(low, high)}"
        )
    note = (
        f"{rule.setting}: {top:g}, the largest {kind}, becomes 1; the images' values, {low:g} to {high:g}, fill "
        f"{filled:.1%} of that range"
    )
    return found, [note]


def _rounded(value: float, up: bool) -> float:
    """Round to two digits, away from the enclosed value."""
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return (math.ceil if up else math.floor)(round(value / step, 9)) * step


def to_unit_range(values: Array, invalid: Mask | None, limits: ValueRange) -> Tensor:
    """Scale values to 0..1, and clip them.

    Args:
        values: Shape ``(..., C, H, W)``.
        invalid: True where there is no measurement, the same shape.
        limits: The values that become 0 and 1.

    Returns:
        The same shape, float32; NaN where there is no data.
    """
    low, high = limits.columns()
    if not low.any() and len(high) == 1 and values.dtype.itemsize < 8:
        unit = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).div_(float(high.item()))
    else:
        with np.errstate(over="ignore"):  # of values without data, or far outside of the range
            unit = torch.from_numpy(np.ascontiguousarray((values.astype(np.float64) - low) / (high - low), np.float32))
    if np.may_share_memory(unit.numpy(), values):
        unit = unit.clone()
    unit.clamp_(0, 1)
    if invalid is not None:
        unit[torch.from_numpy(np.ascontiguousarray(invalid))] = math.nan
    return unit


def _as_tuple(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(v) for v in value) if isinstance(value, (tuple, list)) else (float(value),)
