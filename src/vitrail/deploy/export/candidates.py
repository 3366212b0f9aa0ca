"""Candidates of an export: engines and precisions, built from one traced program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from vitrail.deploy.export.budget import BUILDING, Budget, conversion
from vitrail.deploy.export.convert import convert
from vitrail.deploy.export.gate import Criterion
from vitrail.deploy.export.graph import ExportGraph
from vitrail.deploy.export.kinds import kind_of
from vitrail.deploy.export.sizes import check_sizes, lacks_any
from vitrail.engines.base import Engine
from vitrail.engines.load import ENGINES, Export, open_engine
from vitrail.engines.openvino import INT8
from vitrail.errors import ConfigError, VitrailError, first_line

PRECISIONS = ("fp32", "bf16", INT8)
AUTO = "auto"
# Model file in fp32, model file to write, the graph and its description.
Quantize = Callable[[Path, Path, ExportGraph, Mapping[str, Any]], None]
# From the safest to the riskiest, as the gate tests them.
_ORDER = (
    ("openvino", "fp32"), ("onnx", "fp32"), ("torch", "fp32"), ("inductor", "fp32"), ("openvino", "bf16"),
    ("openvino", INT8), ("onnx", INT8),
)  # fmt: skip
_NO_MERGED_INT8 = "int8 is not offered with merged tokens: each number of them would need quantisation of its own"
# Not among those of "auto": it compiles for minutes, and was no faster than OpenVINO at 8 images.
_ON_REQUEST = ("inductor",)


@dataclass(frozen=True)
class Variant:
    """An engine at a precision, of the model itself or with merged tokens.

    Attributes:
        engine: Key of :data:`vitrail.engines.load.ENGINES`.
        precision: One of :data:`PRECISIONS`.
        merges: Pairs of tokens that each block merges.
    """

    engine: str
    precision: str
    merges: int = 0

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.engine} {self.precision}" + (f" r={self.merges}" if self.merges else "")

    @property
    def criterion(self) -> Criterion:
        """Criterion by which the gate judges it."""
        if self.merges:
            return "drop"
        return "equality" if self.precision == "fp32" else "agreement"


def list_variants(format: str = AUTO, precision: str = AUTO, shrink: Sequence[int] = ()) -> list[Variant]:
    """List the variants of a format and a precision, from the safest to the riskiest.

    Those with merged tokens come last, int8 among them, which :func:`build_candidates` only gives a reason for.

    Args:
        format: Engine, or "auto" for all but those that are built on request.
        precision: Precision, or "auto" for all.
        shrink: Pairs of tokens that the blocks of further variants merge, ascending.

    Raises:
        ConfigError: An unknown name, or an engine that has no such precision.
    """
    for option, value, known in (("--format", format, ENGINES), ("--precision", precision, PRECISIONS)):
        if value not in (AUTO, *known):
            raise ConfigError(f"{option} must be one of {', '.join((AUTO, *known))}, got {value!r}")
    engines = [engine for engine in ENGINES if engine not in _ON_REQUEST] if format == AUTO else [format]
    found = [Variant(*pair) for pair in _ORDER if pair[0] in engines and precision in (AUTO, pair[1])]
    if not found:
        able = ", ".join(engine for engine, other in _ORDER if other == precision)
        raise ConfigError(f"--precision {precision} is not supported by {format}; use --format {able}")
    if shrink and precision == INT8:
        raise ConfigError("--shrink has no candidates in int8; use --precision fp32, bf16 or auto")
    return found + [dataclasses.replace(variant, merges=r) for r in shrink for variant in found]


@dataclass(frozen=True)
class Built:
    """A variant with its files.

    Attributes:
        variant: The variant.
        folder: Folder with its model file, which variants of one engine in floating point share.
        facts: Description of the model.
        engine: The loaded engine; None if it could not be built or loaded.
        failure: Reason why it could not be built or loaded.
    """

    variant: Variant
    folder: Path
    facts: Mapping[str, Any]
    engine: Engine | None
    failure: str = ""

    @property
    def export(self) -> Export:
        """The variant as an export without check images."""
        assert self.engine is not None, self.failure
        return Export(self.folder, dict(self.facts), self.engine)

    @property
    def size(self) -> int:
        """Bytes of the model's files."""
        return sum(file.stat().st_size for file in self.folder.iterdir())


