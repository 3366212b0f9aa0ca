"""Quantisation of an export to int8 by NNCF: variants ranked by the change of probabilities, worst layers restored.

Everything is measured on training images that are neither the calibration's nor the gate's, on the compiled model.
NNCF's own accuracy control is not used: it returns a model that misses the bound with one line of log.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from vitrail.bootstrap import Doubles
from vitrail.deploy.export.scope import (
    Graph,
    Group,
    merge_neighbours,
    names_outside,
    names_outside_onnx,
    quantized_groups,
    without_quantizers,
)
from vitrail.durations import format_duration
from vitrail.engines.base import Arrays
from vitrail.engines.openvino import INT8, OpenVINOEngine, keep_signal_stack
from vitrail.errors import count_of, plural
from vitrail.extras import import_extra

_PROBABILITIES = "probabilities"
# Time to restore layers, in times of a variant: one to rank them, one to restore some, and the measurements.
_RESTORATION = 3


@dataclass(frozen=True)
class Scheme:
    """Settings of NNCF for one variant.

    Attributes:
        smooth: Share of the activations' range that SmoothQuant moves to the weights (its alpha); None without it.
        full_correction: Whether biases are corrected layer by layer on new statistics, instead of all at once.
    """

    smooth: float | None
    full_correction: bool = False

    @property
    def name(self) -> str:
        """Name in tables."""
        smooth = "no SmoothQuant" if self.smooth is None else f"SmoothQuant {self.smooth:g}"
        return f"{smooth}, {'full' if self.full_correction else 'fast'} bias correction"


@dataclass(frozen=True)
class QuantizeSettings:
    """Settings of :func:`quantize`.

    Attributes:
        smooth: SmoothQuant's alphas, tried with fast bias correction in this order; the best also with the full one.
        images: Calibration images that are used, from the first.
        budget: Seconds. The first variant is always made; each further step only if it is expected to fit.
        trials: Most measurements of layers that are left in floating point.
        trial_images: Images of each, from the most changed.
        batch: Images of a batch when probabilities are computed.
        threads: Number of threads; all cores by default.
    """

    smooth: tuple[float | None, ...] = (0.95, 0.5, None)
    images: int = 300
    budget: float = 600.0
    trials: int = 24
    trial_images: int = 64
    batch: int = 16
    threads: int | None = None


@dataclass(frozen=True)
class Change:
    """Change of a model's probabilities.

    Attributes:
        images: Number of images.
        mean: Mean absolute change, over images and classes.
        largest: Largest absolute change.
        misses: Images with another decision (of any label if multi-label).
    """

    images: int
    mean: float
    largest: float
    misses: int

    def __str__(self) -> str:
        return (
            f"probabilities change by {self.mean:.2g} on average and {self.largest:.2g} at most, "
            f"{count_of(self.misses, self.images, 'decision', 'differs', 'differ')}"
        )


@dataclass(frozen=True)
class Quantized:
    """A quantised model.

    Attributes:
        model: The graph, with int8 weights.
        scheme: Settings that it was made with.
        restored: Names of layers that were returned to floating point.
        change: Change of the probabilities on the ranking images.
        enough: Whether the caller's bound holds.
        operations: Matrix products and convolutions of the compiled model by precision.
        tried: Each variant with its change, in the order of the trials.
        seconds: Time for all.
        left_out: Steps that did not fit into the budget, with the seconds that those seen let expect.
    """

    model: Graph
    scheme: Scheme
    restored: tuple[str, ...]
    change: Change
    enough: bool
    operations: dict[str, int]
    tried: tuple[tuple[str, Change], ...]
    seconds: float
    left_out: tuple[tuple[str, float], ...] = ()


def quantize(
    model: Graph,
    calibration: Arrays,
    ranking: Arrays,
    enough: Callable[[Change], bool],
    *,
    multi_label: bool = False,
    settings: QuantizeSettings | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Quantized:
    """Quantise the network of an export's graph, and restore its worst layers where the result is not good enough.

    Preprocessing and outputs beside the logits stay in floating point, as do the operations that NNCF's scheme for
    transformers leaves (sums, norms, softmax). The rest computes in bf16 where the processor has it.

    Args:
        model: ``openvino.Model`` in fp32, with the outputs "logits" and "probabilities".
        calibration: Training images by name of the input. Only the full bias correction, which needs all inputs, uses
            those that ``ranking`` does not have.
        ranking: Other training images. Inputs that are missing get an empty batch.
        enough: Bound on the change of the probabilities.
        multi_label: Whether decisions are those of each label.
        settings: Settings; the defaults if None.
        report: Receives a line at each step.

    Returns:
        The variant with the smallest mean change of those that hold the bound; the smallest of all, with as many
        layers restored as the budget allows, where none does.

    Raises:
        ConfigError: The compiled model has no int8 operation.
    """
    return _Quantization(model, calibration, ranking, enough, multi_label, settings or QuantizeSettings(), report).run()


def repeat(model: Graph, calibration: Arrays, ranking: Arrays, found: Quantized, settings: QuantizeSettings) -> Graph:
    """Quantise a graph of the same network by settings that were found before; arguments as for :func:`quantize`."""
    names = calibration if found.scheme.full_correction else ranking
    items = _items(model, {name: calibration[name] for name in names}, settings.images)
    return _run_nncf(model, items, found.scheme, [*names_outside(model), *found.restored])


@dataclass(frozen=True)
class _Variant:
    scheme: Scheme
    restored: tuple[str, ...]
    model: Graph
    change: Change
    difference: Doubles  # mean of each ranking image
    operations: dict[str, int]
    seconds: float


class _Quantization:
    """State of :func:`quantize`; arguments as there."""

    def __init__(
        self, model: Graph, calibration: Arrays, ranking: Arrays, enough: Callable[[Change], bool], multi_label: bool,
        settings: QuantizeSettings, report: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.model, self.enough, self.multi_label = model, enough, multi_label
        self.settings, self.report = settings, report
        self.calibration = calibration
        self.empty = [port.get_any_name() for port in model.inputs if port.get_any_name() not in calibration]
        self.ranking = ranking
        self.outside = names_outside(model)
        self.start = time.monotonic()
        self.original = self._probabilities(
            OpenVINOEngine(model, "fp32", settings.threads, fixed_sizes=False), self.ranking
        )
        self.tried: list[tuple[str, Change]] = []
        self.left_out: list[tuple[str, float]] = []
        self.floating = "fp32"

    def run(self) -> Quantized:
        """Try the variants, then restore layers if needed."""
        best = self._best_variant()
        if not self.enough(best.change):
            best = self._restore(best)
        return Quantized(
            best.model, best.scheme, best.restored, best.change, self.enough(best.change), best.operations,
            tuple(self.tried), time.monotonic() - self.start, tuple(self.left_out),
        )  # fmt: skip

    def _better(self, one: _Variant, other: _Variant) -> _Variant:
        """Return the one that holds the bound; of two that do, or do not, that with the smaller mean change."""
        return min(one, other, key=lambda own: (not self.enough(own.change), own.change.mean))

    def _best_variant(self) -> _Variant:
        best: _Variant | None = None
        longest = 0.0
        for index, smooth in enumerate(self.settings.smooth):
            if best is not None and not self._fits(longest + self._restoration(best)):
                self.report("no time for further variants of int8")
                further = [Scheme(later) for later in self.settings.smooth[index:]]
                self.left_out += [(scheme.name, longest) for scheme in further]
                return best
            begun = time.monotonic()
            found = self._variant(Scheme(smooth))
            longest = max(longest, time.monotonic() - begun)
            best = found if best is None else self._better(best, found)
        assert best is not None, "there is at least one variant"
        # NNCF's full correction fails on statistics without values. It collects them again for each layer: 2.4 times
        # the time was measured.
        if self.empty:
            self.report(f"no full bias correction: calibration has no images for the input {', '.join(self.empty)}")
        elif self._fits(4 * longest + self._restoration(best)):
            full = self._variant(Scheme(best.scheme.smooth, full_correction=True))
            # Layers are restored with the corrections of the variant: where only the fast one fits, it goes on.
            fits = self.enough(full.change) or self._fits(_RESTORATION * full.seconds)
            if fits or not self._restoration(best):
                best = self._better(best, full)
        else:
            self.report("no time for the full bias correction")
            self.left_out.append((Scheme(best.scheme.smooth, full_correction=True).name, 4 * longest))
        return best

    def _restoration(self, best: _Variant) -> float:
        """Return the seconds to reserve for the restoration, which gains most; 0 if not needed or too long."""
        needed = _RESTORATION * best.seconds
        return needed if not self.enough(best.change) and self._fits(needed) else 0.0

    def _restore(self, best: _Variant) -> _Variant:
        """Return the layers with the largest effect to floating point, until the bound holds or the budget ends."""
        if not self._fits(_RESTORATION * best.seconds):
            self.report("no time to restore layers")
            self.left_out.append(("layers restored to floating point", _RESTORATION * best.seconds))
            return best
        ranked, groups = self._rank(best)
        # Without any group nothing would be left in int8.
        most = min(len(ranked), groups - 1)
        made, held = best, None
        missed, holds, count = 0, most + 1, 1
        # Twice as many each time until the bound holds, then as few as hold it.
        while missed + 1 < holds and (count == 1 or self._fits(best.seconds)):
            found = self._variant(best.scheme, tuple(name for group in ranked[:count] for name in group.layers))
            if self.enough(found.change):
                held, holds = found, count
            else:
                made, missed = self._better(made, found), count
            count = (missed + holds) // 2 if held else min(2 * missed, most)
        if held is None:
            self.report(f"the bound is missed with {plural(len(made.restored), 'layer')} restored")
        return held or made

    def _rank(self, best: _Variant) -> tuple[list[Group], int]:
        """Sort groups of layers by the change that each makes alone, on the images that int8 changes most.

        All others compute in floating point, so that a bad layer does not hide another one. The graph is quantised
        without correction of biases, which is made for all layers in int8 together.

        Returns:
            The measured groups, and the number of all.
        """
        items = self._calibration(best.scheme)
        model = _run_nncf(self.model, items, best.scheme, self.outside, correct_biases=False)
        groups = merge_neighbours(quantized_groups(model), self.settings.trials)
        self.report(
            f"int8 misses the bound: {best.change}; measure {plural(len(groups), 'group')} of layers in int8 alone"
        )
        rows = np.sort(np.argsort(best.difference)[::-1][: self.settings.trial_images])
        images = {name: x[rows] for name, x in self.ranking.items()}
        effects: list[tuple[float, int]] = []
        for index in range(len(groups)):
            begun = time.monotonic()
            found = self._probabilities(self._trial(model, [*groups[:index], *groups[index + 1 :]]), images)
            effects.append((float(np.abs(found - self.original[rows]).mean()), index))
            if not self._fits(best.seconds + (time.monotonic() - begun)):
                self.report(f"time for {len(effects)} of {plural(len(groups), 'group')}")
                break
        return [groups[index] for _, index in sorted(effects, reverse=True)], len(groups)

    def _calibration(self, scheme: Scheme) -> list[Arrays]:
        # An image for each input only where it is needed: the network computes both.
        names = self.calibration if scheme.full_correction else self.ranking
        return _items(self.model, {name: self.calibration[name] for name in names}, self.settings.images)

    def _variant(self, scheme: Scheme, restored: tuple[str, ...] = ()) -> _Variant:
        begun = time.monotonic()
        made = _run_nncf(self.model, self._calibration(scheme), scheme, [*self.outside, *restored])
        engine = OpenVINOEngine(made, INT8, self.settings.threads, fixed_sizes=False)
        self.floating, operations = engine.floating, engine.operations()
        change, difference = self._measure(engine)
        seconds = time.monotonic() - begun
        name = scheme.name + (f", {plural(len(restored), 'layer')} restored" if restored else "")
        self.tried.append((name, change))
        self.report(f"{name}: {change} ({operations[INT8]} int8 operations, {format_duration(seconds)})")
        return _Variant(scheme, restored, made, change, difference, operations, seconds)

    def _measure(self, engine: OpenVINOEngine) -> tuple[Change, Doubles]:
        """Compare with the original on the ranking images; also return each image's mean change."""
        found = self._probabilities(engine, self.ranking)
        difference = np.abs(found - self.original)
        decisions = [x >= 0.5 if self.multi_label else x.argmax(axis=1)[:, None] for x in (found, self.original)]
        misses = int((decisions[0] != decisions[1]).any(axis=1).sum())
        change = Change(len(found), float(difference.mean()), float(difference.max()), misses)
        return change, difference.mean(axis=1)

    def _trial(self, model: Graph, groups: Sequence[Group]) -> OpenVINOEngine:
        """Compile a quantised graph in which the activations of some groups are not quantised."""
        names = [name for group in groups for name in group.quantizers]
        quantized = without_quantizers(model, names)
        return OpenVINOEngine(quantized, self.floating, self.settings.threads, fixed_sizes=False)

    def _probabilities(self, engine: OpenVINOEngine, images: Arrays) -> Doubles:
        count, size = len(next(iter(images.values()))), self.settings.batch
        batches = [{name: x[i : i + size] for name, x in images.items()} for i in range(0, count, size)]
        found = [engine.run(_with_empty(self.model, batch))[_PROBABILITIES] for batch in batches]
        return np.concatenate(found).astype(np.float64)

    def _fits(self, seconds: float) -> bool:
        return time.monotonic() - self.start + seconds <= self.settings.budget


