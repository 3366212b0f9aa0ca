"""``vitrail.export``: write a trained run as one file of an engine, shown to decide like the run."""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from vitrail.config.data import DataConfig
from vitrail.config.load import load_recipe
from vitrail.data.dataset import Batch, ImageData
from vitrail.deploy.export.artefact import (
    check_bounds,
    check_out,
    describe_model,
    new_export,
    write_check,
    write_record,
)
from vitrail.deploy.export.budget import BUILDING, Budget
from vitrail.deploy.export.calibrate import Quantizer
from vitrail.deploy.export.candidates import AUTO, Built, Variant, build_candidates, leave_out, list_variants
from vitrail.deploy.export.choice import Candidate, choose
from vitrail.deploy.export.convert import trace
from vitrail.deploy.export.decisions import Decisions, Floats, fit_decisions
from vitrail.deploy.export.final_table import FinalTable, compare_on_test
from vitrail.deploy.export.gate import GateImages, Limits, Outputs, judge, judge_photographs
from vitrail.deploy.export.gate_images import (
    Selection,
    count_images,
    embed,
    export_outputs,
    logits_in_full,
    original_outputs,
    pixel_types,
    select_gate_images,
    spread,
    spread_encoded,
)
from vitrail.deploy.export.graph import INCLUDE, ExportGraph
from vitrail.deploy.export.kinds import kind_of
from vitrail.deploy.export.measure import BATCHES, EAGER, Measured, add_memory, measure
from vitrail.deploy.export.quantize import QuantizeSettings
from vitrail.deploy.export.shrink import merge_counts, merging
from vitrail.deploy.export.sizes import ANY, NO_PHOTOGRAPHS, ImageSize, at_size, least_of_any
from vitrail.deploy.export.stored import as_stored
from vitrail.deploy.export.verdict import Result, Verdict
from vitrail.durations import format_duration
from vitrail.engines.inputs import to_inputs
from vitrail.engines.load import Export, load_export
from vitrail.engines.openvino import INT8
from vitrail.errors import ConfigError, RunError, closest, plural
from vitrail.machine import cores, processor
from vitrail.models.modality import Modality, check_need, reword
from vitrail.models.registry import find_family
from vitrail.runs.folder import RunFolder
from vitrail.runs.images import open_images
from vitrail.runs.trained import TrainedModel, load_classifier

_CHECK_IMAGES = 4
# Images of the gate, at most: a true agreement of 99.5 % passes a gate of 99 % in 79 % of exports.
GATE_IMAGES = 2000
# Encoded images on which fp32 candidates are compared as another program runs them, at most.
_PHOTOGRAPHS = 100
# Training images of the out-of-distribution reference, at most.
_REFERENCE_IMAGES = 2000
# Shares of the budget for the timed calls, and for quantisation.
_TIMED, _QUANTIZED = 0.25, 0.5
# Kinds of steps whose time is expected from those seen.
_TRACE, _COMPARISON = "tracing", "comparison with the run"


@dataclass(frozen=True)
class Exported:
    """A written export, and how it was chosen.

    Attributes:
        export: The loaded export.
        results: Verdict of the gate about each candidate.
        measured: Measurements by candidate, and of the run in eager mode.
        final: Comparison of the written export with the run on its test images; None where it has none.
        gate_images: Number of gate images.
        available: Number of images that could be.
        known: Further images that were left out, because the run was made from them.
        budget: Time that was spent, and the steps that were left out.
    """

    export: Export
    results: list[Result]
    measured: dict[str, Measured]
    final: FinalTable | None
    gate_images: int
    available: int
    known: int
    budget: Budget