def build_candidates(
    program: ExportedProgram,
    graph: ExportGraph,
    describe: Callable[[str], Mapping[str, Any]],
    variants: list[Variant],
    folder: Path,
    threads: int | None,
    quantize: Quantize,
    budget: Budget,
) -> list[Built]:
    """Convert the program to each engine, once, and load all variants.

    The first conversion that succeeds is made in any case; further ones only if they fit into the budget.

    Args:
        program: The traced graph.
        graph: The graph.
        describe: Engine -> description that its model file holds.
        variants: Candidates to build.
        folder: Folder for a sub-folder of each engine.
        threads: Number of threads of each engine.
        quantize: Writes the model file in int8.
        budget: Time of the export.
    """
    unconverted: dict[str, str] = {}
    built = []
    for variant in variants:
        place, facts = folder / variant.engine, describe(variant.engine)
        if lack := kind_of(graph.card).lacks.get(variant.precision):
            built.append(Built(variant, place, facts, None, lack))
            continue
        if variant.engine not in unconverted:
            place.mkdir(parents=True)
            unconverted[variant.engine] = _within(
                budget, variant, functools.partial(_convert, program, graph, variant.engine, place, facts, threads)
            )
        engine, failure = None, unconverted[variant.engine]
        if variant.merges and variant.precision == INT8:
            failure = failure or _NO_MERGED_INT8
        if not failure:
            try:
                if variant.precision == INT8:
                    file, place = ENGINES[variant.engine], folder / f"{variant.engine} {INT8}"
                    place.mkdir()
                    quantize(folder / variant.engine / file, place / file, graph, facts)
                engine = open_engine(place, variant.engine, variant.precision, threads)
            except (VitrailError, RuntimeError) as error:
                failure = first_line(error)[:300]
        built.append(Built(variant, place, facts, engine, failure))
    return built


def leave_out(variants: Sequence[Variant], budget: Budget) -> list[Built]:
    """Leave out variants of one number of merged tokens, whose graph the budget does not let be traced."""
    reasons = {
        engine: budget.leave_out(_what(engine, variants[0].merges), budget.of_conversion(engine))
        for engine in dict.fromkeys(variant.engine for variant in variants)
    }
    return [
        Built(variant, Path(), {}, None, _NO_MERGED_INT8 if variant.precision == INT8 else reasons[variant.engine])
        for variant in variants
    ]


def _within(budget: Budget, variant: Variant, convert: Callable[[], str]) -> str:
    """Convert if the budget lets it; return the reason why there is no result, empty where there is one."""
    expected = budget.of_conversion(variant.engine)
    if budget.converted and not budget.fits(expected, BUILDING):
        return budget.leave_out(_what(variant.engine, variant.merges), expected)
    with budget.step(conversion(variant.engine)):
        failure = convert()
    budget.converted = budget.converted or not failure
    return failure


def _what(engine: str, merges: int) -> str:
    return conversion(engine) + (f" with r={merges}" if merges else "")


def _convert(
    program: ExportedProgram, graph: ExportGraph, engine: str, folder: Path, facts: Mapping[str, Any],
    threads: int | None,
) -> str:  # fmt: skip
    """Convert the program; of pixels of any size, only if the engine computes the same at several sizes.

    Returns:
        The reason why it failed; empty if it did not.
    """
    if graph.any_size and (reason := lacks_any(graph.model, engine)):
        return reason
    try:
        convert(program, graph, engine, folder, facts)
        if graph.any_size:
            check_sizes(graph, folder, engine, threads)
    # Converters raise errors of many kinds for operators that they lack, all of them RuntimeErrors.
    except (VitrailError, RuntimeError) as error:
        return first_line(error)[:300]
    return ""
