"""Speed and memory of models by name or run folder, alone or in alternation with their peers in other libraries."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.bench.memory import Memory, peak_memory
from vitrail.bench.peers import build_counterpart, check_counterpart, own_settings, pair_up
from vitrail.bench.speed import (
    PASSES,
    Mode,
    Precision,
    Spread,
    Step,
    Workload,
    alternate,
    make_step,
    matrix_peak,
    speedup,
)
from vitrail.errors import ConfigError, VitrailError, first_line
from vitrail.models.base import VisionModel
from vitrail.models.facts import resized_streams
from vitrail.models.modality import check_need
from vitrail.models.profile import count_multiply_adds
from vitrail.models.registry import create_model, find_family, list_families
from vitrail.runs.trained import load_trained

OURS = "vitrail"


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        name: A variant, a family, or the folder of a trained run.
        settings: Overrides of the model's settings; not for a run.
        img_size: Height and width of the inputs; by default those of the model. A model by name is built for this size;
            a run's model runs on it unchanged.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    img_size: tuple[int, int] | None = None

    @property
    def is_run(self) -> bool:
        """Whether the name is a run folder and not a model."""
        known = list_families()
        is_model = self.name in known or any(self.name in family.variants for family in known.values())
        return not is_model and (Path(self.name).is_dir() or "/" in self.name)

    def build(self) -> VisionModel:
        """Build the model: a run's with its weights, any other with random weights.

        Raises:
            ConfigError: Unknown name or setting, or settings for a run.
            RunError: There is no run in that folder.
        """
        if not self.is_run:
            if self.img_size is not None:
                check_need("bench --img-size", find_family(self.name)[0].modality, self.name)
            size = {} if self.img_size is None else {"img_size": self.img_size}
            return create_model(self.name, **self.settings, **size)
        if self.settings:
            raise ConfigError(f"{self.name} is a trained run, whose settings are fixed; leave out --set")
        model = load_trained(self.name).model
        if self.img_size is not None:
            check_need("bench --img-size", model.modality, self.name)
        return model

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """Resolve the model's name and all settings for the measured size; raises as :meth:`build`."""
        with contextlib.nullcontext() if self.is_run else torch.device("meta"):
            model = self.build()
        settings = {f.name: getattr(model.config, f.name) for f in dataclasses.fields(model.config)}
        return model.name, settings | ({} if self.img_size is None else {"img_size": self.img_size})

    def inputs(self, model: VisionModel, batch: int) -> list[Tensor]:
        """Sample inputs of ``model``, shape ``(batch, *stream.shape)`` for each stream, from a fixed seed.

        ``img_size`` applies to the streams that have the size of the first one.
        """
        generator = torch.Generator().manual_seed(0)
        streams = resized_streams(model.streams, self.img_size)
        return [torch.rand(batch, *stream.shape, generator=generator) for stream in streams]


@dataclass(frozen=True)
class Row:
    """Measurements of one model and workload.

    Attributes:
        model: Name of the model, as given.
        library: Library of the implementation.
        mode: "forward" or "train".
        precision: "32" or "bf16".
        compiled: Whether it was compiled.
        device: Type of the device.
        batch_size: Batch size.
        img_size: Height and width of the first input, after the frames of a clip; points of a cloud.
        images_per_second: Median over rounds.
        images_per_second_low: Slowest round.
        images_per_second_high: Fastest round.
        milliseconds: Median time of a step.
        gflops: 10^9 floating-point operations per second, counted on our model.
        peak_gflops: The machine's peak at this precision; see :func:`~vitrail.bench.speed.matrix_peak`.
        share_of_peak: ``gflops / peak_gflops``.
        memory_before_mb: 10^6 bytes in use before the first step, or None; see
            :class:`~vitrail.bench.memory.Memory`.
        memory_peak_mb: Peak 10^6 bytes in use during a step.
        against: Library measured in alternation with the same weights, if any.
        ratio: Speed of our model relative to that library; median over rounds.
        ratio_low: Lowest ratio of a round.
        ratio_high: Highest ratio of a round.
        difference: Largest difference of the two outputs, relative to the largest output.
    """

    model: str
    library: str
    mode: Mode
    precision: Precision
    compiled: bool
    device: str
    batch_size: int
    img_size: tuple[int, ...]
    images_per_second: float
    images_per_second_low: float
    images_per_second_high: float
    milliseconds: float
    gflops: float
    peak_gflops: float
    share_of_peak: float
    memory_before_mb: float | None = None
    memory_peak_mb: float | None = None
    against: str | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    difference: float | None = None

    def cells(self) -> dict[str, Any]:
        """Format the row for a file: the size as ``HxW`` (``TxHxW``, ``N``), numbers rounded to four digits."""
        values = dataclasses.asdict(self)
        values["img_size"] = "x".join(map(str, self.img_size))
        return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}


@dataclass(frozen=True)
class Plan:
    """Settings of a benchmark.

    Attributes:
        workloads: Workloads of each model.
        batch_size: Batch size.
        device: Device.
        rounds: Rounds of alternation.
        least: Minimum seconds of each model in a round.
        memory: Whether to measure memory too; on the CPU this starts a process for each model and workload.
        prepare: Called before a peer is built in a new process, for libraries that need preparation.
    """

    workloads: Sequence[Workload] = (Workload(),)
    batch_size: int = 8
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rounds: int = 7
    least: float = 0.3
    memory: bool = True
    prepare: Callable[[], object] | None = None