def export(
    run: str | Path | RunFolder,
    data: DataConfig | None = None,
    *,
    out: str | Path | None = None,
    format: str = AUTO,
    precision: str = AUTO,
    include: Sequence[str] = ("embedding",),
    image_size: ImageSize = None,
    images: Sequence[str | Path] = (),
    limits: Limits | None = None,
    gate_images: int = GATE_IMAGES,
    budget: float = 600.0,
    shrink: Sequence[int] | None = None,
    threads: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Export a trained run: the fastest engine and precision that the gate lets through.

    Args:
        run: The run folder.
        data: Data settings, where they differ from those of the run's recipe.
        out: Folder of the export; ``export`` in the run folder by default. An earlier export there is replaced.
        format: "openvino", "onnx", "torch" or "inductor"; "auto" for the fastest, without Inductor.
        precision: "fp32", "bf16" or "int8"; "auto" for the fastest that passes.
        include: Outputs besides logits and probabilities, of :data:`~vitrail.deploy.export.graph.INCLUDE`.
        image_size: Height and width of the model's input, at which everything is measured and compared; "any" for
            pixels of any size, which are neither cropped nor resized; the run's size by default.
        images: Files and folders of further gate images, without labels.
        limits: Limits of the gate; the defaults if None.
        gate_images: Images that candidates are compared on, at most, and as many of the final comparison: at even
            distances among the validation images and ``images``. Photographs of unlike sizes need a call each.
        budget: Seconds for the export: conversions, quantisation, timed calls and comparisons that do not fit are left
            out. The first candidate is completed in any case, and so is a step that has begun.
        shrink: Pairs of tokens that each block of further candidates merges (ViT), one number a candidate; empty for
            those that merge about a half and four fifths of the tokens in all blocks together.
        threads: Number of threads of the engine; all cores by default.
        report: Receives a line at the beginning of each step.

    Raises:
        ConfigError: An unknown format, precision or output, or one that does not run on this processor; a model that
            cannot merge tokens.
        DataError: Images that are missing or unreadable.
        RunError: The run is not trained, or no candidate passes the gate; nothing is written then.
    """
    time_left = Budget(budget)
    run = run if isinstance(run, RunFolder) else RunFolder.open(run)
    if data is None:
        data = load_recipe(run.recipe, settings_of=lambda name: find_family(name)[0].config).data
    list_variants(format, precision)
    for name in include:
        if name not in INCLUDE:
            raise ConfigError(f"--include {name} is not an output{closest(name, INCLUDE)}")
    out = run.export if out is None else Path(out)
    check_out(out)
    trained = load_classifier(run)
    if trained.card.per_point and {"sets", "ood"} & set(include):
        raise ConfigError(f"--include sets and ood are of classes of whole inputs; {run} labels points, leave them out")
    report = _named(report, trained.card.modality)
    if image_size is not None:
        check_need("export --image-size", trained.card.modality, trained.card.name)
    trained = at_size(trained, image_size)
    variants = list_variants(format, precision, merge_counts(trained, shrink, image_size))
    own = open_images(run, trained.card, data, verb="export").data
    selected, known = select_gate_images(run, trained, data, own, images)
    available = count_images(selected)
    selected = spread(selected, gate_images)
    with time_left.step(_COMPARISON):
        original = original_outputs(trained, selected, include)
    first = selected[0]

    fit = _decision_fitter(trained, own, first, include)
    decisions = None if fit is None else fit(original.original.logits)

    quantizer = Quantizer(
        own, (limits or Limits()).agreement, trained.card.multi_label,
        QuantizeSettings(budget=budget * _QUANTIZED, threads=threads), time_left, precision == INT8, report,
    )  # fmt: skip

    report("trace the model")
    types = pixel_types(first.images, first.indices[0])
    any_size = image_size == ANY
    kind = kind_of(trained.card)
    stored, no_photographs = ({}, NO_PHOTOGRAPHS) if any_size else kind.describe(trained.card, data, own)
    least = least_of_any(trained.model) if any_size else None

    def graph_of(merges: int, decisions: Decisions | None) -> ExportGraph:
        return ExportGraph(merging(trained, merges), types, stored, include, decisions, least)

    def build(
        program: ExportedProgram, graph: ExportGraph, variants: list[Variant], folder: Path, limit: Budget
    ) -> list[Built]:
        return build_candidates(
            program, graph, lambda engine: describe_model(graph, data, engine, no_photographs), variants, folder,
            threads, quantizer, limit,
        )  # fmt: skip

    graph = graph_of(0, decisions)
    with time_left.step(_TRACE):
        program = trace(graph)
    with new_export(out) as folder, tempfile.TemporaryDirectory(prefix=".candidates.", dir=out) as work:
        report(f"convert to {', '.join(dict.fromkeys(one.engine for one in variants))}")
        begun = time_left.spent
        built = build(program, graph, [one for one in variants if not one.merges], Path(work), time_left)
        for merges in dict.fromkeys(one.merges for one in variants if one.merges):
            own_variants = [one for one in variants if one.merges == merges]
            expected = time_left.longest[_TRACE] + (time_left.of_conversion(own_variants[0].engine) or 0.0)
            if not time_left.fits(expected, BUILDING):
                built += leave_out(own_variants, time_left)
                continue
            report(f"merge {plural(merges, 'pair')} of tokens in each block")
            shrunk = graph_of(merges, decisions)
            built += build(trace(shrunk), shrunk, own_variants, Path(work) / f"r={merges}", time_left)
        report(f"converted in {format_duration(time_left.spent - begun)}")
        able, timed = [one for one in built if one.engine is not None], _timed_batch(first)
        measured = _measure(able, trained, timed, time_left, threads, report)
        report(f"compare with the run on {plural(len(original.targets), 'image')}")
        slower = {name: own.slower for name, own in measured.items()} if format == AUTO else {}
        results = _choose(built, measured, trained, original, selected, graph, limits or Limits(), slower, time_left)
        chosen = next((one for one, result in zip(built, results, strict=True) if result.chosen), None)
        if chosen is None:
            raise RunError(_none_chosen(run, results, measured, time_left))
        measured = add_memory(measured, able, to_inputs(chosen.facts, timed), threads, time_left)
        graph = graph_of(chosen.variant.merges, decisions)
        if fit is not None and chosen.variant.criterion != "equality":
            name = chosen.variant.name
            report(f"fit the decisions on the outputs of {name}")
            outputs = export_outputs(chosen.export, selected[:1], ["ood_score"] if "ood" in include else [])
            decisions = fit(outputs["logits"])
            if "ood_score" in outputs:
                decisions = decisions.with_scores(outputs["ood_score"])
            graph = graph_of(chosen.variant.merges, decisions)
            (chosen,) = build(trace(graph), graph, [chosen.variant], Path(work) / "decided", Budget(math.inf))
            if chosen.engine is None:
                raise RunError(
                    f"{name} with decisions of its own cannot be built for {run}: {chosen.failure}; export with "
                    "--precision fp32"
                )
        final = _compare_on_test(chosen, trained, own, graph, gate_images, report)
        more: dict[str, Any] = {
            "weights": run.weights_hash(),
            "test": None if final is None else final.to_json(),
            "budget": time_left.to_json(),
        }
        if chosen.variant.precision == INT8:
            more["quantisation"] = quantizer.describe()
        _write(folder, chosen, graph, first, results, measured, threads, more)
    return Exported(
        load_export(out, threads), results, measured, final, len(original.targets), available, known, time_left
    )


def _named(report: Callable[[str], None], modality: Modality) -> Callable[[str], None]:
    """Return a report whose lines about images name the inputs of a modality."""
    return lambda line: report(reword(line, modality))


def _decision_fitter(
    trained: TrainedModel, own: ImageData, first: Selection, include: Sequence[str]
) -> Callable[[Floats], Decisions] | None:
    """Build the function from logits of the gate images to decisions, fitted on validation images; None if not asked.

    It keeps the embeddings, which are those of the run at every precision of the export.

    Raises:
        ConfigError: There are no validation images with labels.
    """
    if not {"sets", "ood"} & set(include):
        return None
    if not first.labelled:
        raise ConfigError("--include sets and ood need validation images with labels, which the run does not have")
    train = None
    if "train" in own.splits and "ood" in include:
        train = embed(trained, own, own.evenly_spaced("train", _REFERENCE_IMAGES))
    embeddings, targets = embed(trained, own, first.indices)
    return lambda logits: fit_decisions(logits[: len(first.indices)], targets, embeddings, train)


def _none_chosen(
    run: RunFolder, results: Sequence[Result], measured: Mapping[str, Measured], budget: Budget
) -> str:  # fmt: skip
    """Describe why nothing is written, with a remedy where candidates are only too slow."""
    passed = [result for result in results if result.verdict.status == "passed"]
    if not passed:
        reasons = "; ".join(f"{result.name}: {result.verdict.reason}" for result in results)
        return f"no candidate may be written for {run}: {reasons}"
    best = max(passed, key=lambda result: result.images_per_second or 0.0)
    return (
        f"every candidate is slower than the run itself: of the fastest, {best.name}, {measured[best.name].slower}; "
        f"predict with {run}, or write it all the same with --format {best.name.split()[0]}"
        + ("; a longer --budget tries more" if budget.left_out else "")
    )


def _measure(
    able: Sequence[Built], trained: TrainedModel, batch: Batch, budget: Budget, threads: int | None,
    report: Callable[[str], None],
) -> dict[str, Measured]:  # fmt: skip
    if not able:
        return {}
    report(f"time {plural(len(able), 'candidate')} and the run in eager mode")
    # Comparisons come after, and count for more.
    left = max(0.0, budget.left() - budget.longest[_COMPARISON] * len(able))
    before = torch.get_num_threads()
    torch.set_num_threads(threads or cores())
    try:
        return measure(
            able,
            lambda count: trained.classify({name: x[:count] for name, x in batch.items()}),
            to_inputs(able[0].facts, batch),
            min(_TIMED * budget.seconds, left),
            threads,
        )
    finally:
        torch.set_num_threads(before)


def _timed_batch(first: Selection) -> Batch:
    """Read as many images as the largest batch, some of them several times where there are fewer."""
    return first.images.batch([first.indices[i % len(first.indices)] for i in range(max(BATCHES))])


def _choose(
    built: Sequence[Built], measured: dict[str, Measured], trained: TrainedModel, original: GateImages,
    selected: Sequence[Selection], graph: ExportGraph, limits: Limits, slower: Mapping[str, str], budget: Budget,
) -> list[Result]:  # fmt: skip
    by_name = {one.variant.name: one for one in built}
    names = ["embedding"] * ("embedding" in graph.include)
    heatmaps = graph.heatmaps
    files, rows = spread_encoded(selected, _PHOTOGRAPHS) if graph.stored else ([], [])
    in_full = logits_in_full(trained, files) if rows else np.zeros((0, 0), np.float32)

    passed: list[str] = []
    compared: dict[str, Outputs] = {}

    def judge_in_time(candidate: Candidate, level: float) -> Verdict:
        expected = budget.longest[_COMPARISON]
        if passed and candidate.name not in compared and not budget.fits(expected):
            reason = budget.leave_out(f"{_COMPARISON} of {candidate.name}", expected)
            return Verdict("not tested", reason)
        with budget.step(_COMPARISON):
            verdict = judge_one(candidate, level)
        if verdict.status == "passed":
            passed.append(candidate.name)
        return verdict

    def judge_one(candidate: Candidate, level: float) -> Verdict:
        own_limits = dataclasses.replace(limits, level=level)
        export = by_name[candidate.name].export
        equality = candidate.criterion == "equality"
        if candidate.name not in compared:  # a second judgement, at another level, needs no second comparison
            found = export_outputs(export, selected, [*names, *heatmaps.values()], None if equality else graph.stored)
            maps = {stream: found[name] for stream, name in heatmaps.items()}
            compared[candidate.name] = Outputs(found["logits"], found.get("embedding"), maps)
        verdict = judge(original, compared[candidate.name], candidate.criterion, own_limits)
        if not (equality and rows and verdict.status == "passed"):
            return verdict
        found = export_outputs(export, files, [], graph.stored)
        return judge_photographs(original, rows, in_full, found["logits"], verdict, own_limits)

    candidates = [
        Candidate(
            name,
            one.variant.engine,
            one.variant.criterion,
            measured[name].images_per_second if name in measured else None,
            one.failure,
            slower.get(name, ""),
        )
        for name, one in by_name.items()
    ]
    return choose(candidates, judge_in_time, limits.level)


def _compare_on_test(
    chosen: Built, trained: TrainedModel, own: ImageData, graph: ExportGraph, most: int, report: Callable[[str], None]
) -> FinalTable | None:
    """Compare the chosen candidate with the run on test images, which have no part in any choice; None without any."""
    if not own.splits.get("test"):
        return None
    selected = spread([Selection(own, own.splits["test"], labelled=True)], most)
    report(f"compare with the run on {plural(len(selected[0].indices), 'test image')}")
    original = original_outputs(trained, selected, ())
    outputs = Outputs(export_outputs(chosen.export, selected, [], graph.stored)["logits"])
    return compare_on_test(original, outputs, len(own.splits["test"]))


def _write(
    folder: Path, chosen: Built, graph: ExportGraph, first: Selection, results: Sequence[Result],
    measured: dict[str, Measured], threads: int | None, quantisation: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the chosen candidate's files, its check images, and the record."""
    spread = [first.indices[i * len(first.indices) // _CHECK_IMAGES] for i in range(_CHECK_IMAGES)]
    batch = first.images.batch(sorted(set(spread)))
    kind = kind_of(graph.card)
    checks = {kind.prepared: to_inputs(chosen.facts, batch)}
    if graph.stored:
        checks[kind.stored] = as_stored(graph.stored, batch)
    for file in chosen.folder.iterdir():
        shutil.copy2(file, folder / file.name)
    differences = write_check(folder, chosen.export, checks, graph.compute)
    verdict = next(result.verdict for result in results if result.chosen)
    # Merged tokens move logits on every processor: only the engine's difference from the merged graph bounds the check.
    away = 0.0 if chosen.variant.merges else verdict.logit_difference or 0.0
    bounds = check_bounds(differences, away, Limits().tolerance)
    more: dict[str, Any] = {
        "check": {"bounds": bounds, "differences_from_run": differences},
        "precision": chosen.variant.precision,
        "token_merging": chosen.variant.merges,
        "processor": processor(),
        "threads": threads or cores(),
        "eager": measured[EAGER].to_json(),
        "candidates": [
            {**result.to_json(), "measured": measured[result.name].to_json() if result.name in measured else None}
            for result in results
        ],
        **quantisation,
    }
    write_record(folder, chosen.facts, more)
