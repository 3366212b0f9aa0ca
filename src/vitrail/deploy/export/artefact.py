"""Files of an export: DIR/1/ with the model, export.json, README.md and check.npz."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import vitrail
from vitrail.config.data import DEFAULTS, FILE_SETTINGS, DataConfig
from vitrail.deploy.export.decisions import STEPS
from vitrail.deploy.export.graph import ExportGraph
from vitrail.deploy.export.readme import readme
from vitrail.deploy.exported import READING
from vitrail.engines.base import Arrays
from vitrail.engines.load import (
    CHECK_FILE,
    FORMAT,
    INPUT,
    OUTPUT,
    RECORD_FILE,
    VERSION_FOLDER,
    Export,
    difference,
    digest,
    sealed,
)
from vitrail.errors import ConfigError, RunError
from vitrail.files import write_json, write_text
from vitrail.models.modality import IMAGE
from vitrail.outputs import is_output_folder

README_FILE = "README.md"
# Share of an output's scale by which no two processors may differ, at any precision.
LARGEST_DIFFERENCE = 0.1

_PACKAGES = {
    "openvino": ("torch", "openvino"),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "torch": ("torch",),
    "inductor": ("torch",),
}


def reading_settings(data: DataConfig) -> dict[str, Any]:
    """Return the settings of :data:`READING` that differ from their defaults."""
    return {name: data.setting(name) for name in READING if data.setting(name) != DEFAULTS[name]}


def listing_settings(data: DataConfig) -> dict[str, Any]:
    """Return the settings by which labelled images are listed, without the paths of this machine."""
    return {name: value for name, value in data.form().items() if name not in FILE_SETTINGS}


def describe_model(graph: ExportGraph, data: DataConfig, engine: str, no_photographs: str = "") -> dict[str, Any]:
    """Describe the graph's inputs and outputs; equal for equal runs and versions.

    Args:
        graph: The graph.
        data: Data settings of the run.
        engine: Key of :data:`vitrail.engines.load.ENGINES`.
        no_photographs: Reason why the graph has no input for photographs of any size; empty where it has one.
    """
    return {
        "format": FORMAT,
        "engine": engine,
        "inputs": [entry.describe() for entry in graph.inputs],
        "outputs": list(graph.outputs),
        "decisions": None if graph.decisions is None else graph.decisions.describe(),
        "no_photographs": no_photographs,
        "preparation": {
            name: {**own.describe(), "seen": list(graph.card.img_size)} for name, own in graph.stored.items()
        },
        "decoding": _decoding(graph),
        "model": dataclasses.asdict(graph.card),
        "reading": reading_settings(data),
        "listing": listing_settings(data),
        "versions": {
            "vitrail": vitrail.__version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES[engine]},
        },
    }


def _decoding(graph: ExportGraph) -> dict[str, str]:
    """State how image files become the pixels of the photographs' inputs; empty for rasters, clips and clouds."""
    photographs = graph.card.modality is IMAGE
    if not photographs or all(own.describe()["filter"] == "bilinear" for own in graph.stored.values()):
        return {}
    return {
        "jpeg": "in full; at a half, a quarter or an eighth only if at least three times as large as the model's input",
        "orientation": "turned as the EXIF tag says",
        "color": "8 bits a band, without a color profile, in the order of the bands",
    }


@contextmanager
def new_export(out: Path) -> Iterator[Path]:
    """Create a temporary version folder; on success it becomes ``out/1``, in the place of an earlier export.

    Raises:
        ConfigError: ``out`` is a file, or ``out/1`` holds other files.
        RunError: The folder cannot be written.
    """
    check_out(out)
    final = out / VERSION_FOLDER
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{VERSION_FOLDER}.", suffix=".tmp", dir=out))
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error
    try:
        new = temporary / "new"
        new.mkdir()
        yield new
        if final.exists():
            final.rename(temporary / "old")
        new.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_out(out: Path) -> None:
    """Check that an export may be written to a folder.

    Raises:
        ConfigError: It is a file, or its version folder holds other files.
    """
    final = out / VERSION_FOLDER
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder")
    names = [file.name for file in final.iterdir()] if final.is_dir() else []
    if final.exists() and (not final.is_dir() or (names and not is_output_folder(names))):
        raise ConfigError(f"{final} holds files that do not belong to an export; choose another --out")


def write_check(
    folder: Path, export: Export, batches: Mapping[str, Arrays], run: Callable[[Arrays], Arrays]
) -> dict[str, float]:
    """Write the check images and their outputs.

    Args:
        folder: The version folder.
        export: The export.
        batches: Check images of each entry, by the names of its inputs.
        run: Computes the outputs of the run in fp32 for inputs of one entry.

    Returns:
        For each output the largest difference from the run's, as a share of the run's largest value.
    """
    arrays: Arrays = {}
    differences: dict[str, float] = {}
    for entry, inputs in batches.items():
        arrays |= {INPUT + name: x for name, x in inputs.items()}
        wanted = run(inputs)
        for name, x in export.run(inputs).items():
            if name not in STEPS:
                arrays[f"{OUTPUT}{entry}.{name}"] = x
                differences[name] = max(differences.get(name, 0.0), difference(x, wanted[name]))
    with (folder / CHECK_FILE).open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return differences


def check_bounds(differences: Mapping[str, float], logit_difference: float, tolerance: float) -> dict[str, float]:
    """Derive the largest differences from the recorded outputs that another processor may have.

    A processor that computes in this precision as well as this one is as far from the run in fp32, in another
    direction: from this one by at most twice as far. Nothing better than the tolerance of equal outputs is asked, and
    nothing worse than :data:`LARGEST_DIFFERENCE`: where quantisation moved the outputs a lot, twice as far would also
    let damaged files pass.

    Args:
        differences: Result of :func:`write_check`.
        logit_difference: The same of the logits on all gate images. Few check images show less: all differences grow by
            the same factor.
        tolerance: Difference up to which outputs are equal.
    """
    factor = max(1.0, logit_difference / max(differences["logits"], tolerance))
    return {name: min(2 * max(tolerance, factor * value), LARGEST_DIFFERENCE) for name, value in differences.items()}


def write_record(folder: Path, facts: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Write README.md and, last, export.json with the digests of all other files.

    Args:
        folder: The version folder, with the model file and check.npz.
        facts: Result of :func:`describe_model`.
        measured: Facts of this export alone: "precision", the processor, measurements, the gate, the check's bounds.
    """
    write_text(folder / README_FILE, readme({**facts, **measured}))
    files = {file.name: digest(file) for file in sorted(folder.iterdir()) if file.name != README_FILE}
    # As it is read: JSON has lists alone, and names of keys are text.
    record = json.loads(json.dumps({**facts, **measured, "files": files}))
    write_json(folder / RECORD_FILE, sealed(record))