def check(subjects: Sequence[Subject], libraries: Sequence[str], plan: Plan) -> None:
    """Validate models and settings before the first measurement.

    Raises:
        ConfigError: Unknown model or setting, a model without a peer in the library, or a number below 1.
        RunError: There is no run in a folder.
        VitrailError: A library is not installed.
    """
    for name, value in (("batch size", plan.batch_size), ("number of rounds", plan.rounds)):
        if value < 1:
            raise ConfigError(f"the {name} must be at least 1, got {value}")
    for subject in subjects:
        name, settings = subject.architecture()
        for library in libraries:
            check_counterpart(library, name, settings)


def measure(subjects: Sequence[Subject], libraries: Sequence[str], plan: Plan) -> Iterator[Row]:
    """Measure models, each alone or in alternation with its peer in each library.

    Args:
        subjects: The models.
        libraries: "timm", "torchvision", both, or none. Both models of a pair have the peer's weights, also if the
            subject is a trained run.
        plan: Settings of the benchmark.

    Yields:
        Rows as they are measured: our model, then the peer, for each subject, library and workload.

    Raises:
        VitrailError: An error of :func:`check`, a peer whose outputs differ, or a failing step (out of memory).
    """
    check(subjects, libraries, plan)
    peaks = {w.precision: matrix_peak(plan.device, w.precision) for w in plan.workloads}
    for subject, library in itertools.product(subjects, libraries or (OURS,)):
        contenders, difference = _contenders(subject, library)
        ours = contenders[OURS]
        assert isinstance(ours, VisionModel)
        inputs = subject.inputs(ours, plan.batch_size)
        operations = 2 * count_multiply_adds(ours, *inputs)
        for workload in plan.workloads:
            torch.compiler.reset()
            times = _times(subject, contenders, inputs, workload, plan)
            for own in contenders:
                memory = _memory(subject, library, own, workload, plan) if plan.memory else None
                seconds = Spread.of(times[own])
                row = Row(
                    subject.name,
                    own,
                    workload.mode,
                    workload.precision,
                    workload.compiled,
                    plan.device.type,
                    plan.batch_size,
                    tuple(inputs[0].shape[1:-1] if ours.streams[0].channels_last else inputs[0].shape[2:]),
                    plan.batch_size / seconds.median,
                    plan.batch_size / seconds.high,
                    plan.batch_size / seconds.low,
                    1e3 * seconds.median,
                    PASSES[workload.mode] * operations / seconds.median / 1e9,
                    peaks[workload.precision] / 1e9,
                    PASSES[workload.mode] * operations / seconds.median / peaks[workload.precision],
                    None if memory is None else memory.before / 1e6,
                    None if memory is None else memory.peak / 1e6,
                )
                if own != OURS:
                    row = dataclasses.replace(row, against=OURS)
                elif library != OURS:
                    ratio = speedup(times[OURS], times[library])
                    row = dataclasses.replace(
                        row,
                        against=library,
                        ratio=ratio.median,
                        ratio_low=ratio.low,
                        ratio_high=ratio.high,
                        difference=difference,
                    )
                yield row


def _contenders(subject: Subject, library: str) -> tuple[dict[str, nn.Module], float | None]:
    """Build our model and, of another library, its peer with the same weights; with their difference."""
    if library == OURS:
        return {OURS: subject.build()}, None
    name, settings = subject.architecture()
    pair = pair_up(library, name, settings)
    return {OURS: pair.ours, library: pair.theirs}, pair.difference


def _times(
    subject: Subject, contenders: dict[str, nn.Module], inputs: list[Tensor], workload: Workload, plan: Plan
) -> dict[str, list[float]]:
    """Measure seconds of a step by library and round."""
    try:
        steps = [make_step(copy.deepcopy(model), inputs, workload, plan.device) for model in contenders.values()]
        times = alternate(steps, plan.device, plan.rounds, plan.least)
    except RuntimeError as error:  # out of memory, failed compilation, unsupported device
        raise VitrailError(
            f"{subject.name} ({workload.mode}, {workload.precision}{', compiled' if workload.compiled else ''}, batch "
            f"{plan.batch_size}) cannot run here: {first_line(error)}"
        ) from error
    return dict(zip(contenders, times, strict=True))


def _memory(subject: Subject, library: str, own: str, workload: Workload, plan: Plan) -> Memory | None:
    return peak_memory(functools.partial(_build_alone, subject, library, own, workload, plan), plan.device)


def _build_alone(subject: Subject, library: str, own: str, workload: Workload, plan: Plan) -> Step:
    """Build one model of a pair; called in a process of its own."""
    if library == OURS:
        ours = subject.build()
        return make_step(ours, subject.inputs(ours, plan.batch_size), workload, plan.device)
    name, settings = subject.architecture()
    with contextlib.nullcontext() if own == OURS else torch.device("meta"):
        ours = create_model(name, **own_settings(library, name, settings))
    inputs = subject.inputs(ours, plan.batch_size)
    if own == OURS:
        return make_step(ours, inputs, workload, plan.device)
    if plan.prepare is not None:
        plan.prepare()
    return make_step(build_counterpart(library, name, settings), inputs, workload, plan.device)