def _items(model: Graph, images: Arrays, most: int) -> list[Arrays]:
    """Return calibration images, a batch of one each."""
    count = min(most, *(len(x) for x in images.values()))
    return [_with_empty(model, {name: x[i : i + 1] for name, x in images.items()}) for i in range(count)]


def _with_empty(model: Graph, images: Arrays) -> Arrays:
    """Add an empty batch for each input that has no images."""
    arrays = dict(images)
    for port in model.inputs:
        if port.get_any_name() not in arrays:
            shape = [dim.get_length() if dim.is_static else 1 for dim in port.get_partial_shape()]
            arrays[port.get_any_name()] = np.zeros((0, *shape[1:]), dtype=port.get_element_type().to_dtype())
    return arrays


@keep_signal_stack()  # NNCF creates engines of its own
def _run_nncf(
    model: Graph, items: Sequence[Arrays], scheme: Scheme, ignored: Sequence[str], correct_biases: bool = True
) -> Graph:
    """Quantise a copy of the graph.

    Args:
        model: The graph in fp32.
        items: Calibration images, a batch of one each: NNCF's statistics of larger batches are inaccurate.
        scheme: Settings.
        ignored: Names of operations that stay in floating point.
        correct_biases: Whether to correct biases for the mean error of quantisation.
    """
    nncf = _import_nncf()
    smooth = -1.0 if scheme.smooth is None else scheme.smooth  # -1 switches it off
    alphas = nncf.AdvancedSmoothQuantParameters(matmul=smooth)
    # NNCF shows progress bars on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset(items),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(items),
            fast_bias_correction=not scheme.full_correction,
            ignored_scope=nncf.IgnoredScope(names=list(ignored), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=alphas, disable_bias_correction=not correct_biases
            ),
        )


def quantize_onnx(model: Any, calibration: Arrays, ranking: Arrays, scheme: Scheme, settings: QuantizeSettings) -> Any:
    """Quantise an ``onnx.ModelProto`` by the settings that were found for OpenVINO's graph of the same network.

    Arguments as for :func:`quantize`. Inputs that ``ranking`` does not have get an empty batch.
    """
    helper = import_extra("onnx", "export").helper
    names = calibration if scheme.full_correction else ranking
    count = min(settings.images, *(len(calibration[name]) for name in names))
    empty = {
        port.name: np.zeros(
            [0, *(size.dim_value or 1 for size in list(port.type.tensor_type.shape.dim)[1:])],
            dtype=helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type),
        )
        for port in model.graph.input
    }
    items = [empty | {name: calibration[name][i : i + 1] for name in names} for i in range(count)]
    return _run_nncf(model, items, scheme, names_outside_onnx(model))


def _import_nncf() -> ModuleType:
    # Without this variable the import prepares usage data for Google Analytics, unless the user has opted out.
    os.environ.setdefault("NNCF_CI", "1")
    nncf = import_extra("nncf", "export")
    nncf.set_log_level(logging.ERROR)
    return nncf
