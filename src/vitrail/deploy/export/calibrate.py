"""Quantisation of a run's export: its training images for calibration and ranking, its bound and its budget."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.dataset import ImageData
from vitrail.deploy.export.budget import BUILDING, Budget
from vitrail.deploy.export.graph import ExportGraph
from vitrail.deploy.export.quantize import (
    Change,
    Quantized,
    QuantizeSettings,
    Scheme,
    quantize,
    quantize_onnx,
    repeat,
)
from vitrail.deploy.export.stored import as_stored
from vitrail.durations import format_duration
from vitrail.engines.base import Arrays
from vitrail.engines.inputs import to_inputs
from vitrail.engines.onnx import OnnxEngine
from vitrail.engines.openvino import INT8
from vitrail.errors import ConfigError
from vitrail.extras import import_extra

# Calibration images, and ranking images: half of the training images each where there are fewer.
_IMAGES = 300
_LEAST_IMAGES = 16
_CHUNK = 16
# Seconds below which quantisation is not begun, unless it is asked for.
LEAST_BUDGET = 30.0


class Quantizer:
    """Quantises files of a run's graph; files after the first of OpenVINO by the settings found for that.

    Args:
        images: The run's images.
        agreement: Agreement that the gate asks for. Half as many decisions may differ on the ranking images, so that
            the result has a chance to pass.
        multi_label: Whether decisions are those of each label.
        settings: Settings.
        budget: Time of the whole export, which quantisation shares with conversions.
        forced: Whether int8 was asked for, so that it is made in spite of a short budget.
        report: Receives a line at each step.

    Attributes:
        found: Result for the first file; None before.
    """

    def __init__(
        self, images: ImageData, agreement: float, multi_label: bool, settings: QuantizeSettings, budget: Budget,
        forced: bool = False, report: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self.images, self.agreement, self.multi_label = images, agreement, multi_label
        self.settings, self.budget, self.forced, self.report = settings, budget, forced, report
        self.found: Quantized | None = None
        self._loaded: tuple[Arrays, Arrays] | None = None
        self._made_onnx = False

    def __call__(self, source: Path, target: Path, graph: ExportGraph, facts: Mapping[str, Any]) -> None:
        """Quantise a file.

        Args:
            source: model.xml, or model.onnx, in fp32.
            target: The file to write.
            graph: The graph that it was made from.
            facts: Its description.

        Raises:
            ConfigError: The budget is too short, training images are too few, or no operation became int8.
        """
        if self._loaded is None:
            seconds = min(self.settings.budget, self.budget.left(BUILDING))  # what conversions have left
            self.settings = dataclasses.replace(self.settings, budget=seconds)
            self._loaded = self._images(graph, facts)  # the second graph takes the same inputs
        calibration, ranking = self._loaded
        if source.suffix == ".onnx":
            self._quantize_onnx(source, target, calibration, ranking)
            return
        openvino = import_extra("openvino", "export")
        model = openvino.Core().read_model(source)
        if self.found is None:
            self.found = quantize(
                model, calibration, ranking, self._enough, multi_label=self.multi_label, settings=self.settings,
                report=self.report,
            )  # fmt: skip
            model = self.found.model
            for name, expected in self.found.left_out:
                self.budget.leave_out(f"int8 with {name}", expected)
        else:
            model = repeat(model, calibration, ranking, self.found, self.settings)
        openvino.save_model(model, target, compress_to_fp16=False)

    def _quantize_onnx(self, source: Path, target: Path, calibration: Arrays, ranking: Arrays) -> None:
        """Quantise by the scheme found for OpenVINO; by SmoothQuant's first setting where none was looked for."""
        onnx = import_extra("onnx", "export")
        scheme = Scheme(self.settings.smooth[0]) if self.found is None else self.found.scheme
        expected = LEAST_BUDGET if self.found is None else self.found.seconds / len(self.found.tried)
        # The chosen model is made again with decisions of its own, whatever is left.
        free = self.forced or self._made_onnx
        if not free and not self.budget.fits(expected, BUILDING):
            raise ConfigError(self.budget.leave_out("quantisation of the ONNX model", expected))
        begun = time.monotonic()
        onnx.save_model(quantize_onnx(onnx.load(source), calibration, ranking, scheme, self.settings), target)
        count = OnnxEngine(target, INT8).operations().get(INT8, 0)
        if not count:
            raise ConfigError("no operation of ONNX Runtime became int8; export with --format openvino, or in fp32")
        self._made_onnx = True
        seconds = format_duration(time.monotonic() - begun)
        self.report(f"ONNX, {scheme.name}: {count} int8 operations, {seconds}")

    def describe(self) -> dict[str, Any]:
        """Describe the quantisation for export.json."""
        found = self.found
        if found is None:
            return {"scheme": Scheme(self.settings.smooth[0]).name, "restored": [], "tried": []}
        return {
            "scheme": found.scheme.name,
            "restored": list(found.restored),
            "tried": [{"name": name, **vars(change)} for name, change in found.tried],
        }

    def _enough(self, change: Change) -> bool:
        return change.misses <= (1 - self.agreement) / 2 * change.images

    def _images(self, graph: ExportGraph, facts: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
        if not self.forced and self.settings.budget < LEAST_BUDGET:
            self.budget.leave_out("quantisation to int8", LEAST_BUDGET)
            raise ConfigError(
                f"quantisation has {self.settings.budget:.0f} s of --budget, at most a half, and needs at least "
                f"{LEAST_BUDGET:.0f} s; give a longer --budget, or ask for --precision int8"
            )
        indices = self.images.balanced_sample("train", 2 * _IMAGES) if self.images.splits.get("train") else []
        if len(indices) < 2 * _LEAST_IMAGES:
            raise ConfigError(
                f"quantisation needs {2 * _LEAST_IMAGES} training images, the run has {len(indices)}; export with "
                "--precision bf16 or fp32"
            )
        # Alternately, so that classes are as balanced in both.
        return self._load(indices[::2], graph, facts, photographs=True), self._load(indices[1::2], graph, facts)

    def _load(
        self, indices: Sequence[int], graph: ExportGraph, facts: Mapping[str, Any], photographs: bool = False
    ) -> Arrays:
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(indices), _CHUNK):
            batch = self.images.batch(indices[start : start + _CHUNK])
            found = to_inputs(facts, batch)
            if photographs and graph.stored:
                found |= as_stored(graph.stored, batch, enlarge=(1, 1))
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
        return {name: np.concatenate(values) for name, values in parts.items()}
