"""Tables of speed and memory: models by name or by run folder, alone or beside other libraries' counterparts."""

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
from vitrail.errors import ConfigError, VitrailError
from vitrail.models.base import VisionModel
from vitrail.models.profile import count_multiply_adds
from vitrail.models.registry import create_model, families
from vitrail.runs.trained import load_trained

OURS = "vitrail"


@dataclass(frozen=True)
class Subject:
    """A model to be measured.

    Attributes:
        name: A variant, a family, or the folder of a trained run.
        settings: Settings of the model that differ from its own; none for a run.
        img_size: Height and width of the inputs; those that the model is made for when not given. A model by
            name is built for them; a run's is asked for another size as it is.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    img_size: tuple[int, int] | None = None

    @property
    def is_run(self) -> bool:
        """Whether the name is that of a run folder: of an existing folder, and of no model."""
        known = families()
        is_model = self.name in known or any(self.name in family.variants for family in known.values())
        return not is_model and (Path(self.name).is_dir() or "/" in self.name)

    def build(self) -> VisionModel:
        """The model: a run's with its weights, any other with random ones.

        Raises:
            ConfigError: An unknown name or setting, or settings for a run.
            RunError: No run in that folder.
        """
        if not self.is_run:
            size = {} if self.img_size is None else {"img_size": self.img_size}
            return create_model(self.name, **self.settings, **size)
        if self.settings:
            raise ConfigError(f"{self.name} is a trained run, whose settings are fixed; leave out --set")
        return load_trained(self.name).model

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """The model's name and all its settings, for the size that is measured; raises as :meth:`build`."""
        with contextlib.nullcontext() if self.is_run else torch.device("meta"):
            model = self.build()
        settings = {f.name: getattr(model.config, f.name) for f in dataclasses.fields(model.config)}
        return model.name, settings | ({} if self.img_size is None else {"img_size": self.img_size})

    def inputs(self, model: VisionModel, batch: int) -> list[Tensor]:
        """Random inputs of ``model``, one ``(batch, C, H, W)`` for each stream; the same ones every time.

        Streams of another size than the first keep theirs, whatever size is asked for.
        """
        generator = torch.Generator().manual_seed(0)
        first = model.streams[0].size
        sizes = [self.img_size or first if stream.size == first else stream.size for stream in model.streams]
        return [
            torch.rand(batch, stream.chans, *size, generator=generator)
            for stream, size in zip(model.streams, sizes, strict=True)
        ]


@dataclass(frozen=True)
class Row:
    """What was measured of one model at one work.

    Attributes:
        model: Name of the model, as it was asked for.
        library: Whose code ran.
        mode: "forward" or "train".
        precision: "32" or "bf16".
        compiled: Whether it was compiled.
        device: Type of the device.
        batch_size: Images a step.
        img_size: Height and width of the first input.
        images_per_second: Median over the rounds.
        images_per_second_low: Of the slowest round.
        images_per_second_high: Of the quickest round.
        milliseconds: Of a step, median.
        gflops: Billions of floating-point operations a second, by our model's count.
        peak_gflops: The same of the machine's quickest matrix product at this precision.
        share_of_peak: The former over the latter.
        memory_before_mb: 10^6 bytes in use before the first step, or None; see
            :class:`~vitrail.bench.memory.Memory`.
        memory_peak_mb: At most in use during a step.
        against: Library that was measured in turn with it, if any, on the same weights.
        ratio: How many times as fast as that ours is; median over the rounds.
        ratio_low: In the round that was worst for it.
        ratio_high: In the round that was best for it.
        difference: Between the two outputs, over the largest value.
    """

    model: str
    library: str
    mode: Mode
    precision: Precision
    compiled: bool
    device: str
    batch_size: int
    img_size: tuple[int, int]
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
        """The row for a file: the size as ``HxW``, numbers rounded to what was measured."""
        values = dataclasses.asdict(self)
        values["img_size"] = f"{self.img_size[0]}x{self.img_size[1]}"
        return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}


@dataclass(frozen=True)
class Plan:
    """What to measure of each subject.

    Attributes:
        workloads: The works.
        batch_size: Images a step.
        device: Where.
        rounds: Rounds in which contenders take turns.
        least: Seconds of each in a round, at least.
        memory: Whether to measure memory too; on the CPU a process is started for each number.
        prepare: Called before a counterpart is built in a new process, where its library needs that.
    """

    workloads: Sequence[Workload] = (Workload(),)
    batch_size: int = 8
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rounds: int = 7
    least: float = 0.3
    memory: bool = True
    prepare: Callable[[], object] | None = None


def check(subjects: Sequence[Subject], libraries: Sequence[str], plan: Plan) -> None:
    """Refuse what cannot be measured, before minutes are spent on the rest.

    Raises:
        ConfigError: An unknown model or setting, no counterpart of one of them, or a number below 1.
        RunError: No run in a folder.
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
    """Measure models, each alone, or in turn with its counterpart in each of some libraries.

    Args:
        subjects: The models.
        libraries: "timm", "torchvision", both, or none. Both models of a pair have the weights of the
            counterpart, also where the subject is a trained run.
        plan: What to measure.

    Yields:
        Rows, as they are measured: ours, then the counterpart's, for each subject, library and work.

    Raises:
        VitrailError: Something of :func:`check`, a counterpart that does not compute the same, or a step that
            fails (for want of memory, for instance).
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
                    (inputs[0].shape[2], inputs[0].shape[3]),
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
    """The model, and its counterpart with the same weights if there is one, by library; how much they differ."""
    if library == OURS:
        return {OURS: subject.build()}, None
    name, settings = subject.architecture()
    pair = pair_up(library, name, settings)
    return {OURS: pair.ours, library: pair.theirs}, pair.difference


def _times(
    subject: Subject, contenders: dict[str, nn.Module], inputs: list[Tensor], workload: Workload, plan: Plan
) -> dict[str, list[float]]:
    """Seconds of a step in each round, by library."""
    try:
        steps = [make_step(copy.deepcopy(model), inputs, workload, plan.device) for model in contenders.values()]
        times = alternate(steps, plan.device, plan.rounds, plan.least)
    except RuntimeError as error:  # torch's errors of memory, compilation and devices are of this kind
        raise VitrailError(
            f"{subject.name} ({workload.mode}, {workload.precision}{', compiled' if workload.compiled else ''}, batch "
            f"{plan.batch_size}) cannot run here: {str(error).strip().splitlines()[0]}"
        ) from error
    return dict(zip(contenders, times, strict=True))


def _memory(subject: Subject, library: str, own: str, workload: Workload, plan: Plan) -> Memory | None:
    return peak_memory(functools.partial(_build_alone, subject, library, own, workload, plan), plan.device)


def _build_alone(subject: Subject, library: str, own: str, workload: Workload, plan: Plan) -> Step:
    """Build one contender without the other; what a process of its own runs."""
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
